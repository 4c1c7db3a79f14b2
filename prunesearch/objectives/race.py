"""Races: a candidate that is known to be worse is not scored on the rest of the data.

A candidate races against a baseline that was scored in full: the best trial before its generation.
The two are compared on growing parts of the data (1, 2, 4, ... chunks). They are compared item by
item (sequences, or documents of a task), so that the difficulty of an item cancels. The candidate
drops out when a one-sided paired t-test says that it is worse.

O. Maron and A. W. Moore, "Hoeffding races", NIPS 6, 1993, with the t-test of M. Birattari et al.,
"A racing algorithm for configuring metaheuristics", GECCO 2002.
"""

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit

CONFIDENCE = 0.95
"""Confidence of the test at each rung, at which a candidate counts as worse."""
MIN_ITEMS = 4
"""Smallest number of items on which a candidate can drop out."""


def rungs(chunks: int) -> list[int]:
    """Return the numbers of scored chunks at which candidates are compared: 1, 2, 4, ..., all."""
    steps = []
    step = 1
    while step < chunks:
        steps.append(step)
        step *= 2
    return [*steps, chunks]


def is_worse(
    losses: Sequence[float], baseline: Sequence[float], confidence: float = CONFIDENCE
) -> bool:
    """Return True if a candidate is worse than its baseline, by a one-sided paired t-test.

    Args:
        losses: the candidate's loss on each item. A smaller loss is better.
        baseline: the baseline's loss on the same items, and possibly on more.
        confidence: confidence of the test.
    """
    differences = [a - b for a, b in zip(losses, baseline, strict=False)]
    n = len(differences)
    if n < MIN_ITEMS:
        return False
    error = statistics.stdev(differences) / math.sqrt(n)
    return statistics.fmean(differences) > error * float(stdtrit(n - 1, confidence))
