"""Searches that build a subset instead of moving one: greedy removal, and the order of a ranking.

Both look only at which subsets have which loss, so what another search left in the study is used.
"""

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

from prunesearch.swarm.moves import Mask, Real, Units


def greedy_step(units: Units, loss_of: Mapping[bytes, float]) -> tuple[Mask, list[Mask]]:
    """SLEB: J. Song et al., "SLEB: streamlining LLMs through redundancy verification and elimination of transformer
    blocks", ICML 2024, algorithm 1: one unit at a time, the one whose removal harms least.

    Args:
        loss_of: losses of the subsets that are finished, by their bytes; a failed one's is inf.

    Returns:
        The subset that was built so far, and its one-unit extensions that are not finished; none when it is complete.
    """
    base_D = np.zeros_like(units.free_D)
    while base_D.sum() < units.k_max:
        children = []
        for unit in np.flatnonzero(units.free_D & ~base_D):
            child_D = base_D.copy()
            child_D[unit] = True
            children.append(child_D)
        unfinished = [child_D for child_D in children if child_D.tobytes() not in loss_of]
        if unfinished:
            return base_D, unfinished
        base_D = min(children, key=lambda child_D: loss_of[child_D.tobytes()])
    return base_D, []


def by_total(harm_D: Real, units: Units, size: int) -> Iterator[Mask]:
    """All subsets of a size in order of their total harm: a best-first walk from the cheapest units.

    E. L. Lawler, "A procedure for computing the K best solutions to discrete optimization problems", Manag. Sci. 18,
    1972: a successor moves one chosen unit to the next place of the ranking.
    """
    free = np.flatnonzero(units.free_D)
    ranked = free[np.argsort(harm_D[free], kind="stable")]
    cost = harm_D[ranked]
    start = tuple(range(size))
    heap, known = [(float(cost[list(start)].sum()), start)], {start}
    while heap:
        _, places = heapq.heappop(heap)
        X_D = np.zeros_like(units.free_D)
        X_D[ranked[list(places)]] = True
        yield X_D
        for index, place in enumerate(places):
            if place + 1 < len(ranked) and place + 1 not in places:
                moved = (*places[:index], place + 1, *places[index + 1 :])
                if moved not in known:
                    known.add(moved)
                    heapq.heappush(heap, (float(cost[list(moved)].sum()), moved))
