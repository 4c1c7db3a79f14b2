"""Subsets in the order of a ranking: the cheapest units first.

It uses only the losses of subsets, so it can use the trials of any other search in the study.
"""

import heapq
from collections.abc import Iterator

import numpy as np

from prunesearch.algorithms.operators import Mask, Real, SubsetConstraints
from prunesearch.algorithms.registry import ONE_SHOT, SINGLE, AlgorithmEntry, register


def by_total(harm_D: Real, constraints: SubsetConstraints, size: int) -> Iterator[Mask]:
    """Yield all subsets of a size in order of their total harm, by a best-first walk from the
    cheapest units.

    E. L. Lawler, "A procedure for computing the K best solutions to discrete optimization
    problems", Manag. Sci. 18,
    1972: a successor moves one chosen unit to the next place of the ranking.
    """
    free = np.flatnonzero(constraints.free_D)
    ranked = free[np.argsort(harm_D[free], kind="stable")]
    cost = harm_D[ranked]
    start = tuple(range(size))
    heap, known = [(float(cost[list(start)].sum()), start)], {start}
    while heap:
        # Yield the cheapest subset that is left.
        _, location = heapq.heappop(heap)
        X_D = np.zeros_like(constraints.free_D)
        X_D[ranked[list(location)]] = True
        yield X_D
        # Add its successors.
        for index, place in enumerate(location):
            if place + 1 < len(ranked) and place + 1 not in location:
                moved = (*location[:index], place + 1, *location[index + 1 :])
                if moved not in known:
                    known.add(moved)
                    heapq.heappush(heap, (float(cost[list(moved)].sum()), moved))


register(
    AlgorithmEntry(
        "one-shot",
        "the cheapest units of a ranking, then the next cheapest subsets",
        order=31,
        sampler=ONE_SHOT,
        several_objectives=False,
        ranking=SINGLE,
        needs_ranking=True,
        random=False,
    )
)
