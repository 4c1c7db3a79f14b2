"""Set-based particle swarm optimization.

J. Kennedy and R. Eberhart, "Particle swarm optimization", ICNN 1995 (PSO), in the set form of
W.-N. Chen et al., "A novel set-based particle swarm optimization method for discrete optimization
problems", IEEE Trans. Evol. Comput. 14(2), 2010, doi 10.1109/TEVC.2009.2030331 (S-PSO).

A position is a set of units. A velocity gives each unit a possibility in [0, 1] of being chosen
next:

    V <- max(w V, c1 r1 (P - X), c2 r2 (G - X))        S-PSO eqs. 6-9

The operations are scaling, set difference, and union by maximum. P is the particle's best and G the
leader's position; r1, r2 ~ U(0, 1) for each unit. The next position is built from the units whose
possibility exceeds a random threshold, then from the old position (S-PSO, position updating). Where
the size may vary, it is drawn from the sizes of X, P and G. One departure: with probability
`turbulence` one random unit is swapped, because a swarm of sets has no other source of units that
no particle holds.

`ParticleVectors` is the canonical PSO on real vectors, with the constriction of M. Clerc and J.
Kennedy, IEEE TEVC 6(1), 2002:

    v <- w v + c1 r1 (p - x) + c2 r2 (g - x),   x <- x + v          w = .729, c1 = c2 = 1.496

Bounds reflect nothing: a coordinate that leaves is set to the bound and its velocity to zero.
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves, VectorState
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import Real, top
from prunesearch.algorithms.registry import SWARM_POPULATION, AlgorithmEntry, register

W, C = 0.729, 1.496  # inertia and pull of Clerc and Kennedy


@dataclass(frozen=True)
class ParticleSwarm:
    """S-PSO with the constants of Clerc and Kennedy (2002)."""

    w: float = W  # inertia of the velocity
    c1: float = C  # pull of the particle's own best
    c2: float = C  # pull of the leader
    turbulence: float = 0.4  # probability of one random swap a move
    name: str = "pso"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` proposals and their velocities."""
        X_D, own_D, leader_D = (
            swarm.X_PD[particle],
            swarm.best_X_PD[particle],
            swarm.leader(particle),
        )
        constraints, shape = swarm.constraints, (count, X_D.size)
        # Velocity: inertia, then the union by maximum with both differences.
        kept_D = np.zeros(X_D.size)
        if "v" in swarm.memory_P[particle]:
            kept_D = constraints.expanded(swarm.memory_P[particle]["v"])
        V_MD = np.broadcast_to(self.w * kept_D, shape)
        V_MD = np.maximum(V_MD, self.c1 * rng.random(shape) * (own_D & ~X_D))  # c1 r1 (P - X)
        V_MD = np.maximum(V_MD, self.c2 * rng.random(shape) * (leader_D & ~X_D))  # c2 r2 (G - X)
        V_MD = np.minimum(V_MD, 1.0) * constraints.free_D

        # Position updating: units above the threshold first, then the old position's, ties at
        # random.
        above_MD = rng.random((count, 1)) < V_MD
        rank_MD = np.where(above_MD, 2.0, 0.0) + 1.0 * X_D + 0.5 * rng.random(shape)
        rank_MD[:, ~constraints.free_D] = -1.0
        sizes = np.array([X_D.sum(), own_D.sum(), leader_D.sum()])
        size_M = np.full(count, sizes[0]) if constraints.fixed else rng.choice(sizes, size=count)
        Y_MD = top(rank_MD, np.clip(size_M, constraints.k_min, constraints.k_max))
        disturbed_M = (rng.random(count) < self.turbulence).astype(np.intp)
        moved_MD = constraints.drift(constraints.swap(Y_MD, disturbed_M, rng), rng)
        return Moves(moved_MD, {"v": constraints.condensed(V_MD)})


@dataclass(frozen=True)
class ParticleVectors:
    """Canonical PSO on real vectors."""

    w: float = W  # inertia of the velocity
    c1: float = C  # pull of the particle's own best
    c2: float = C  # pull of the leader
    name: str = "pso"

    def step(self, state: VectorState, count: int, rng: np.random.Generator) -> dict[str, Real]:
        """Return `count` positions ``x`` and velocities ``v``."""
        x_D, shape = state.x_D, (count, state.x_D.size)
        # Velocity: inertia, and the pulls of the particle's best and of the leader.
        own_MD = self.c1 * rng.random(shape) * (state.own_D - x_D)
        leader_MD = self.c2 * rng.random(shape) * (state.leader_D - x_D)
        v_MD = self.w * state.v_D + own_MD + leader_MD
        # Position: a coordinate outside of the bounds is set to the bound.
        x_MD = x_D + v_MD
        outside_MD = (x_MD < 0.0) | (x_MD > 1.0)
        return {"x": np.clip(x_MD, 0.0, 1.0), "v": np.where(outside_MD, 0.0, v_MD)}


register(
    AlgorithmEntry(
        "pso",
        "particle swarm optimization",
        order=10,
        algorithm=ParticleSwarm,
        vector_law=ParticleVectors(),
        surrogate=True,
        asynchronous=True,
        population=SWARM_POPULATION,
        ranking="influence",
        origins=("particle", "own best", "leader"),
    )
)
