"""Greedy removal: one unit at a time, the one whose removal harms least.

SLEB: J. Song et al., "SLEB: streamlining LLMs through redundancy verification and elimination of
transformer blocks", ICML 2024, algorithm 1. It uses only the losses of subsets, so it can use the
trials of any other search in the study.
"""

from collections.abc import Mapping

import numpy as np

from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.operators import Mask
from prunesearch.algorithms.registry import GREEDY, AlgorithmEntry, TrialsNeeded, register
from prunesearch.space import SearchSpace


def greedy_step(
    constraints: Constraints, loss_of: Mapping[bytes, float]
) -> tuple[Mask, list[Mask]]:
    """Return the subset that the finished rounds have built, and what the next round still needs.

    Args:
        constraints: constraints on the subsets.
        loss_of: losses of the finished subsets, by their bytes; inf for a failed one.

    Returns:
        The subset built so far, and its unfinished extensions by one unit. There are none if it is
        complete.
    """
    base_D = np.zeros_like(constraints.free_D)
    while base_D.sum() < constraints.k_max:
        # All extensions by one unit.
        children = []
        for unit in np.flatnonzero(constraints.free_D & ~base_D):
            child_D = base_D.copy()
            child_D[unit] = True
            children.append(child_D)
        unfinished = [child_D for child_D in children if child_D.tobytes() not in loss_of]
        if unfinished:
            return base_D, unfinished
        # The round is complete: keep the least harmful unit.
        base_D = min(children, key=lambda child_D: loss_of[child_D.tobytes()])
    return base_D, []


def trials_needed(space: SearchSpace, ranking: str) -> TrialsNeeded:
    """Return how many trials the greedy rounds need."""
    # Round j tries each of the remaining units: free, free - 1, ...
    free = len(space.droppable)
    whole = sum(free - dropped for dropped in range(space.k))
    last_round = free - space.k + 1
    # If a single unit may be a result, then the first trial is one.
    first = whole - last_round + 1 if space.k_min > 1 else 1
    return TrialsNeeded(first, whole, "tries one layer after the other")


register(
    AlgorithmEntry(
        "greedy",
        "SLEB: remove the least harmful unit, again and again",
        order=30,
        sampler=GREEDY,
        several_objectives=False,
        takes_ranking=False,
        origins=("subset",),
        no_widths="it removes one step at a time and tries every layer for each, which takes "
        "thousands of trials",
        trials_needed=trials_needed,
        random=False,
    )
)
