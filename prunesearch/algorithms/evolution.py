"""Evolution of the best subset by mutation.

The (1 + lambda) search of O. Sieberling et al., "EvoPress", ICML 2025, arXiv:2410.14649, sec. 3:
the best subset is the only parent, and a child differs by min(U(1, 3), U(1, 3)) swaps, each within
one kind of unit.
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Swarm
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
        # Each swap is within one kind of unit.
        child_MD = swarm.constraints.mutated(parent_MD, flips_M, rng)
        return Moves(swarm.constraints.drift(child_MD, rng))


register(
    AlgorithmEntry(
        "evolution",
        "EvoPress: mutations of the best subset",
        order=20,
        algorithm=Evolution,
        origins=("leader",),
    )
)
