"""Standard errors of means, and how far an interval reaches to each side of a mean."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Real = NDArray[np.float64]
LEVEL = 0.95
"""Probability of an interval."""
NORMAL_REACH = float(stats.norm.ppf(0.5 + LEVEL / 2))
"""Number of standard errors on each side of a value with a normal distribution: 1.96."""


def half_width(count: int) -> float:
    """Return how many standard errors an interval of a mean of `count` values reaches to a side.

    It is Student's t with count - 1 degrees of freedom; nan for a single value.
    """
    if count < 2:
        return float("nan")
    return float(stats.t.ppf(0.5 + LEVEL / 2, count - 1))


def quantile_of(count: int) -> float:
    """Return `half_width`, or the normal quantile where the number of values is not known.

    Args:
        count: number of values; 0 or 1 if it is not known.
    """
    return half_width(count) if count > 1 else NORMAL_REACH


def standard_error(values: Sequence[float] | Real) -> float:
    """Return the standard error of a mean: s / sqrt(n); nan for fewer than two values."""
    count = len(values)
    if count < 2:
        return float("nan")
    return float(np.std(values, ddof=1)) / sqrt(count)


def reach_of(error: float | None, quantile: float = NORMAL_REACH) -> float:
    """Return how far an interval reaches to each side; nan if the standard error is not known."""
    return float("nan") if error is None else quantile * error


def ends(
    values: Sequence[float] | Real, reaches: Sequence[float] | Real
) -> tuple[list[float], list[float]]:
    """Return the lower and the upper ends of intervals.

    Args:
        values: middle of each interval.
        reaches: distance from the middle to an end of each interval.
    """
    low, high = [], []
    for value, reach in zip(values, reaches, strict=True):
        low.append(float(value - reach))
        high.append(float(value + reach))
    return low, high
