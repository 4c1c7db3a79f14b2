"""Whale optimization as moves on subsets.

S. Mirjalili and A. Lewis, "The whale optimization algorithm", Adv. Eng. Softw. 95, 2016,
doi 10.1016/j.advengsoft.2016.01.008. Equation numbers are the paper's; what a difference of vectors
is there is a difference of sets here:

    A = 2 a r - a                       eq. 2.3, a falls from 2 to 0
    |A| < 1:  X <- toward(G)            eq. 2.2, encircling: take over a share 1 - |A| of what the
                                        leader G has
    |A| >= 1: X <- toward(X_rand)       eq. 2.8, exploring: the same toward a random other whale
    spiral:   X <- G with j swaps       eq. 2.5, around the leader at a distance j that shrinks
                                        with a

The spiral has probability p, the first two lines together 1 - p; p is 1/2 (eq. 2.6). `a` restarts
every `cycle` generations, so that a study can be prolonged without knowing its length beforehand.

`WhaleVectors` is the paper's algorithm on real vectors, eqs. 2.1 to 2.8.
"""

import math
from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves, VectorState
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import Real, falling, toward
from prunesearch.algorithms.registry import SWARM_POPULATION, AlgorithmEntry, register

CYCLE = 10  # generations in which a falls from 2 to 0


@dataclass(frozen=True)
class WhaleOptimization:
    """WOA with set moves."""

    cycle: int = CYCLE  # generations in which a falls from 2 to 0
    p: float = 0.5  # probability of the spiral
    name: str = "woa"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` proposals."""
        X_D, leader_D = swarm.X_PD[particle], swarm.leader(particle)
        # Each proposal draws its own A and its branch.
        a = falling(swarm.generation, self.cycle)
        A_M = 2.0 * a * rng.random(count) - a  # eq. 2.3
        near_M, spiral_M = np.abs(A_M) < 1.0, rng.random(count) < self.p  # eq. 2.6
        # Encircling and exploring: move toward the leader or another whale.
        others = [i for i in range(len(swarm.X_PD)) if i != particle] or [particle]
        goal_MD = np.where(near_M[:, None], leader_D, swarm.X_PD[rng.choice(others, size=count)])
        share_M = np.where(near_M, 1.0 - np.abs(A_M), rng.random(count))
        X_MD = np.broadcast_to(X_D, (count, X_D.size))
        closing_MD = toward(X_MD, goal_MD, share_M, rng)  # eqs. 2.2 and 2.8
        # Spiral: swaps around the leader, fewer as a falls.
        hit = math.ceil(max(1.0, a / 2.0 * math.sqrt(leader_D.sum())))
        distance_M = rng.integers(1, hit + 1, size=count)
        leader_MD = np.broadcast_to(leader_D, X_MD.shape)
        swapped_MD = swarm.constraints.swap(leader_MD, distance_M, rng)
        circling_MD = swarm.constraints.drift(swapped_MD, rng)  # eq. 2.5
        return Moves(np.where(spiral_M[:, None], circling_MD, closing_MD))


@dataclass(frozen=True)
class WhaleVectors:
    """WOA on real vectors."""

    cycle: int = CYCLE  # generations in which a falls from 2 to 0
    b: float = 1.0  # how fast the spiral widens
    p: float = 0.5  # probability of the spiral
    name: str = "woa"

    def step(self, state: VectorState, count: int, rng: np.random.Generator) -> dict[str, Real]:
        """Return `count` positions ``x``."""
        x_D, leader_D, shape = state.x_D, state.leader_D, (count, state.x_D.size)
        a = falling(state.generation, self.cycle)
        A_MD = 2.0 * a * rng.random(shape) - a  # eq. 2.3
        C_MD = 2.0 * rng.random(shape)  # eq. 2.4
        # Encircling and exploring: the branch is drawn in each coordinate, A being a vector.
        random_MD = state.all_PD[rng.integers(len(state.all_PD), size=count)]
        goal_MD = np.where(np.abs(A_MD) >= 1.0, random_MD, leader_D)
        closing_MD = goal_MD - A_MD * np.abs(C_MD * goal_MD - x_D)  # eqs. 2.1, 2.2 and 2.7, 2.8
        # Spiral around the leader: eq. 2.5.
        l_M = rng.uniform(-1.0, 1.0, size=(count, 1))
        distance_MD = np.abs(leader_D - x_D) * np.exp(self.b * l_M)
        spiral_MD = distance_MD * np.cos(2.0 * np.pi * l_M) + leader_D
        x_MD = np.where(rng.random((count, 1)) < 1.0 - self.p, closing_MD, spiral_MD)  # eq. 2.6
        return {"x": np.clip(x_MD, 0.0, 1.0)}


register(
    AlgorithmEntry(
        "woa",
        "whale optimization",
        order=11,
        algorithm=WhaleOptimization,
        vector_law=WhaleVectors(),
        surrogate=True,
        asynchronous=True,
        population=SWARM_POPULATION,
        ranking="influence",
        origins=("particle", "leader", "swarm"),
    )
)
