"""Interfaces of an algorithm.

`Algorithm` moves subsets; `VectorLaw` moves real vectors. Both are pure functions from the swarm
and a random generator to proposals for one particle.
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


@dataclass(frozen=True)
class VectorState:
    """What a law of motion may use for one particle. All coordinates are in [0, 1].

    Attributes:
        x_D: coordinates of the particle's latest position.
        v_D: its velocity; zero if none is stored.
        own_D: coordinates of its best position.
        leader_D: coordinates of its leader.
        all_PD: coordinates of all particles' latest positions.
        generation: number of the generation to propose, counted from 0.
    """

    x_D: Real
    v_D: Real
    own_D: Real
    leader_D: Real
    all_PD: Real
    generation: int


class VectorLaw(Protocol):
    """A law of motion on real vectors, as the papers on an algorithm have it."""

    @property
    def name(self) -> str:
        """Short name, which is stored with each trial."""
        ...

    def step(self, state: VectorState, count: int, rng: np.random.Generator) -> dict[str, Real]:
        """Return `count` independent steps of a particle.

        Returns:
            Arrays with `count` rows by name: the coordinates ``x``, and what is stored beside them,
            such as the velocities ``v``.
        """
        ...
