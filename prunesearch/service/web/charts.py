"""Geometry of the charts on the web pages.

A template draws a chart as SVG from the numbers here. Horizontal positions are percentages of the
width, vertical positions are pixels. So a chart fits any screen, its text keeps its size, and no
script is needed. Python computes all positions, because a template should only print them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prunesearch.service.study_points import TrialPoint
from prunesearch.units import plural

TOP, HEIGHT = 12.0, 196.0
"""Pixels between the upper edge of the chart and its largest value; pixels of the vertical axis."""
_MOST_DOTS = 500  # more dots cannot be told apart
_CLIPPED_SHARE = 0.9  # share of the values that the vertical axis shows at least


@dataclass(frozen=True)
class Tick:
    """A label of an axis.

    Attributes:
        position: pixels from above on a vertical axis, percent from the left on a horizontal one.
        label: text of the label.
    """

    position: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A trial in a chart.

    Attributes:
        x: position in percent from the left.
        y: position in pixels from above.
        kind: ``best``, ``other``, or ``above`` for a value above the upper edge.
        title: description of the trial.
    """

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Segment:
    """A straight line of a chart, with the units of `Dot`."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        summary: what the chart shows, as a sentence.
        dots: the trials.
        line: segments of the line of the best trials.
        y_ticks, x_ticks: labels of the axes.
        x_label, y_label: names of the axes.
        clipped: number of trials above the upper edge.
    """

    summary: str
    dots: tuple[Dot, ...]
    line: tuple[Segment, ...]
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    x_label: str
    y_label: str
    clipped: int = 0


@dataclass(frozen=True)
class _Axis:
    """A scale from values to positions."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float]) -> "_Axis":
        """Return a scale that shows all values, with a margin."""
        # Equal values get a margin too, or all positions would divide by zero.
        known = list(values)
        low, high = min(known), max(known)
        margin = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-9)
        return cls(low - margin, high + margin)

    def share(self, value: float) -> float:
        """Return where a value is: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def x(self, value: float) -> float:
        """Return the position of a value on the horizontal axis."""
        return round(100 * self.share(value), 3)

    def y(self, value: float) -> float:
        """Return the position of a value on the vertical axis."""
        return round(TOP + HEIGHT * (1 - self.share(value)), 2)


_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(value: float) -> str:
    """Return bytes as people write them: ``1.5 GiB``."""
    amount, unit = float(value), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:,.0f} {_UNITS[unit]}" if unit == 0 else f"{amount:,.1f} {_UNITS[unit]}"


def short(value: float) -> str:
    """Return a number with four significant digits."""
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) >= 1e12 or abs(value) < 1e-3):
        return f"{value:.3g}"
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    # Zeros at the end stay, so that numbers in a column have the same length.
    return f"{value:#,.4g}".rstrip(".") if value else "0"


def improvements(points: Iterable[TrialPoint], *, larger: bool = False) -> list[TrialPoint]:
    """Return the trials that were better than all trials before them.

    Args:
        points: trials, in the order of their numbers.
        larger: whether larger values are better.
    """
    found: list[TrialPoint] = []
    for point in points:
        if not math.isfinite(point.value):
            continue
        if found and (point.value == found[-1].value or (point.value > found[-1].value) != larger):
            continue
        found.append(point)
    return found


def curve(
    points: Sequence[TrialPoint],
    metric: str,
    total: int = 0,
    *,
    larger: bool = False,
    recommended: int | None = None,
) -> Chart | None:
    """Return the chart of the best value so far against the number of the trial.

    Args:
        points: finished trials, in the order of their numbers.
        metric: name of the value.
        total: number of trials that the study shall have. The horizontal axis leaves room for
            them, but at most for as many as are finished.
        larger: whether larger values are better.
        recommended: number of the trial that is best by another rule than its value.

    Returns:
        The chart. None if no trial has a finite value.
    """
    known = [point for point in points if math.isfinite(point.value)]
    if not known:
        return None
    best = improvements(known, larger=larger)
    # 1. The vertical axis shows the best trials, and most of the others. A few bad trials would
    # otherwise press the rest together.
    ordered = sorted(point.value for point in known)
    limit = ordered[-1]
    if not larger:
        limit = max(best[0].value, ordered[int(_CLIPPED_SHARE * (len(ordered) - 1))])
    y_axis = _Axis.around([best[-1].value, best[0].value, limit, ordered[0]])
    last = max(known[-1].number, min(total - 1, 2 * known[-1].number), 1)
    x_axis = _Axis(-0.01 * last, 1.01 * last)
    # 2. One dot for each trial. If there are too many, every n-th is drawn, and each best one.
    step = max(1, math.ceil(len(known) / _MOST_DOTS))
    improving = {point.number for point in best}
    dots = []
    for index, point in enumerate(known):
        if index % step == 0 or point.number in improving:
            dots.append(_dot(point, point.number in improving, x_axis, y_axis))
    # 3. The line of the best value goes down at each improvement, and on to the last trial.
    line = []
    for index, point in enumerate(best):
        x, y = x_axis.x(point.number), y_axis.y(point.value)
        if index:
            line.append(Segment(x, y_axis.y(best[index - 1].value), x, y))
        until = best[index + 1].number if index + 1 < len(best) else known[-1].number
        line.append(Segment(x, y, x_axis.x(until), y))
    clipped = sum(point.value > y_axis.high for point in known)
    summary = (
        f"Best {metric} so far, against the number of the trial. After "
        f"{plural(len(known), 'finished trial')} the best is {short(best[-1].value)}, found by "
        f"trial {best[-1].number}; the first trial had {short(known[0].value)}."
    )
    if recommended is not None and recommended != best[-1].number:
        summary += f" The value may be luck: trial {recommended} is recommended."
    return Chart(
        summary,
        tuple(dots),
        tuple(line),
        _y_ticks(y_axis),
        tuple(Tick(x_axis.x(n), f"{n:,}") for n in sorted({0, last // 2, last})),
        "trial",
        metric,
        clipped,
    )


def _dot(point: TrialPoint, is_best: bool, x_axis: _Axis, y_axis: _Axis) -> Dot:
    kind = "best" if is_best else "other"
    # A trial above the edge is a mark at the edge.
    y = y_axis.y(point.value)
    if point.value > y_axis.high:
        kind, y = "above", TOP
    title = f"trial {point.number}: {short(point.value)}, drops {point.dropped}"
    return Dot(x_axis.x(point.number), y, kind, title)


def _y_ticks(axis: _Axis) -> tuple[Tick, ...]:
    """Return round values along an axis."""
    # Steps of 1, 2 or 5 times a power of ten give about four labels.
    rough = (axis.high - axis.low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    # As many digits as tell neighbours apart.
    digits = max(0, -math.floor(math.log10(step)))
    ticks = []
    value = math.ceil(axis.low / step) * step
    while value <= axis.high:
        label = f"{value:,.{digits}f}" if digits <= 6 else f"{value:.3g}"
        ticks.append(Tick(axis.y(value), label))
        value += step
    return tuple(ticks)


def front_chart(
    points: Sequence[TrialPoint], front: Sequence[TrialPoint], metric: str, second: str
) -> Chart | None:
    """Return the chart of a Pareto study: quality against size or latency.

    Args:
        points: finished trials.
        front: non-dominated trials.
        metric: name of the first value.
        second: name of the second value.

    Returns:
        The chart. None if no trial has two finite values.
    """
    known = [p for p in points if len(p.values) > 1 and all(map(math.isfinite, p.values))]
    best = [p for p in front if len(p.values) > 1 and all(map(math.isfinite, p.values))]
    if not known or not best:
        return None
    best.sort(key=lambda point: (point.values[1], point.value))
    ordered = sorted(point.value for point in known)
    limit = ordered[int(_CLIPPED_SHARE * (len(ordered) - 1))]
    y_axis = _Axis.around([*(p.value for p in best), limit])
    x_axis = _Axis.around(point.values[1] for point in known)
    shown = size if second == "bytes" else short
    # The trials of the front are drawn last, so that they lie above the others.
    on_front = {point.number for point in best}
    step = max(1, math.ceil(len(known) / _MOST_DOTS))
    dots = []
    for point in known[::step]:
        if point.number not in on_front:
            dots.append(_front_dot(point, "other", x_axis, y_axis, shown))
    line = []
    for index, point in enumerate(best):
        dots.append(_front_dot(point, "best", x_axis, y_axis, shown))
        if index:
            before, here = dots[-2], dots[-1]
            line.append(Segment(before.x, before.y, here.x, here.y))
    low, high = best[0], best[-1]
    summary = f"{metric} against {second} of {plural(len(known), 'finished trial')}. "
    if len(best) == 1:
        summary += f"The front has 1 trial: {short(low.value)} at {second} {shown(low.values[1])}."
    else:
        summary += (
            f"{len(best)} of them are on the front: from {short(low.value)} at {second} "
            f"{shown(low.values[1])} to {short(high.value)} at {second} {shown(high.values[1])}."
        )
    ends = [x_axis.low + share * (x_axis.high - x_axis.low) for share in (0.05, 0.5, 0.95)]
    x_ticks = tuple(Tick(x_axis.x(end), shown(end)) for end in ends)
    clipped = sum(point.value > y_axis.high for point in known)
    return Chart(
        summary, tuple(dots), tuple(line), _y_ticks(y_axis), x_ticks, second, metric, clipped
    )


def _front_dot(
    point: TrialPoint, kind: str, x_axis: _Axis, y_axis: _Axis, shown: Callable[[float], str]
) -> Dot:
    y = y_axis.y(point.value)
    if point.value > y_axis.high:
        kind, y = "above", TOP
    title = (
        f"trial {point.number}: {short(point.value)} at {shown(point.values[1])}, drops "
        f"{point.dropped}"
    )
    return Dot(x_axis.x(point.values[1]), y, kind, title)


def loss_chart(losses: Sequence[tuple[int, float]], metric: str) -> Chart | None:
    """Return the chart of a loss against the step of a healing.

    Args:
        losses: steps and losses.
        metric: name of the loss.

    Returns:
        The chart. None without two finite losses.
    """
    known = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(known) < 2:
        return None
    y_axis = _Axis.around(loss for _, loss in known)
    x_axis = _Axis.around(float(step) for step, _ in known)
    # The step with the lowest loss is marked.
    lowest = min(known, key=lambda each: each[1])
    dots: list[Dot] = []
    line: list[Segment] = []
    for step, loss in known:
        kind = "best" if step == lowest[0] else "other"
        dot = Dot(x_axis.x(step), y_axis.y(loss), kind, f"step {step}: {short(loss)}")
        if dots:
            line.append(Segment(dots[-1].x, dots[-1].y, dot.x, dot.y))
        dots.append(dot)
    summary = (
        f"{metric} against the step of the healing, from {short(known[0][1])} to "
        f"{short(known[-1][1])}. The lowest is {short(lowest[1])} at step {lowest[0]}."
    )
    ends = sorted({known[0][0], known[len(known) // 2][0], known[-1][0]})
    x_ticks = tuple(Tick(x_axis.x(step), f"{step:,}") for step in ends)
    return Chart(summary, tuple(dots), tuple(line), _y_ticks(y_axis), x_ticks, "step", metric)
