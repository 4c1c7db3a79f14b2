"""The best value so far of a search after each evaluation, and its mean over searches.

All values are losses: less is better. Turn the sign of a metric where more is better.

Shapes: N evaluations, S searches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunesearch.analysis.intervals import Real, ends, half_width


def best_places(losses: Sequence[float] | Real) -> NDArray[np.int64]:
    """Return the place of the best evaluation up to each one, shape (N,).

    A loss that is not finite counts as no result. Before the first result the place is -1. Of equal
    losses the first counts.
    """
    place_N = np.full(len(losses), -1, dtype=np.int64)
    best, least = -1, np.inf
    for place, loss in enumerate(losses):
        if np.isfinite(loss) and loss < least:
            best, least = place, loss
        place_N[place] = best
    return place_N


def best_so_far(losses: Sequence[float] | Real) -> Real:
    """Return the least loss up to each evaluation, shape (N,).

    A loss that is not finite counts as no result. Before the first result the value is infinite.
    """
    # Place -1 is that of the infinite loss at the end.
    losses_N = np.append(np.asarray(losses, dtype=float), np.inf)
    return np.asarray(losses_N[best_places(losses)])


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
    # Cut all curves to the evaluations that every search has.
    values_SN = np.array([np.asarray(curve, dtype=float)[:shortest] for curve in curves])
    mean_N = values_SN.mean(axis=0)
    count = len(curves)
    error_N = np.full(shortest, np.nan)
    if count > 1:
        # A search without a result so far has an infinite loss, and the mean has no error then.
        with np.errstate(invalid="ignore"):
            error_N = values_SN.std(axis=0, ddof=1) / np.sqrt(count)
    low, high = ends(mean_N, half_width(count) * error_N)
    return MeanCurve(
        tuple(range(1, shortest + 1)),
        tuple(mean_N.tolist()),
        tuple(error_N.tolist()),
        tuple(low),
        tuple(high),
        count,
    )
