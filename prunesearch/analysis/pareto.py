"""The front of several losses, and its hypervolume.

All values are losses: less is better. Shapes: N points, D losses.
"""

import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]


def front_mask(losses: Sequence[Sequence[float]] | Real) -> NDArray[np.bool_]:
    """Return which points no other point dominates, shape (N,).

    A point dominates another if it is at least as good in every loss and better in one. Of equal
    points all are on the front. A point that is not finite is not.
    """
    losses_ND = np.asarray(losses, dtype=float)
    on_front = np.zeros(len(losses_ND), dtype=bool)
    if not len(losses_ND):
        return on_front
    finite = np.isfinite(losses_ND).all(axis=1)
    # In the order of the first loss, then the others, only an earlier point can dominate.
    order = np.lexsort(losses_ND.T[::-1])
    kept: list[Real] = []
    for place in order:
        if not finite[place]:
            continue
        point = losses_ND[place]
        if kept:
            members = np.array(kept)
            at_least = (members <= point).all(axis=1) & (members < point).any(axis=1)
            if at_least.any():
                continue
        kept.append(point)
        on_front[place] = True
    return on_front


def reference_point(losses: Sequence[Sequence[float]] | Real, margin: float = 0.1) -> Real:
    """Return a reference point for the hypervolume: the worst of each loss and a margin.

    Args:
        losses: points; at least one is finite.
        margin: added distance, as a share of the range of each loss.
    """
    losses_ND = np.asarray(losses, dtype=float)
    finite = losses_ND[np.isfinite(losses_ND).all(axis=1)]
    # A loss without range gets a margin of its own size.
    worst, least = finite.max(axis=0), finite.min(axis=0)
    span = np.where(worst > least, worst - least, np.maximum(np.abs(worst), 1.0))
    return np.asarray(worst + margin * span)


def hypervolume(
    losses: Sequence[Sequence[float]] | Real, reference: Sequence[float] | Real
) -> float:
    """Return the volume that points dominate, up to a reference point.

    E. Zitzler and L. Thiele, "Multiobjective optimization using evolutionary algorithms - a
    comparative case study", PPSN V, 1998. It is computed by slices along the last loss: L. While et
    al., "A faster algorithm for calculating hypervolume", IEEE Trans. Evol. Comput. 10, 2006. Fast
    for two losses, and for fronts of some hundred points with more.

    Args:
        losses: points. Those that are not better than the reference in every loss add nothing.
        reference: a point that is worse than all that count.
    """
    losses_ND = np.asarray(losses, dtype=float).reshape(-1, len(reference))
    reference_D = np.asarray(reference, dtype=float)
    # Only points inside the box of the reference add volume.
    inside = losses_ND[(losses_ND < reference_D).all(axis=1)]
    if not len(inside):
        return 0.0
    return _volume(inside[front_mask(inside)], reference_D)


def _volume(front: Real, reference_D: Real) -> float:
    if front.shape[1] == 1:
        return float(reference_D[0] - front.min())
    # Sweep along the last loss. Each slice is dominated by the points up to it.
    order = np.argsort(front[:, -1], kind="stable")
    sorted_front = front[order]
    ends = np.append(sorted_front[1:, -1], reference_D[-1])
    total = 0.0
    if front.shape[1] == 2:
        best = np.minimum.accumulate(sorted_front[:, 0])
        return float(np.sum((ends - sorted_front[:, -1]) * (reference_D[0] - best)))
    for count, (start, end) in enumerate(zip(sorted_front[:, -1], ends, strict=True), start=1):
        if end > start:
            part = sorted_front[:count, :-1]
            total += float(end - start) * _volume(part[front_mask(part)], reference_D[:-1])
    return total


def hypervolume_history(
    losses: Sequence[Sequence[float]] | Real, reference: Sequence[float] | Real
) -> Real:
    """Return the hypervolume after each point, shape (N,).

    With two losses, each point changes a sorted front, so 10,000 points take well below a second.

    Args:
        losses: points in the order in which they were found.
        reference: see `hypervolume`.
    """
    losses_ND = np.asarray(losses, dtype=float).reshape(-1, len(reference))
    if len(reference) == 2:
        return _history_of_two(losses_ND, float(reference[0]), float(reference[1]))
    history_N = np.zeros(len(losses_ND))
    front = losses_ND[:0]
    volume = 0.0
    for place, point in enumerate(losses_ND):
        # A point that the front dominates changes nothing.
        worse = len(front) and (front <= point).all(axis=1).any()
        if np.isfinite(point).all() and not worse:
            front = np.vstack([front[~(point <= front).all(axis=1)], point])
            volume = hypervolume(front, reference)
        history_N[place] = volume
    return history_N


def _history_of_two(losses_ND: Real, limit_x: float, limit_y: float) -> Real:
    """Return the history of two losses. The front is sorted: x rises and y falls along it."""
    xs: list[float] = []
    ys: list[float] = []
    history_N = np.zeros(len(losses_ND))
    volume = 0.0
    for place, (x, y) in enumerate(losses_ND.tolist()):
        if np.isfinite(x) and np.isfinite(y) and x < limit_x and y < limit_y:
            # 1. The point to the left dominates this one if it is not above it.
            first = bisect.bisect_right(xs, x)
            if first and ys[first - 1] <= y:
                history_N[place] = volume
                continue
            # 2. Points with at least this x and y are dominated by this one and leave.
            first = bisect.bisect_left(xs, x)
            last = first
            while last < len(xs) and ys[last] >= y:
                last += 1
            # 3. What this point adds, step by step down from the point to the left.
            top = ys[first - 1] if first else limit_y
            left = x
            for step in range(first, last):
                volume += (xs[step] - left) * (top - y)
                left, top = xs[step], ys[step]
            right = xs[last] if last < len(xs) else limit_x
            volume += (right - left) * (top - y)
            xs[first:last], ys[first:last] = [x], [y]
        history_N[place] = volume
    return history_N
