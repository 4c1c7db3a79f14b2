"""Scales of axes: when an axis is logarithmic, and the unit of sizes."""

import math
from collections.abc import Iterable

GIB = 2.0**30
"""Bytes of one GiB."""
_WIDE = 10.0  # ratio of the largest to the smallest value above which an axis is logarithmic


def needs_logarithm(values: Iterable[float]) -> bool:
    """Return whether values are positive and span so much that they need a logarithmic axis.

    Values that are not finite are not drawn, and do not count.
    """
    drawn = [value for value in values if math.isfinite(value)]
    return bool(drawn) and min(drawn) > 0 and max(drawn) > _WIDE * min(drawn)
