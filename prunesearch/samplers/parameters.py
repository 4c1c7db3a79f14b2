"""Optuna parameters: random values, positions that they can have, and which ones trials share."""

import zlib
from collections.abc import Collection, Mapping

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from prunesearch.algorithms.operators import Real, generator
from prunesearch.studies.optuna_internals.access import ParameterTransform

ParameterSpace = dict[str, BaseDistribution]


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


class Rounding:
    """Rounds positions in [0, 1] to those that the parameters of a space can have.

    Integers and steps are rounded, and the largest coordinate of a categorical parameter becomes
    1, its others 0. The coordinates are those of `ParameterTransform`.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self._categorical: list[tuple[int, int]] = []  # first coordinate and number of choices
        self._stepped: list[tuple[int, float, float, float, bool]] = []
        column = 0
        for distribution in space.values():
            if isinstance(distribution, CategoricalDistribution):
                self._categorical.append((column, len(distribution.choices)))
                column += len(distribution.choices)
                continue
            assert isinstance(distribution, FloatDistribution | IntDistribution)
            if distribution.step is not None:
                low, high, step = distribution.low, distribution.high, distribution.step
                self._stepped.append((column, low, high, step, distribution.log))
            column += 1

    def __call__(self, x_MD: Real) -> Real:
        """Return the rounded positions."""
        if not self._categorical and not self._stepped:
            return x_MD
        x_MD = x_MD.copy()
        for column, choices in self._categorical:
            largest_M = np.argmax(x_MD[:, column : column + choices], axis=1)
            x_MD[:, column : column + choices] = 0.0
            x_MD[np.arange(len(x_MD)), column + largest_M] = 1.0
        for column, low, high, step, log in self._stepped:
            # The bounds lie half a step outside, so that each value has the same share.
            first, last = low - 0.5 * step, high + 0.5 * step
            if log:
                first, last = np.log(first), np.log(last)
            value_M = first + x_MD[:, column] * (last - first)
            if log:
                value_M = np.exp(value_M)
            value_M = np.clip(low + step * np.round((value_M - low) / step), low, high)
            if log:
                value_M = np.log(value_M)
            x_MD[:, column] = (value_M - first) / (last - first)
        return x_MD


class SharedParameters:
    """The parameters that completed trials have in common, with the same distribution.

    Each trial is noted once, so the answer does not need the trials again. Most trials of a study
    have the same distributions, which are kept once.
    """

    def __init__(self) -> None:
        self._kinds: list[ParameterSpace] = []
        self._index: dict[frozenset[tuple[str, BaseDistribution]], int] = {}
        self._latest = 0  # kind of the trial that was noted last
        self._kind_N: list[int] = []  # index into `_kinds` of each trial; -1 if it has none

    def note(self, number: int, distributions: Mapping[str, BaseDistribution]) -> None:
        """Enter the distributions of a completed trial."""
        own = {name: d for name, d in distributions.items() if not d.single()}
        # Most trials are like the trial before.
        if self._kinds and self._kinds[self._latest] == own:
            kind = self._latest
        else:
            kind = self._index.setdefault(frozenset(own.items()), len(self._kinds))
            if kind == len(self._kinds):
                self._kinds.append(own)
        self._latest = kind
        while len(self._kind_N) <= number:
            self._kind_N.append(-1)
        self._kind_N[number] = kind

    def among(self, end: int, hidden: Collection[int]) -> ParameterSpace:
        """Return what the noted trials before `end` share, sorted by name.

        Args:
            end: number of the first trial that is left out.
            hidden: numbers of other trials that are left out.
        """
        kind_N = np.array(self._kind_N[:end], dtype=np.intp)
        if hidden:
            inside = [number for number in hidden if number < kind_N.size]
            kind_N[inside] = -1
        shared: ParameterSpace | None = None
        for kind in np.unique(kind_N[kind_N >= 0]).tolist():
            own = self._kinds[kind]
            if shared is None:
                shared = dict(own)
            for name in list(shared):
                if own.get(name) != shared[name]:
                    del shared[name]
        return dict(sorted((shared or {}).items()))
