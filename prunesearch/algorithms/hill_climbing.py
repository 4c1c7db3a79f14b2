"""Hill climbing over swaps, restarted by kicks.

The iterated local search of H. R. Lourenço, O. C. Martin and T. Stützle, "Iterated Local Search",
Handbook of Metaheuristics, 2003, with first improvement: a climb goes on from its best subset. When
all subsets that one swap makes of it were tried, or twice as many trials as there are units have
not improved on it, the next climb starts a few swaps away from the best subset of all, or anywhere.
"""

from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.base import Moves
from prunesearch.algorithms.history import Swarm
from prunesearch.algorithms.operators import Mask, Real
from prunesearch.algorithms.registry import AlgorithmEntry, register

_LOOKS = (64, 8192)  # neighbours that are looked at: a few, then all of up to 180 units


@dataclass(frozen=True)
class HillClimbing:
    """Hill climbing over swaps. Its population only sets how many neighbours are tried at once."""

    restart: float = 0.3  # chance that a climb starts anywhere
    least: int = 2  # fewest swaps of a kick
    most: int = 5  # most swaps of a kick
    patience: int = 2  # trials without improvement that end a climb, per unit
    name: str = "hill-climbing"

    def move(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Moves:
        """Return `count` new neighbours of the climb's best subset, or the start of a climb.

        The memory ``climb`` is the generation in which the proposal's climb began.
        """
        climb = 0
        for memory in swarm.memory_P:
            climb = max(climb, int(memory.get("climb", np.zeros(1))[0]))
        # 1. The best subset since the climb began.
        top = self._top(swarm, climb)
        top_D = swarm.view.X_ND[top]
        # 2. New neighbours of it, as long as there is hope.
        idle = len(swarm.view.kind_N) - 1 - top
        found_MD = _untried(swarm, top_D, count, rng)
        if len(found_MD) and idle <= self.patience * top_D.size:
            rows = np.arange(count) % len(found_MD)
            same: Real = np.full((count, 1), float(climb))
            return Moves(found_MD[rows], {"climb": same})
        # 3. There are none: the next climb starts elsewhere.
        started: Real = np.full((count, 1), float(swarm.generation))
        return Moves(self._starts(swarm, particle, count, rng), {"climb": started})

    def _top(self, swarm: Swarm, climb: int) -> int:
        """Return the number of the climb's best trial; that of the best of all if it has none."""
        complete_N = swarm.view.complete
        own_N = complete_N[complete_N >= climb * len(swarm.number_P)]
        if not own_N.size:
            return int(swarm.leader_P[0])
        return int(own_N[np.argmin(swarm.view.loss_NO[own_N, 0])])

    def _starts(self, swarm: Swarm, particle: int, count: int, rng: np.random.Generator) -> Mask:
        """Return subsets a few swaps away from the best of all, or random ones."""
        constraints = swarm.constraints
        best_MD = np.broadcast_to(swarm.leader(particle), (count, constraints.free_D.size))
        swaps_M = rng.integers(self.least, self.most + 1, count)
        kicked_MD = constraints.drift(constraints.swap(best_MD, swaps_M, rng), rng)
        sizes_M = rng.integers(constraints.k_min, constraints.k_max + 1, size=count)
        anywhere_MD = constraints.random_subsets(sizes_M, rng)
        far_M = rng.random(count) < self.restart
        return np.where(far_M[:, None], anywhere_MD, kicked_MD)


def _untried(swarm: Swarm, X_D: Mask, count: int, rng: np.random.Generator) -> Mask:
    """Return up to `count` neighbours of a subset that no trial has tried, in random order."""
    tried = {tried_D.tobytes() for tried_D in swarm.view.X_ND}
    # A few neighbours are enough, unless most of them were tried.
    for many in _LOOKS:
        found: list[Mask] = []
        for Y_D in swarm.constraints.neighbours(X_D, many, rng):
            if Y_D.tobytes() not in tried and len(found) < count:
                found.append(Y_D)
        if found:
            return np.array(found)
    return np.zeros((0, X_D.size), dtype=np.bool_)


register(
    AlgorithmEntry(
        "hill-climbing",
        "hill climbing over swaps, restarted by kicks",
        order=19,
        algorithm=HillClimbing,
        population=2,
        origins=("elite",),
        several_objectives=False,  # a climb compares single losses
    )
)
