"""The member of a Pareto front that is taken where one candidate is asked for."""

from collections.abc import Sequence


def knee(front: Sequence[Sequence[float]], start: Sequence[float]) -> int:
    """Return the position of the member of a front that is farthest from the line between a start
    and the last member.

    Both values are scaled by the distance of these two ends, so the knee saves most of the second
    value for what it loses of the first.
    I. Das, "On characterizing the 'knee' of the Pareto curve", Struct. Optim. 18, 1999.

    Args:
        front: two losses of each member, less is better. The first loss rises along the front.
        start: the losses of the dense model, or of the first member.
    """
    spans = [abs(a - b) or 1.0 for a, b in zip(start, front[-1], strict=True)]

    def gain(position: int) -> float:
        quality, cost = front[position]
        lost = (quality - start[0]) / spans[0]
        saved = (start[1] - cost) / spans[1]
        return saved - lost

    return max(range(len(front)), key=gain)
