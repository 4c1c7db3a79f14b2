"""Fewer points of a long series, without losing what a reader looks for.

A page with every candidate of a long study would be large and slow. The CSV file has all.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunesearch.report.figures.figure import Panel, Series

MOST_POINTS = 2000
"""Largest number of points of a series on a page."""
SEED = 0


def kept_points(
    values: Sequence[float], keep: Sequence[int] = (), most: int = MOST_POINTS
) -> list[int]:
    """Return the positions of the points that are kept, in order.

    Kept are the positions in `keep`, the ends, the smallest and the largest value, and a random
    sample of the others.

    Args:
        values: the values of a series.
        keep: positions that must be kept, such as those of improvements.
        most: largest number of points. More are kept only if `keep` names more.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    # 1. What must be kept.
    wanted = {0, count - 1, *keep}
    array = np.asarray(values, dtype=float)
    if np.isfinite(array).any():
        wanted |= {int(np.nanargmin(array)), int(np.nanargmax(array))}
    # 2. A random sample fills the rest. The seed makes two reports of one study equal.
    others = np.setdiff1d(np.arange(count), np.array(sorted(wanted)))
    room = max(0, most - len(wanted))
    sample = np.random.default_rng(SEED).choice(others, min(room, len(others)), replace=False)
    return sorted(wanted | {int(index) for index in sample})


def thinned(series: Series, keep: Sequence[int] = (), most: int = MOST_POINTS) -> Series:
    """Return a series with at most `most` points. Lines and bars are returned as they are.

    Args:
        series: the series.
        keep: positions that must be kept.
        most: largest number of points.
    """
    if series.kind != "points" or len(series.x) <= most:
        return series
    kept = kept_points(series.y, keep, most)
    return replace(
        series,
        x=[series.x[index] for index in kept],
        y=[series.y[index] for index in kept],
        low=None if series.low is None else [series.low[index] for index in kept],
        high=None if series.high is None else [series.high[index] for index in kept],
        labels=None if series.labels is None else [series.labels[index] for index in kept],
        total=len(series.x),
    )


def thinning_note(panels: Sequence[Panel]) -> str:
    """Return the sentence that says which points are left out; empty if none are."""
    total = 0
    shown = 0
    for panel in panels:
        for series in panel.series:
            if series.total is not None:
                total += series.total
                shown += len(series.x)
    if not total:
        return ""
    return (
        f" Of {total:,} points {shown:,} are drawn: improvements, extremes and a random sample; "
        "the CSV file has all."
    )
