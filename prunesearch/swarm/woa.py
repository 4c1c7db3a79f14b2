"""Whale optimization as moves on subsets of fixed size.

S. Mirjalili and A. Lewis, "The whale optimization algorithm", Adv. Eng. Softw. 95, 2016,
doi 10.1016/j.advengsoft.2016.01.008. Equation numbers are the paper's; what a difference of vectors is there
is a difference of sets here:

    A = 2 a r - a                       eq. 2.3, a falls from 2 to 0
    |A| < 1:  X <- toward(G)            eq. 2.2, encircling: take over a share 1 - |A| of what the leader G has
    |A| >= 1: X <- toward(X_rand)       eq. 2.8, exploring: the same toward a random other whale
    spiral:   X <- G with j swaps       eq. 2.5, around the leader at a distance j that shrinks with a

each branch of the last two lines with probability 1/2 (eq. 2.6). `a` restarts every `cycle` generations, so that a
study can be prolonged without knowing its length beforehand.
"""

import math
from dataclasses import dataclass

import numpy as np

from prunesearch.swarm.moves import Mask, Real, Swarm, swap, toward


@dataclass(frozen=True)
class Whales:
    """WOA with set moves."""

    cycle: int = 10  # generations in which a falls from 2 to 0
    name: str = "woa"

    def move(self, swarm: Swarm, particle: int, free_D: Mask, rng: np.random.Generator) -> tuple[Mask, Real]:
        """Return the whale's next position, shape (D,), and a velocity of zeros."""
        X_D, leader_D = swarm.X_PD[particle], swarm.leader_D
        a = 2.0 * (1.0 - ((swarm.generation - 1) % self.cycle) / self.cycle)
        A = 2.0 * a * rng.random() - a  # eq. 2.3
        if rng.random() < 0.5:  # eq. 2.6
            if abs(A) < 1.0:
                Y_D = toward(X_D, leader_D, 1.0 - abs(A), rng)  # eq. 2.2
            else:
                others = [i for i in range(len(swarm.X_PD)) if i != particle]
                Y_D = toward(X_D, swarm.X_PD[rng.choice(others)], rng.random(), rng)  # eq. 2.8
        else:
            reach = max(1.0, a / 2.0 * math.sqrt(X_D.sum()))
            Y_D = swap(leader_D, free_D, int(rng.integers(1, math.ceil(reach) + 1)), rng)  # eq. 2.5
        return Y_D, np.zeros(X_D.size)
