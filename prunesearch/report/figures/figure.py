"""The model of a figure: series, panels, a caption and the numbers, without a drawing library.

A figure is drawn several times from the same values: on the page, as an image, as a CSV file and in
Markdown. See ``prunesearch/report/page``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prunesearch.studies.measurements import Badge

SEARCHED_ON: Badge = "searched on"
"""Badge of a number that was measured on the data that the search compared candidates on."""
HELD_OUT: Badge = "held out"
"""Badge of a number that was measured on data that the search never saw."""

Cell = str | int | float | None
"""A value in a table. A text that is a badge is shown as one; None is shown as a dash."""
Place = str | float
"""A position on the horizontal axis: a number, or a category such as the name of a layer."""


@dataclass(frozen=True)
class Series:
    """Values that are drawn in one style.

    A NaN in `y` interrupts a line and leaves out a point. Times are numbers of seconds or hours
    since the start of a study, never dates.

    Attributes:
        name: name in the legend.
        x: positions on the horizontal axis.
        y: values, one for each position.
        kind: a line from point to point, a step that holds a value until the next position, points
            alone, or bars.
        low, high: ends of the error of each value, not distances. They are drawn as a band around
            a line or step, and as error bars otherwise. Both or neither.
        style: number of a style (see `styles`).
        labels: text that is shown at a point when the pointer is over it.
        emphasis: faint points are drawn small and transparent, strong ones large, with an outline.
        in_legend: whether the legend names the series.
        total: number of points before the series was thinned; None if it was not.
    """

    name: str
    x: Sequence[Place]
    y: Sequence[float]
    kind: Literal["line", "step", "points", "bars"] = "line"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: int = 0
    labels: Sequence[str] | None = None
    emphasis: Literal["normal", "faint", "strong"] = "normal"
    in_legend: bool = True
    total: int | None = None

    def __post_init__(self) -> None:
        lengths = {"y": self.y, "low": self.low, "high": self.high, "labels": self.labels}
        for field, values in lengths.items():
            if values is not None and len(values) != len(self.x):
                raise ValueError(
                    f"series {self.name!r}: {len(self.x)} values of x and {len(values)} of {field}"
                )
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.name!r} has one end of its error only")


@dataclass(frozen=True)
class Heatmap:
    """A table of values that are drawn as colours. NaN is left empty.

    Attributes:
        x: names of the columns.
        y: names of the rows, from top to bottom.
        z: values, of shape (rows, columns).
        z_label: what the values are, with their unit.
        diverging: whether the values are differences, so that 0 is drawn in a neutral colour.
    """

    x: Sequence[str]
    y: Sequence[str]
    z: Sequence[Sequence[float]]
    z_label: str
    diverging: bool = False

    def __post_init__(self) -> None:
        if len(self.z) != len(self.y) or any(len(row) != len(self.x) for row in self.z):
            raise ValueError(f"heat map {self.z_label!r} is not of {len(self.y)} x {len(self.x)}")


@dataclass(frozen=True)
class Rule:
    """A straight line across a panel, such as the quality of the dense model.

    Attributes:
        value: position on the axis.
        name: name in the legend.
        axis: axis that the value is on. A value on ``y`` gives a horizontal line.
        style: number of a style (see `styles`).
    """

    value: float
    name: str
    axis: Literal["x", "y"] = "y"
    style: int = 0


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: title; may be empty if the figure has one panel.
        x_label, y_label: what is on the axes, with units: ``"latency (ms)"``.
        content: series, or one heat map.
        rules: straight lines across the panel.
        log_x, log_y: whether an axis is logarithmic. Its values must be positive.
        y_range: ends of the vertical axis; None to fit the values.
        bars: how bars at the same position are placed.
        categories: order of the categories on the horizontal axis; empty for numbers, and for the
            order of the series.
    """

    title: str
    x_label: str
    y_label: str
    content: tuple[Series | Heatmap, ...]
    rules: tuple[Rule, ...] = ()
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    bars: Literal["grouped", "stacked"] = "grouped"
    categories: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[Series, ...]:
        """The series of the panel."""
        return tuple(part for part in self.content if isinstance(part, Series))

    @property
    def names(self) -> tuple[str, ...]:
        """Names on the horizontal axis in their order; empty for numbers."""
        if self.categories:
            return self.categories
        found: dict[str, None] = {}
        for series in self.series:
            for place in series.x:
                if isinstance(place, str):
                    found[place] = None
        return tuple(found)

    @property
    def heatmap(self) -> Heatmap | None:
        """The heat map of the panel; None if it shows series."""
        for part in self.content:
            if isinstance(part, Heatmap):
                return part
        return None


@dataclass(frozen=True)
class NumberTable:
    """The numbers of a figure.

    All rows are written to the CSV file. The page shows the first `shown` ones.

    Attributes:
        head: headings of the columns, with units.
        rows: cells; as many in each row as there are headings.
        shown: largest number of rows on the page.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: int = 200

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.head)}")


@dataclass(frozen=True)
class GeneratedText:
    """What several models write after one prompt. The texts are shown as they are, escaped.

    Attributes:
        prompt: the prompt.
        texts: pairs of a model's name, such as ``dense``, and its text.
    """

    prompt: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Figure:
    """A figure, with everything that is said about it.

    Attributes:
        key: name of its files, of lower-case letters, digits and dashes.
        title: title, as a short phrase.
        caption: plain sentences for readers who see such a figure for the first time: what is
            drawn, in which unit, what the errors are, and how to read it.
        badges: whether its numbers were searched on or held out; empty if they are costs.
        panels: pairs of axes; empty for a table or texts alone.
        table: the numbers; None without.
        texts: generated texts.
        open_table: whether the table is what matters, and is shown without a click.
        columns: number of panels side by side on a wide screen.
    """

    key: str
    title: str
    caption: str
    badges: tuple[Badge, ...]
    panels: tuple[Panel, ...]
    table: NumberTable | None = None
    texts: tuple[GeneratedText, ...] = ()
    open_table: bool = False
    columns: int = 1
