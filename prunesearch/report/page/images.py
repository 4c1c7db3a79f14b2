"""A figure as a PNG image, drawn with matplotlib on a white ground."""

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from prunesearch.report.figures.figure import Figure, Heatmap, Panel, Series
from prunesearch.report.figures.styles import STYLES
from prunesearch.report.page.plotly_panel import largest_value

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

_FEW_DECADES = 1e4  # ratio of the ends of a logarithmic axis with plain numbers
_DPI = 150
_WIDTH = 9.0  # inches of an image
_HEIGHT = 3.6  # inches of a panel with series
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "x": "X",
    "star": "*",
}
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_HATCHES = ("", "//", "..", "xx", "--", "\\\\", "||", "++")
_SETTINGS: "dict[RcKeyType, str | float | bool]" = {
    "font.size": 9,
    "axes.grid": True,
    "grid.color": "#d5d8dc",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#58616c",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "hatch.color": "white",
}
_CROWDED = 30  # errors of a series that are drawn with caps
_LONGEST_NAME = 44  # letters of a name in a legend
_LONGEST_ON_AXIS = 32  # letters of a name on an axis
_LETTER = 0.075  # inches, the mean width of a letter on an axis
_LINE = 0.17  # inches, the height of a line of text


def write_image(figure: Figure, path: Path) -> None:
    """Draw a figure with panels as PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    # 1. A row of panels is as high as its highest panel.
    columns = min(figure.columns, len(figure.panels))
    count = math.ceil(len(figure.panels) / columns)
    heights = []
    for row in range(count):
        in_row = figure.panels[row * columns : (row + 1) * columns]
        heights.append(max(_height(panel) for panel in in_row))
    with mpl.rc_context(_SETTINGS):
        # 2. Draw the panels, and hide what is left of the grid.
        drawn = Canvas(figsize=(_WIDTH, sum(heights) + 0.6), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(drawn)
        grid = drawn.subplots(count, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        handles: dict[str, Artist] = {}
        for index, axes in enumerate(grid.flat):
            if index >= len(figure.panels):
                axes.set_visible(False)
                continue
            room = _WIDTH / columns - 1.0, heights[index // columns] - 1.0
            _draw_panel(axes, figure.panels[index], room, handles)
        # 3. Write the title with its badges, and one legend for all panels.
        badges = f"  ({', '.join(figure.badges)})" if figure.badges else ""
        title = _wrapped(figure.title + badges, 0.7 * _WIDTH)  # bold letters are wide
        drawn.suptitle(title, fontweight="bold", fontsize=11)
        if handles:
            names = [_shortened(name) for name in handles]
            drawn.legend(
                list(handles.values()),
                names,
                loc="outside lower center",
                ncols=_legend_columns(names),
                frameon=False,
            )
        # The format is named, because a temporary file has another ending.
        drawn.savefig(path, format="png", metadata={"Software": None})


def _height(panel: Panel) -> float:
    """Return the height of a panel in inches. A heat map grows with its rows."""
    if panel.heatmap is None:
        return _HEIGHT
    return max(2.4, min(9.0, 1.4 + 0.13 * len(panel.heatmap.y)))


def _legend_columns(names: Sequence[str]) -> int:
    """Return how many names of a legend fit side by side."""
    longest = max(len(name) for name in names) * _LETTER + 0.6
    return max(1, min(len(names), int(_WIDTH / longest)))


def _draw_panel(
    axes: "Axes", panel: Panel, room: tuple[float, float], handles: "dict[str, Artist]"
) -> None:
    """Draw a panel and collect its legend.

    Args:
        axes: where to draw.
        panel: the panel.
        room: width and height for names on the axes, in inches.
        handles: drawn samples by name, to which those of the panel are added.
    """
    # 1. Title, labels and scales.
    if panel.title:
        axes.set_title(_wrapped(panel.title, room[0]), fontsize=10)
    axes.set_xlabel(_wrapped(panel.x_label, room[0]))
    axes.set_ylabel(_wrapped(panel.y_label, room[1]))
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    # 2. The content.
    heatmap = panel.heatmap
    if heatmap is not None:
        _draw_heatmap(axes, heatmap, room)
    else:
        _draw_series(axes, panel, room, handles)
    # 3. Straight lines lie below the series.
    for rule in panel.rules:
        colour = STYLES[rule.style].light
        draw = axes.axhline if rule.axis == "y" else axes.axvline
        handles.setdefault(rule.name, draw(rule.value, color=colour, ls=":", lw=1.4, zorder=1.5))
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)
    if heatmap is None and not panel.log_x and not _has_names(panel):
        _thin_numbers(axes, room[0])
    if panel.log_y:
        _number_decades(axes)


def _number_decades(axes: "Axes") -> None:
    """Write plain numbers on a logarithmic axis that spans few decades: 1, 2, 5, 10, 20."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if high > low * _FEW_DECADES:
        return
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _has_names(panel: Panel) -> bool:
    """Return whether names are on the horizontal axis, and not numbers."""
    return any(isinstance(place, str) for series in panel.series for place in series.x)


def _thin_numbers(axes: "Axes", room: float) -> None:
    """Write as many numbers on the horizontal axis as fit side by side."""
    places = axes.get_xticks().tolist()
    longest = max(len(text) for text in axes.xaxis.get_major_formatter().format_ticks(places))
    most = max(1, int(room / (longest * _LETTER + 0.15)))
    if len(places) > most:
        axes.locator_params(axis="x", nbins=most)


def _text(text: str) -> str:
    """Return a text for matplotlib, which would read a formula between two dollar signs.

    Characters that cannot be seen, such as those that turn the direction of writing, become �.
    """
    seen = "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)
    return seen.replace("$", "\\$")


def _shortened(name: str, most: int = _LONGEST_NAME) -> str:
    """Return a name for a legend or an axis. The middle of a long one is left out.

    Names of studies often differ in their ends only.
    """
    if len(name) > most:
        kept = most - 1
        name = f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}"
    return _text(name)


def _wrapped(text: str, room: float) -> str:
    """Return a text in as many lines as fit into a width in inches."""
    return _text("\n".join(textwrap.wrap(text, max(10, int(room / _LETTER)))))


def _draw_series(
    axes: "Axes", panel: Panel, room: tuple[float, float], handles: "dict[str, Artist]"
) -> None:
    # 1. Names on the horizontal axis become whole numbers.
    names = panel.names
    places = {name: float(index) for index, name in enumerate(names)}
    # 2. Draw the series. Bars at one position stand side by side or on each other.
    bars = [series for series in panel.series if series.kind == "bars"]
    floor: dict[float, float] = {}
    for series in panel.series:
        x = [places[place] if isinstance(place, str) else float(place) for place in series.x]
        if series.kind == "bars":
            index = bars.index(series)
            artist = _bars(axes, panel, series, x, (index, len(bars)), floor)
        elif series.kind == "points":
            artist = _points(axes, series, x)
        else:
            artist = _line(axes, series, x)
        if series.in_legend:
            handles.setdefault(series.name, artist)
    if names:
        axes.grid(visible=False, axis="x")
        _name_places(axes, names, room[0])


def _bars(
    axes: "Axes",
    panel: Panel,
    series: Series,
    x: list[float],
    place: tuple[int, int],
    floor: dict[float, float],
) -> "Artist":
    """Draw bars.

    Args:
        axes: where to draw.
        panel: the panel.
        series: the series.
        x: positions.
        place: number of the series among those with bars, and how many there are.
        floor: height of what stands at each position already, which is updated.
    """
    index, count = place
    style = STYLES[series.style]
    width, bottom = 0.8, [0.0] * len(x)
    # A stacked bar begins where the bars below it end.
    if panel.bars == "stacked":
        bottom = [floor.get(at, 0.0) for at in x]
        for at, value in zip(x, series.y, strict=True):
            floor[at] = floor.get(at, 0.0) + (value if math.isfinite(value) else 0.0)
    else:
        # Numbers on the axis may lie closer together than 1.
        ordered = sorted(set(x))
        nearest = min((b - a for a, b in itertools.pairwise(ordered)), default=1.0)
        width = 0.8 * nearest / count
        x = [at + (index - (count - 1) / 2) * width for at in x]
    drawn = axes.bar(
        x,
        list(series.y),
        width,
        bottom=bottom,
        color=style.light,
        hatch=_HATCHES[series.style % len(_HATCHES)],
        alpha=0.5 if series.emphasis == "faint" else 1.0,
        yerr=_distances(series),
        error_kw={"elinewidth": 0.8, "capsize": 2 if len(x) <= _CROWDED else 0},
    )
    first: Artist = drawn[0]
    return first


def _points(axes: "Axes", series: Series, x: list[float]) -> "Artist":
    style = STYLES[series.style]
    size, alpha, edge = {
        "faint": (6.0, 0.35, "none"),
        "normal": (28.0, 1.0, "none"),
        "strong": (64.0, 1.0, "black"),
    }[series.emphasis]
    # The errors are drawn first, so that the points cover them.
    if series.low is not None:
        axes.errorbar(
            x,
            list(series.y),
            yerr=_distances(series),
            fmt="none",
            ecolor="#1c2128",
            capsize=2,
            lw=1,
        )
    return axes.scatter(
        x,
        list(series.y),
        s=size,
        marker=_MARKERS[style.marker],
        color=style.light,
        alpha=alpha,
        edgecolors=edge,
        linewidths=1.0,
        zorder=3 if series.emphasis == "strong" else 2,
    )


def _line(axes: "Axes", series: Series, x: list[float]) -> "Artist":
    style = STYLES[series.style]
    width = {"faint": 0.8, "normal": 1.6, "strong": 2.4}[series.emphasis]
    is_step = series.kind == "step"
    if series.low is not None and series.high is not None:
        axes.fill_between(
            x,
            list(series.low),
            list(series.high),
            step="post" if is_step else None,
            color=style.light,
            alpha=0.18,
            lw=0,
        )
    (line,) = axes.plot(
        x,
        list(series.y),
        color=style.light,
        ls=_DASHES[style.dash],
        lw=width,
        drawstyle="steps-post" if is_step else "default",
        marker="" if series.emphasis == "faint" else _MARKERS[style.marker],
        markersize=5,
        markevery=max(1, len(x) // 10),
        alpha=0.5 if series.emphasis == "faint" else 1.0,
    )
    return line


def _distances(series: Series) -> list[list[float]] | None:
    """Return the distances from the values to the ends of their errors: below, above.

    An error that is not known is nan, which is not drawn.
    """
    if series.low is None or series.high is None:
        return None
    below, above = [], []
    for value, low, high in zip(series.y, series.low, series.high, strict=True):
        below.append(float(np.maximum(0.0, value - low)))
        above.append(float(np.maximum(0.0, high - value)))
    return [below, above]


def _draw_heatmap(axes: "Axes", heatmap: Heatmap, room: tuple[float, float]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    aspect: Literal["equal", "auto"] = "equal" if len(heatmap.x) == len(heatmap.y) else "auto"
    # Differences have a white middle and the same range on both sides of 0.
    if heatmap.diverging:
        largest = largest_value(heatmap)
        ends = STYLES[2].light, "#ffffff", STYLES[3].light
        colours = LinearSegmentedColormap.from_list("diverging", ends)
        image = axes.imshow(heatmap.z, cmap=colours, vmin=-largest, vmax=largest, aspect=aspect)
    else:
        image = axes.imshow(heatmap.z, cmap="cividis", aspect=aspect)
    axes.grid(visible=False)
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, label=_text(heatmap.z_label), fraction=0.04, pad=0.02)
    _name_places(axes, heatmap.x, room[0] - 1.0)
    # Leave out names of rows that would overlap.
    every = max(1, math.ceil(len(heatmap.y) * _LINE / room[1]))
    names = [_shortened(name, _LONGEST_ON_AXIS) for name in heatmap.y[::every]]
    axes.set_yticks(range(0, len(heatmap.y), every), names)


def _name_places(axes: "Axes", names: Sequence[str], room: float) -> None:
    """Write names on the horizontal axis so that none overlaps another.

    Short names, which are those of layers, are left out at equal distances. Long ones stand
    upright.
    """
    shown = [_shortened(name, _LONGEST_ON_AXIS) for name in names]
    longest = max(len(name) for name in shown)
    needed = longest * _LETTER + 0.1
    every, angle = 1, 0
    # Names that do not fit stand upright if they are long, and are thinned out.
    if len(names) * needed > room:
        if longest > 4:
            angle, needed = 90, _LINE
        every = max(1, math.ceil(len(names) * needed / room))
    axes.set_xticks(range(0, len(names), every), shown[::every], rotation=angle)
