"""A genetic algorithm on subsets.

Tournament selection, uniform crossover of sets and mutation by swaps. The best subsets survive.
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import top
from prunesearch.algorithms.registry import AlgorithmEntry, register


@dataclass(frozen=True)
class Genetic:
    """Genetic algorithm with the study's best distinct subsets as its population."""

    mutation: float = 0.7  # probability of one random swap
    name: str = "ga"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` children of two parents, each the better of two drawn."""
        survivors_ED = swarm.elite_ED[: len(swarm.X_PD)]
        parents = rng.integers(len(survivors_ED), size=(2, 2, count)).min(
            axis=0
        )  # the elite is sorted
        mother_MD, father_MD = survivors_ED[parents[0]], survivors_ED[parents[1]]
        gene_MD = np.where(rng.random(mother_MD.shape) < 0.5, mother_MD, father_MD)
        pool_MD = mother_MD | father_MD
        # Fill or trim the child to the mother's size, at random from the units of its parents.
        child_MD = top(2.0 * gene_MD + pool_MD + rng.random(pool_MD.shape), mother_MD.sum(1))
        mutated_M = (rng.random(count) < self.mutation).astype(np.intp)
        constraints = swarm.constraints
        return Moves(constraints.drift(constraints.swap(child_MD, mutated_M, rng), rng))


register(
    AlgorithmEntry(
        "ga",
        "genetic algorithm with tournaments and crossover",
        order=21,
        algorithm=Genetic,
        origins=("elite",),
    )
)
