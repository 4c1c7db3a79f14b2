"""Set-based particle swarm optimization over subsets of fixed size.

J. Kennedy and R. Eberhart, "Particle swarm optimization", ICNN 1995 (PSO), in the set form of
W.-N. Chen et al., "A novel set-based particle swarm optimization method for discrete optimization problems",
IEEE Trans. Evol. Comput. 14(2), 2010, doi 10.1109/TEVC.2009.2030331 (S-PSO).

A position is a set of K units. A velocity gives each unit a possibility in [0, 1] of being chosen next:

    V <- max(w V, c1 r1 (P - X), c2 r2 (G - X))        S-PSO eqs. 6-9: scaling, set difference, union by maximum

with P the particle's best and G the swarm's best position, r1, r2 ~ U(0, 1) a unit. The next position is built
from the units whose possibility exceeds a random threshold, then from the old position (S-PSO, position updating).
One departure: with probability `turbulence` one random unit is swapped, because a swarm of sets has no other
source of units that no particle holds.
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.swarm.moves import Mask, Real, Swarm, swap


@dataclass(frozen=True)
class ParticleSwarm:
    """S-PSO with the constants of Clerc and Kennedy (2002)."""

    w: float = 0.729  # inertia of the velocity
    c1: float = 1.496  # pull of the particle's own best
    c2: float = 1.496  # pull of the swarm's best
    turbulence: float = 0.4  # probability of one random swap a move
    name: str = "pso"

    def move(self, swarm: Swarm, particle: int, free_D: Mask, rng: np.random.Generator) -> tuple[Mask, Real]:
        """Return the particle's next position and velocity, both of shape (D,)."""
        X_D, own_D, leader_D = swarm.X_PD[particle], swarm.best_X_PD[particle], swarm.leader_D
        r1_D, r2_D = rng.random(X_D.size), rng.random(X_D.size)
        V_D = self.w * swarm.V_PD[particle]
        V_D = np.maximum(V_D, self.c1 * r1_D * (own_D & ~X_D))  # c1 r1 (P - X)
        V_D = np.maximum(V_D, self.c2 * r2_D * (leader_D & ~X_D))  # c2 r2 (G - X)
        V_D = np.minimum(V_D, 1.0) * free_D

        # Position updating: units above the threshold first, then the old position's, ties at random.
        rank_D = np.where(rng.random() < V_D, 2.0, 0.0) + 1.0 * X_D + 0.5 * rng.random(X_D.size)
        rank_D[~free_D] = -1.0
        Y_D = np.zeros_like(X_D)
        Y_D[np.argsort(-rank_D, kind="stable")[: int(X_D.sum())]] = True
        if rng.random() < self.turbulence:
            Y_D = swap(Y_D, free_D, 1, rng)
        return Y_D, V_D
