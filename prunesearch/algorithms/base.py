"""Interface of an algorithm: a pure function from the swarm and a random generator to proposals for
one particle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import Mask, Real


@dataclass(frozen=True)
class Moves:
    """M proposals for one particle.

    Attributes:
        X_MD: subsets, shape (M, D).
        memory: arrays with M rows by name. The row of the chosen proposal is stored with its trial.
    """

    X_MD: Mask
    memory: Mapping[str, Real] = field(default_factory=dict)

    def recall(self, chosen: int) -> dict[str, Real]:
        """Return the memory of one proposal, rounded as it is stored."""
        return {name: np.round(values[chosen], 6) for name, values in self.memory.items()}


class Algorithm(Protocol):
    """An algorithm that moves one particle at a time."""

    @property
    def name(self) -> str:
        """Short name, which is stored with each trial."""
        ...

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` independent proposals for the particle's next position."""
        ...
