"""Grey wolf optimization as moves on subsets.

S. Mirjalili, S. M. Mirjalili and A. Lewis, "Grey wolf optimizer", Adv. Eng. Softw. 69, 2014,
doi 10.1016/j.advengsoft.2013.12.007. Equation numbers are the paper's. The three best subsets
alpha, beta and delta lead the pack. A subset is written as the vector of its membership, 1 for a
chosen unit and 0 for another:

    A = 2 a r1 - a,  C = 2 r2           eqs. 3.3 and 3.4, r1, r2 ~ U(0, 1) a unit and a leader
    D_l = |C_l L_l - X|                 eq. 3.5, for each leader l
    X_l = L_l - A_l D_l                 eq. 3.6
    X  <- (X_1 + X_2 + X_3) / 3         eq. 3.7

The paper's next position is this mean. Here the K units with the largest means are chosen, ties at
random; where the size may vary, K is drawn from the sizes of X and the leaders. So a unit that all
leaders have is almost sure, a unit of one leader competes with those of the others, and a unit that
only X has stays where A is negative. Units that nobody has come in where all others have negative
means. Where the size may vary, the last step changes it by one for some proposals, up or down, so
that also sizes are tried that nobody has. As in `woa`, a restarts every `cycle` generations, so
that a study can be prolonged.

Shapes: M proposals, L leaders, D units, E elites (see `operators`).
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import Mask, falling, top
from prunesearch.algorithms.registry import SWARM_POPULATION, AlgorithmEntry, register

LEADERS = 3  # alpha, beta and delta


@dataclass(frozen=True)
class GreyWolf:
    """GWO with set moves."""

    cycle: int = 10  # generations in which a falls from 2 to 0
    name: str = "gwo"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` proposals."""
        constraints, X_D = swarm.constraints, swarm.X_PD[particle]
        leaders_LD = leaders(swarm, particle, rng)
        shape = (count, *leaders_LD.shape)
        # Each proposal draws its own A and C, for each leader and unit.
        a = falling(swarm.generation, self.cycle)
        A_MLD = 2.0 * a * rng.random(shape) - a  # eq. 3.3
        C_MLD = 2.0 * rng.random(shape)  # eq. 3.4
        # Move toward, or away from, each leader, and take the mean.
        distance_MLD = np.abs(C_MLD * leaders_LD - X_D)  # eq. 3.5
        X_MLD = leaders_LD - A_MLD * distance_MLD  # eq. 3.6
        mean_MD = X_MLD.mean(axis=1)  # eq. 3.7
        # Choose the units with the largest means. Units that nobody has tie at 0.
        rank_MD = mean_MD + 1e-9 * rng.random(mean_MD.shape)
        rank_MD[:, ~constraints.free_D] = -np.inf
        sizes = np.array([X_D.sum(), *leaders_LD.sum(axis=1)])
        size_M = np.clip(rng.choice(sizes, size=count), constraints.k_min, constraints.k_max)
        X_MD = top(rank_MD, size_M)
        # Where the size may vary, change it by one in some rows, to try sizes that nobody has.
        return Moves(constraints.drift(X_MD, rng))


def leaders(swarm: Swarm, particle: int, rng: np.random.Generator) -> Mask:
    """Return alpha, beta and delta, shape (3, D).

    With one objective these are the study's best distinct subsets. While there are fewer than
    three, the last one is repeated. With several objectives, alpha is the particle's leader, and
    the others are random members of the archive, which may be equal.
    """
    places = np.minimum(np.arange(LEADERS), len(swarm.elite_ED) - 1)
    if swarm.view.history.objectives > 1:
        places = rng.integers(len(swarm.elite_ED), size=LEADERS)
    leaders_LD = swarm.elite_ED[places]
    leaders_LD[0] = swarm.leader(particle)
    return np.asarray(leaders_LD)


register(
    AlgorithmEntry(
        "gwo",
        "grey wolf optimization",
        order=12,
        algorithm=GreyWolf,
        surrogate=True,
        asynchronous=True,
        population=SWARM_POPULATION,
        ranking="influence",
        origins=("particle", "leader", "elite"),
    )
)
