"""Uniform random subsets, the simplest baseline."""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.registry import AlgorithmEntry, register


@dataclass(frozen=True)
class RandomSearch:
    """Uniform random subsets."""

    name: str = "random"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` random subsets."""
        sizes = rng.integers(swarm.constraints.k_min, swarm.constraints.k_max + 1, size=count)
        return Moves(swarm.constraints.random_subsets(sizes, rng))


register(AlgorithmEntry("random", "uniform random subsets", order=90, algorithm=RandomSearch))
