"""A panel as a figure of plotly: plain JSON for the page, or an object of plotly's Python library.

Colours are names of CSS variables on the page, so that a figure follows the light or dark scheme of
the reader. `resolved` replaces them by values for pages without a style sheet.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunesearch.report.figures.figure import Heatmap, Panel, Place, Rule, Series
from prunesearch.report.figures.styles import STYLES
from prunesearch.runtime.json_values import Json, JsonObject

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOUR, ALPHA = "colour", "alpha"
"""Keys of an object that stands for a colour: the name of a CSS variable, and its opacity."""
LIGHT = {"--text": "#1c2128", "--line": "#d5d8dc", "--muted": "#58616c", "--surface": "#ffffff"}
"""Colours of the light scheme, for figures outside the page."""
_PATTERNS = ("", "/", ".", "x", "-", "\\", "|", "+")
"""Patterns of bars, so that they can be told apart without colours."""
_MARKED = 12  # markers on a line; more would hide it
_CROWDED = 30  # errors of a series that are drawn with caps
_DIGITS = 6
# Decades of a logarithmic axis from which not every digit has a tick, and those from which no digit
# but 1 has one.
_DIGIT_TICKS, _FEW_TICKS = 0.5, 3.0
_LONGEST_AXIS = 38  # letters of the title of a vertical axis in one line


def panel_document(panel: Panel) -> JsonObject:
    """Return a panel as ``{"data": ..., "layout": ...}``, with colours as CSS variables."""
    data: list[Json] = []
    heatmap = panel.heatmap
    if heatmap is not None:
        data.append(_heatmap(heatmap))
    for series in panel.series:
        data += _traces(panel, series)
    layout = _layout(panel, heatmap)
    shapes: list[Json] = [_shape(rule) for rule in panel.rules]
    if shapes:
        layout["shapes"] = shapes
    return {"data": data, "layout": layout}


def plotly_figure(panel: Panel, title: str) -> "go.Figure":
    """Return a panel as a figure of plotly's Python library, with a title and a legend.

    Args:
        panel: the panel.
        title: title of the figure.
    """
    import plotly.graph_objects as go

    colours = dict(LIGHT)
    for index, style in enumerate(STYLES):
        colours[f"--s{index}"] = style.light
    document = resolved(panel_document(panel), colours)
    assert isinstance(document, dict)
    figure = go.Figure(document)
    figure.update_layout(title={"text": html.escape(title)}, showlegend=True)
    return figure


def resolved(value: Json, colours: Mapping[str, str]) -> Json:
    """Return a document with values instead of the names of CSS variables."""
    if isinstance(value, Mapping):
        # An object with this key stands for a colour.
        if COLOUR in value:
            colour = colours[str(value[COLOUR])]
            alpha = value.get(ALPHA)
            return colour if alpha is None else _with_alpha(colour, float(str(alpha)))
        return {key: resolved(part, colours) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [resolved(part, colours) for part in value]
    return value


def _with_alpha(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def _colour(name: str, alpha: float | None = None) -> JsonObject:
    if alpha is None:
        return {COLOUR: name}
    return {COLOUR: name, ALPHA: alpha}


def shown(value: float) -> float | None:
    """Return a number with few digits, which keeps the page small. None if it is not finite."""
    if not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _numbers(values: Sequence[float]) -> list[Json]:
    return [shown(value) for value in values]


def _places(values: Sequence[str | float]) -> list[Json]:
    """Return positions on an axis. Names are escaped, because plotly reads markup in them."""
    places: list[Json] = []
    for value in values:
        places.append(html.escape(value) if isinstance(value, str) else shown(value))
    return places


def _traces(panel: Panel, series: Series) -> list[JsonObject]:
    """Return the traces of a series: the values, and before them the band of their error."""
    name = html.escape(series.name)
    colour = _colour(f"--s{series.style}")
    trace: JsonObject = {
        "name": name,
        "x": _places(series.x),
        "y": _numbers(series.y),
        "showlegend": series.in_legend,
        # The legend of the page finds a series by this text, which is not shown.
        "legendgroup": series.name,
    }
    # A point shows its own text, or else the values on both axes.
    if series.labels is not None:
        trace["text"] = [html.escape(label).replace("\n", "<br>") for label in series.labels]
        trace["hovertemplate"] = "%{text}<extra>" + name + "</extra>"
    else:
        x_label, y_label = html.escape(panel.x_label), html.escape(panel.y_label)
        trace["hovertemplate"] = f"{x_label}: %{{x}}<br>{y_label}: %{{y:.5~g}}<extra>{name}</extra>"
    # Bars and points have error bars. A line has a band.
    if series.kind == "bars":
        return [{**trace, **_bars(series, colour), **_error_bars(series)}]
    if series.kind == "points":
        return [{**trace, **_points(series, colour), **_error_bars(series)}]
    return [*_band(series, name), {**trace, **_line(series, colour)}]


def _bars(series: Series, colour: JsonObject) -> JsonObject:
    pattern: JsonObject = {
        "shape": _PATTERNS[series.style % len(_PATTERNS)],
        "fgcolor": _colour("--surface", 0.6),
        "fillmode": "overlay",
        "size": 7,
        "solidity": 0.2,
    }
    marker: JsonObject = {"color": colour, "pattern": pattern, "line": {"width": 0}}
    if series.emphasis == "faint":
        marker["opacity"] = 0.5
    return {"type": "bar", "textposition": "none", "marker": marker}


def _points(series: Series, colour: JsonObject) -> JsonObject:
    style = STYLES[series.style]
    marker: JsonObject = {"color": colour, "symbol": style.marker, "size": 8}
    if series.emphasis == "faint":
        marker |= {"size": 4, "opacity": 0.4}
    elif series.emphasis == "strong":
        marker |= {"size": 12, "line": {"width": 1.5, "color": _colour("--text")}}
    return {"type": "scatter", "mode": "markers", "marker": marker}


def _line(series: Series, colour: JsonObject) -> JsonObject:
    style = STYLES[series.style]
    width = {"faint": 1.0, "normal": 2.0, "strong": 3.0}[series.emphasis]
    line: JsonObject = {
        "color": colour,
        "width": width,
        "dash": style.dash,
        "shape": "hv" if series.kind == "step" else "linear",
    }
    drawn: JsonObject = {"type": "scatter", "mode": "lines+markers", "line": line}
    drawn["marker"] = {
        "color": colour,
        "symbol": style.marker,
        "size": 7,
        "maxdisplayed": _MARKED,
    }
    if series.emphasis == "faint":
        drawn |= {"mode": "lines", "opacity": 0.5}
    return drawn


def _error_bars(series: Series) -> JsonObject:
    """Return the errors of bars and points, as distances from the values."""
    if series.low is None or series.high is None:
        return {}
    above, below = [], []
    for value, low, high in zip(series.y, series.low, series.high, strict=True):
        above.append(shown(high - value))
        below.append(shown(value - low))
    # Many errors close together are drawn thin and without caps.
    is_crowded = len(series.x) > _CROWDED
    error: JsonObject = {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": _colour("--text"),
        "thickness": 0.7 if is_crowded else 1.2,
        "width": 0 if is_crowded else 3,
    }
    return {"error_y": error}


def _band(series: Series, name: str) -> list[JsonObject]:
    """Return the band around a line: its lower end, and its upper end with the area between."""
    if series.low is None or series.high is None:
        return []
    traces: list[JsonObject] = []
    # Both ends follow the steps of the line that they surround.
    for values, fill in ((series.low, "none"), (series.high, "tonexty")):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": _places(series.x),
                "y": _numbers(values),
                "line": {"width": 0, "shape": "hv" if series.kind == "step" else "linear"},
                "fill": fill,
                "fillcolor": _colour(f"--s{series.style}", 0.2),
                "hoverinfo": "skip",
                "showlegend": False,
                "legendgroup": series.name,
                "name": name,
            }
        )
    return traces


def _heatmap(heatmap: Heatmap) -> JsonObject:
    rows: list[Json] = [_numbers(row) for row in heatmap.z]
    z_label = html.escape(heatmap.z_label)
    trace: JsonObject = {
        "type": "heatmap",
        "x": _places(heatmap.x),
        "y": _places(heatmap.y),
        "z": rows,
        "hoverongaps": False,
        "colorscale": "Cividis",
        "hovertemplate": f"%{{y}}, %{{x}}: %{{z:.4~g}}<extra>{z_label}</extra>",
        "colorbar": {
            "orientation": "h",
            "x": 0.5,
            "y": 1.0,
            "yanchor": "bottom",
            "thickness": 10,
            "len": 0.9,
            "nticks": 5,
            "outlinewidth": 0,
            "tickfont": {"color": _colour("--text"), "size": 11},
            "title": {
                "text": z_label,
                "side": "top",
                "font": {"color": _colour("--text"), "size": 12},
            },
        },
    }
    # Differences have the same range on both sides of 0, which is neutral.
    if heatmap.diverging:
        largest = largest_value(heatmap)
        middle = _colour("--surface")
        ends = [_colour("--s2"), _colour("--s3")]
        trace["colorscale"] = [[0, ends[0]], [0.5, middle], [1, ends[1]]]
        trace |= {"zmid": 0, "zmin": -largest, "zmax": largest}
    return trace


def largest_value(heatmap: Heatmap) -> float:
    """Return the largest absolute value of a heat map; 1 if it has none but zeros."""
    largest = 0.0
    for row in heatmap.z:
        for value in row:
            if math.isfinite(value):
                largest = max(largest, abs(value))
    return largest or 1.0


def _shape(rule: Rule) -> JsonObject:
    """Return a straight line across the panel."""
    along, across = ("x", "y") if rule.axis == "y" else ("y", "x")
    return {
        "type": "line",
        f"{along}ref": f"{along} domain",
        f"{along}0": 0,
        f"{along}1": 1,
        f"{across}0": rule.value,
        f"{across}1": rule.value,
        "line": {"color": _colour(f"--s{rule.style}"), "width": 1.5, "dash": "dot"},
        "name": html.escape(rule.name),
    }


def _layout(panel: Panel, heatmap: Heatmap | None) -> JsonObject:
    x_axis, y_axis = _axis(panel.x_label), _axis(_in_lines(panel.y_label))
    # Without a range of the panel's own, plotly fits the axes to the values.
    if panel.log_x:
        x_axis |= _log_axis([place for drawn in panel.series for place in drawn.x])
    if panel.log_y:
        y_axis |= _log_axis([value for drawn in panel.series for value in drawn.y])
    if panel.y_range is not None:
        y_axis["range"] = [_end(value, panel.log_y) for value in panel.y_range]
    elif panel.rules:
        y_axis |= _room_for_rules(panel)
    if heatmap is not None:
        for axis, names in ((x_axis, heatmap.x), (y_axis, heatmap.y)):
            axis |= {"type": "category", "showgrid": False, "categoryorder": "array"}
            axis["categoryarray"] = _places(names)
        # The first row of a map is at the top.
        y_axis["autorange"] = "reversed"
    # Names keep the order of the panel. Plotly would read some of them, such as 10-11, as dates.
    elif panel.names:
        x_axis |= {"type": "category", "categoryorder": "array"}
        x_axis["categoryarray"] = _places(panel.names)
    return {
        "xaxis": x_axis,
        "yaxis": y_axis,
        "margin": {"l": 8, "r": 12, "t": 12 if heatmap else 28, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12, "color": _colour("--text")},
        "hoverlabel": {"align": "left"},
        "hovermode": "closest",
        "showlegend": False,
        "barmode": "stack" if panel.bars == "stacked" else "group",
    }


def _log_axis(places: Sequence[Place]) -> JsonObject:
    """Return the type and the ticks of a logarithmic axis.

    With a tick at each digit, the labels 9 and 10 would overlap where the axis has a whole decade.
    """
    logarithms = []
    for place in places:
        if isinstance(place, int | float) and place > 0 and math.isfinite(place):
            logarithms.append(math.log10(place))
    decades = max(logarithms) - min(logarithms) if logarithms else 0.0
    if decades < _DIGIT_TICKS:
        return {"type": "log"}
    return {"type": "log", "dtick": "D2" if decades < _FEW_TICKS else 1}


def _axis(title: str) -> JsonObject:
    return {
        "title": {"text": title, "standoff": 8, "font": {"color": _colour("--text"), "size": 12}},
        "gridcolor": _colour("--line"),
        "linecolor": _colour("--muted"),
        "tickcolor": _colour("--muted"),
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "separatethousands": True,
        "exponentformat": "power",
    }


def _in_lines(title: str) -> str:
    """Return the title of a vertical axis, in two lines if it is long."""
    words = [html.escape(word) for word in title.split()]
    if len(title) <= _LONGEST_AXIS:
        return " ".join(words)
    middle = (len(words) + 1) // 2
    return " ".join(words[:middle]) + "<br>" + " ".join(words[middle:])


def _end(value: float, is_log: bool) -> float:
    """Return an end of an axis as plotly takes it: the exponent of a logarithmic one."""
    return math.log10(value) if is_log else value


def _room_for_rules(panel: Panel) -> JsonObject:
    """Return a range that contains the horizontal lines, which plotly's own range ignores."""
    # A logarithmic axis takes no such option.
    included = [rule.value for rule in panel.rules if rule.axis == "y"]
    if panel.log_y:
        return {}
    return {"autorangeoptions": {"include": included}} if included else {}
