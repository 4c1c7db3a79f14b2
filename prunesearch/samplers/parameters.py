"""Random values of Optuna parameters, as plain Python numbers."""

import zlib

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalChoiceType

from prunesearch.algorithms.operators import Real, generator
from prunesearch.studies.optuna_internals.access import ParameterTransform


def draw(
    seed: int, number: int, name: str, distribution: BaseDistribution
) -> CategoricalChoiceType:
    """Draw a uniform random value that depends on the four arguments only.

    The value is uniform in the log domain if the distribution is logarithmic.
    """
    rng = generator(seed, number, zlib.crc32(name.encode()), stream=8)
    transform = ParameterTransform({name: distribution})
    low, high = transform.bounds.T
    return untransform(transform, rng.uniform(low, high))[name]


def untransform(transform: ParameterTransform, x_D: Real) -> dict[str, CategoricalChoiceType]:
    """Convert coordinates to parameters, as plain Python numbers."""
    params = transform.untransform(x_D)
    for name, value in params.items():
        # Optuna's clipping leaves some numpy scalars.
        if isinstance(value, np.generic):
            params[name] = value.item()
    return params
