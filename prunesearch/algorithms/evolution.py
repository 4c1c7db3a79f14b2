"""Evolution of the best subset by mutation.

The (1 + lambda) search of O. Sieberling et al., "EvoPress", ICML 2025, arXiv:2410.14649, sec. 3:
the best subset is the only parent, and a child differs by min(U(1, 3), U(1, 3)) swaps, each within
one kind of unit.
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import SubsetConstraints, drift, swap
from prunesearch.algorithms.registry import AlgorithmEntry, register


@dataclass(frozen=True)
class Evolution:
    """EvoPress: mutate the best subset only."""

    most: int = 3  # largest number of swaps
    name: str = "evolution"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` mutants of the best subset."""
        parent_MD = np.broadcast_to(swarm.leader(particle), (count, swarm.constraints.free_D.size))
        flips_M = np.minimum(
            rng.integers(1, self.most + 1, count), rng.integers(1, self.most + 1, count)
        )
        # Distribute the swaps over the kinds of units, and swap within each kind.
        kinds = np.unique(swarm.constraints.group_D[swarm.constraints.free_D])
        flips_MK = rng.multinomial(flips_M, np.full(kinds.size, 1.0 / kinds.size))
        child_MD = np.zeros(parent_MD.shape, dtype=np.bool_)
        for kind, flips_M in zip(kinds, flips_MK.T, strict=True):
            of_kind = SubsetConstraints.of(
                swarm.constraints.group_D == kind, 0, swarm.constraints.k_max
            )
            free = SubsetConstraints.of(
                swarm.constraints.free_D & of_kind.free_D, 0, swarm.constraints.k_max
            )
            child_MD |= swap(parent_MD & of_kind.free_D, free, flips_M, rng)
        return Moves(drift(child_MD, swarm.constraints, rng))


register(
    AlgorithmEntry(
        "evolution", "EvoPress: mutations of the best subset", order=20, algorithm=Evolution
    )
)
