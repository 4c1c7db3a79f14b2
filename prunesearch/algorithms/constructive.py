"""Searches that build a subset step by step: greedy removal, and subsets in the order of a ranking.

Both use only the losses of subsets, so they can use the trials of any other search in the study.
"""

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

from prunesearch.algorithms.operators import Mask, Real, SubsetConstraints


def greedy_step(
    units: SubsetConstraints, loss_of: Mapping[bytes, float]
) -> tuple[Mask, list[Mask]]:
    """SLEB: J. Song et al., "SLEB: streamlining LLMs through redundancy verification and
    elimination of transformer blocks", ICML 2024, algorithm 1: one unit at a time, the one whose
    removal harms least.

    Args:
        units: constraints on the subsets.
        loss_of: losses of the finished subsets, by their bytes; inf for a failed one.

    Returns:
        The subset built so far, and its unfinished extensions by one unit. There are none if it is
        complete.
    """
    base_D = np.zeros_like(units.free_D)
    while base_D.sum() < units.k_max:
        # All extensions by one unit.
        children = []
        for unit in np.flatnonzero(units.free_D & ~base_D):
            child_D = base_D.copy()
            child_D[unit] = True
            children.append(child_D)
        unfinished = [child_D for child_D in children if child_D.tobytes() not in loss_of]
        if unfinished:
            return base_D, unfinished
        # The round is complete: keep the least harmful unit.
        base_D = min(children, key=lambda child_D: loss_of[child_D.tobytes()])
    return base_D, []


def by_total(harm_D: Real, units: SubsetConstraints, size: int) -> Iterator[Mask]:
    """Yield all subsets of a size in order of their total harm, by a best-first walk from the
    cheapest units.

    E. L. Lawler, "A procedure for computing the K best solutions to discrete optimization
    problems", Manag. Sci. 18,
    1972: a successor moves one chosen unit to the next place of the ranking.
    """
    free = np.flatnonzero(units.free_D)
    ranked = free[np.argsort(harm_D[free], kind="stable")]
    cost = harm_D[ranked]
    start = tuple(range(size))
    heap, known = [(float(cost[list(start)].sum()), start)], {start}
    while heap:
        # Yield the cheapest subset that is left.
        _, location = heapq.heappop(heap)
        X_D = np.zeros_like(units.free_D)
        X_D[ranked[list(location)]] = True
        yield X_D
        # Add its successors.
        for index, place in enumerate(location):
            if place + 1 < len(ranked) and place + 1 not in location:
                moved = (*location[:index], place + 1, *location[index + 1 :])
                if moved not in known:
                    known.add(moved)
                    heapq.heappush(heap, (float(cost[list(moved)].sum()), moved))
