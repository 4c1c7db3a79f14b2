"""The best value so far of a search, by evaluations and by seconds, and means over searches.

All values are losses: less is better. Turn the sign of a metric where more is better.

Shapes: N evaluations, S searches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Real = NDArray[np.float64]
LEVEL = 0.95
"""Probability of an interval."""


def best_so_far(losses: Sequence[float] | Real) -> Real:
    """Return the least loss up to each evaluation, shape (N,).

    A loss that is not finite counts as no result. Before the first result the value is infinite.
    """
    losses_N = np.asarray(losses, dtype=float)
    return np.minimum.accumulate(np.where(np.isfinite(losses_N), losses_N, np.inf))


@dataclass(frozen=True)
class Step:
    """An evaluation that was better than all before it.

    Attributes:
        evaluation: its place, counted from 1.
        seconds: time since the start of the search.
        loss: its loss.
    """

    evaluation: int
    seconds: float
    loss: float


def improvements(losses: Sequence[float] | Real, seconds: Sequence[float] | Real) -> list[Step]:
    """Return the evaluations that improved on all before them, in order.

    Args:
        losses: losses in the order of the evaluations.
        seconds: time from the start of the search to the end of each evaluation.
    """
    found: list[Step] = []
    for place, (loss, time) in enumerate(zip(losses, seconds, strict=True), start=1):
        if np.isfinite(loss) and (not found or loss < found[-1].loss):
            found.append(Step(place, float(time), float(loss)))
    return found


def best_at_times(
    losses: Sequence[float] | Real, seconds: Sequence[float] | Real, times: Sequence[float] | Real
) -> Real:
    """Return the least loss that was known at each of some times; infinite before the first.

    Args:
        losses: losses of the evaluations.
        seconds: time from the start of the search to the end of each evaluation, in any order.
        times: times since the start of the search.
    """
    ends_N = np.asarray(seconds, dtype=float)
    order = np.argsort(ends_N, kind="stable")
    best_N = best_so_far(np.asarray(losses, dtype=float)[order])
    ended = np.searchsorted(ends_N[order], np.asarray(times, dtype=float), side="right")
    return np.where(ended > 0, best_N[np.maximum(ended, 1) - 1], np.inf)


@dataclass(frozen=True)
class MeanCurve:
    """The mean of several searches after each evaluation.

    Attributes:
        evaluations: number of evaluations, from 1.
        mean: mean of the searches.
        stderr: standard error of the mean; nan with one search.
        low, high: interval of the mean; nan with one search.
        searches: number of searches.
    """

    evaluations: tuple[int, ...]
    mean: tuple[float, ...]
    stderr: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    searches: int


def mean_curve(curves: Sequence[Sequence[float] | Real]) -> MeanCurve:
    """Return the mean and its error of the best losses so far of several searches.

    The curve ends where the shortest search ends, so that every point is a mean of the same
    searches. The interval is Student's: mean +- t(S - 1) * s / sqrt(S).

    Args:
        curves: for each search what `best_so_far` returned; at least one.
    """
    shortest = min(len(curve) for curve in curves)
    values_SN = np.array([np.asarray(curve, dtype=float)[:shortest] for curve in curves])
    mean_N = values_SN.mean(axis=0)
    count = len(curves)
    error_N = np.full(shortest, np.nan)
    if count > 1:
        # A search without a result so far has an infinite loss, and the mean has no error then.
        with np.errstate(invalid="ignore"):
            error_N = values_SN.std(axis=0, ddof=1) / np.sqrt(count)
    reach_N = half_width(count) * error_N
    return MeanCurve(
        tuple(range(1, shortest + 1)),
        tuple(mean_N.tolist()),
        tuple(error_N.tolist()),
        tuple((mean_N - reach_N).tolist()),
        tuple((mean_N + reach_N).tolist()),
        count,
    )


def half_width(count: int) -> float:
    """Return how many standard errors an interval of a mean of `count` values reaches to a side.

    It is Student's t with count - 1 degrees of freedom; nan for a single value.
    """
    if count < 2:
        return float("nan")
    return float(stats.t.ppf(0.5 + LEVEL / 2, count - 1))
