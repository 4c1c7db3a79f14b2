"""Races: a candidate that is already known to be worse is not scored on the rest of the data.

A candidate runs against a rival that was scored in full, the best trial before its generation. Both are compared item
by item (sequences, or documents of a task), so that what is hard for both cancels, on growing parts of the data
(1, 2, 4, ... chunks). It drops out when a one-sided paired t-test says that it is worse: O. Maron and A. W. Moore,
"Hoeffding races", NIPS 6, 1993, with the t-test of M. Birattari et al., "A racing algorithm for configuring
metaheuristics", GECCO 2002.
"""

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit

CONFIDENCE = 0.95
"""Of the test at each rung: how sure it must be that a candidate is worse."""
MIN_ITEMS = 4
"""Items before anything is decided."""


def rungs(chunks: int) -> list[int]:
    """How many chunks have been scored when candidates are compared; all of them at the end."""
    return [*(2**i for i in range(chunks.bit_length()) if 2**i < chunks), chunks]


def is_worse(losses: Sequence[float], rival: Sequence[float], confidence: float = CONFIDENCE) -> bool:
    """Whether a candidate is worse than its rival, by a one-sided paired t-test.

    Args:
        losses: of each item; less is better.
        rival: of the same items, and perhaps of more.
    """
    differences = [a - b for a, b in zip(losses, rival, strict=False)]
    n = len(differences)
    if n < MIN_ITEMS:
        return False
    error = statistics.stdev(differences) / math.sqrt(n)
    return statistics.fmean(differences) > error * float(stdtrit(n - 1, confidence))
