"""Interface of the constraints on candidates, with the operators that depend on them.

An algorithm works on boolean masks and calls these methods, so it needs not know whether a mask
stands for dropped units (`subset_constraints`) or for widths (`width_constraints`).
"""

from collections.abc import Iterator, Sequence, Set
from typing import Protocol, Self

import numpy as np

from prunesearch.algorithms.gaussian_process import GaussianProcess
from prunesearch.algorithms.operators import Counts, Mask, Real
from prunesearch.algorithms.surrogate import Ranking


class Constraints(Protocol):
    """Constraints on the candidates of a space, as masks of D units."""

    @property
    def free_D(self) -> Mask:
        """Units that may be chosen."""
        ...

    @property
    def k_min(self) -> int:
        """Smallest number of chosen units."""
        ...

    @property
    def k_max(self) -> int:
        """Largest number of chosen units."""
        ...

    @property
    def fixed(self) -> bool:
        """True if all candidates have the same number of chosen units."""
        ...

    @property
    def count(self) -> int:
        """Number of candidates."""
        ...

    def holds(self, X_D: Mask) -> bool:
        """Return whether a mask satisfies the constraints."""
        ...

    def of_size(self, size: int) -> Self:
        """Return the constraints for one number of chosen units."""
        ...

    def repaired(self, X_MD: Mask, rng: np.random.Generator) -> Mask:
        """Return the masks nearest to those that an algorithm has made that satisfy the
        constraints.
        """
        ...

    def completed(self, X_D: Mask, rng: np.random.Generator) -> Mask:
        """Return a mask near to any one, such as a suggestion of another sampler, that satisfies
        the constraints.
        """
        ...

    def random_subsets(self, size_M: Counts, rng: np.random.Generator) -> Mask:
        """Draw one mask for each size."""
        ...

    def swap(self, X_MD: Mask, count_M: Counts, rng: np.random.Generator) -> Mask:
        """Make `count` random exchanges in each row."""
        ...

    def mutated(self, X_MD: Mask, count_M: Counts, rng: np.random.Generator) -> Mask:
        """Make `count` random exchanges in each row, each within one kind of unit."""
        ...

    def neighbours(self, X_D: Mask, most: int, rng: np.random.Generator) -> Mask:
        """Return up to `most` different masks that one exchange makes of `X_D`."""
        ...

    def exchangeable(self, X_D: Mask) -> tuple[Counts, Counts] | None:
        """Return the units that an exchange may remove from a mask, and those that it may add.

        None if single units cannot be exchanged.
        """
        ...

    def resize(self, X_MD: Mask, size_M: Counts, rng: np.random.Generator) -> Mask:
        """Add or remove random units until each row has its size."""
        ...

    def drift(self, X_MD: Mask, rng: np.random.Generator) -> Mask:
        """Change the size of some rows by one, where it may vary."""
        ...

    def unseen(self, X_D: Mask, seen: Set[bytes], rng: np.random.Generator) -> Mask:
        """Return `X_D` if it is new, else a new mask that is near. `X_D` if there is none."""
        ...

    def first_subsets(
        self,
        population: int,
        block: int,
        ranking: Ranking | None,
        around: Sequence[Mask],
        rng: np.random.Generator,
    ) -> Mask:
        """Return masks to start from, shape (P, D).

        Args:
            population: number of masks P.
            block: how many times this was called before with the same arguments.
            ranking: prior ranking of the units, or None.
            around: masks that are proposed before these.
            rng: random generator.
        """
        ...

    def by_total(self, harm_D: Real) -> Iterator[Mask]:
        """Yield candidates with the most units in order of their total harm, the cheapest first."""
        ...

    def surrogate(
        self, X_ND: Mask, score_N: Real, ranking: Ranking | None, noise_N: Real | None = None
    ) -> GaussianProcess:
        """Fit a surrogate to candidates and their scores (see `GaussianProcess`)."""
        ...

    def keys(self, X_D: Mask) -> Real:
        """Return coordinates in [0, 1] that `from_keys` decodes to a mask."""
        ...

    def from_keys(self, x_MC: Real, rng: np.random.Generator) -> Mask:
        """Decode coordinates to masks."""
        ...

    def condensed(self, value_MD: Real) -> Real:
        """Return numbers of the units, such as velocities, as they are stored with a trial."""
        ...

    def expanded(self, stored: Real) -> Real:
        """Return stored numbers as one for each unit, shape (D,)."""
        ...
