"""What a landscape is: a loss for every subset of a model's units, known without a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from prunesearch.algorithms.operators import Mask, Real
from prunesearch.space import Budget, SearchSpace

Loss = Callable[[Mask], Real]
"""Function from M subsets, shape (M, D), to their losses, shape (M,). Smaller is better."""


@dataclass(frozen=True)
class Landscape:
    """A loss for every subset of D units.

    Attributes:
        name: name of the landscape, such as ``layer80-k20``.
        n: number of units D.
        k_min, k: smallest and largest number of chosen units.
        loss: what a search is told. It may be noisy, and is the same each time it is asked.
        true_loss: what counts in the end; None if it is `loss`.
        partial: whether subsets of other sizes have a loss too.
        rankings: estimated harm of each unit by the name of the estimate, shape (D,). ``good`` is a
            good estimate, ``anti`` its inverse.
        optimum: best true loss of all, where it is known.
        units: what the units are. Sublayers alternate: attention, MLP, attention, and so on.
    """

    name: str
    n: int
    k_min: int
    k: int
    loss: Loss
    true_loss: Loss | None = None
    partial: bool = True
    rankings: Mapping[str, Real] = field(default_factory=dict)
    optimum: float | None = None
    units: Literal["blocks", "sublayers"] = "blocks"

    @property
    def fixed(self) -> bool:
        """True if all subsets have the same size."""
        return self.k_min == self.k

    @property
    def noisy(self) -> bool:
        """True if a search is told something else than what counts."""
        return self.true_loss is not None

    @property
    def space(self) -> SearchSpace:
        """The search space of the samplers."""
        budget: Budget = "exactly" if self.fixed else "up to"
        layers = self.n if self.units == "blocks" else self.n // 2
        return SearchSpace(layers, self.k, budget=budget, units=self.units)

    def true(self, X_MD: Mask) -> Real:
        """Return the true losses of M subsets, shape (M,)."""
        if self.true_loss is None:
            return self.loss(X_MD)
        return self.true_loss(X_MD)

    def random_subset(self, rng: np.random.Generator) -> Mask:
        """Draw a subset: its size first, then its units."""
        size = self.k
        if not self.fixed:
            size = int(rng.integers(self.k_min, self.k + 1))
        X_D = np.zeros(self.n, dtype=np.bool_)
        X_D[rng.choice(self.n, size, replace=False)] = True
        return X_D


def linear_and_pairs(X_MD: Mask, cost_D: Real, pair_DD: Real) -> Real:
    """Return sum_i c_i x_i + sum_{i<j} W_ij x_i x_j of each subset.

    Args:
        X_MD: subsets.
        cost_D: costs c of the units.
        pair_DD: effects W of the pairs, symmetric, with zeros on the diagonal.
    """
    A_MD = X_MD.astype(float)
    return np.asarray(A_MD @ cost_D + 0.5 * np.einsum("ij,ij->i", A_MD @ pair_DD, A_MD))
