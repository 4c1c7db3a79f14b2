"""The legend of a figure: names with a drawn sample of their style."""

from dataclasses import dataclass
from typing import Literal

from prunesearch.report.figures.figure import Figure, Panel
from prunesearch.report.figures.styles import STYLES

_PATHS = {
    "circle": "M12 4a4 4 0 1 0 .01 0z",
    "square": "M8.5 4.5h7v7h-7z",
    "diamond": "M12 3l5 5l-5 5l-5-5z",
    "triangle-up": "M12 3.5l4.5 8h-9z",
    "triangle-down": "M12 12.5l4.5-8h-9z",
    "cross": "M10.5 3.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "x": "M8 5.5L9.5 4L12 6.5L14.5 4L16 5.5L13.5 8L16 10.5L14.5 12L12 9.5L9.5 12L8 10.5L10.5 8z",
    "star": "M12 3l1.3 3.4l3.7.1l-2.9 2.2l1 3.6l-3.1-2l-3.1 2l1-3.6l-2.9-2.2l3.7-.1z",
}
"""Outlines of the markers in a box of 24 x 16."""
_ARRAYS = {"solid": "", "dash": "5 3", "dot": "2 2", "dashdot": "6 2 2 2"}

_PATTERN_PATHS = (
    "",
    "M4 14L16 2M10 14L22 2M2 8L8 2",
    "M6 5h1M12 5h1M18 5h1M6 8h1M12 8h1M18 8h1M6 11h1M12 11h1M18 11h1",
    "M4 14L16 2M10 14L22 2M4 2L16 14M10 2L22 14",
    "M2 6h20M2 10h20",
    "M4 2L16 14M10 2L22 14M2 8L8 14",
    "M7 2v12M12 2v12M17 2v12",
    "M2 6h20M2 10h20M7 2v12M12 2v12M17 2v12",
)
"""The patterns of bars, in the order of the styles."""


@dataclass(frozen=True)
class LegendEntry:
    """A name in a legend and the look of its sample.

    Attributes:
        name: name of the series or of the straight line.
        style: number of the style.
        kind: what is drawn as a sample.
        faint: whether the series is drawn in the background.
    """

    name: str
    style: int
    kind: Literal["line", "points", "bars", "rule"]
    faint: bool = False

    @property
    def outline(self) -> str:
        """Outline of the marker as an SVG path."""
        return _PATHS[STYLES[self.style].marker]

    @property
    def pattern(self) -> str:
        """Lines on a bar as an SVG path; empty for a plain one."""
        return _PATTERN_PATHS[self.style % len(_PATTERN_PATHS)]

    @property
    def dashes(self) -> str:
        """Lengths of dashes and gaps, as SVG takes them; empty for a solid line."""
        return "2 2" if self.kind == "rule" else _ARRAYS[STYLES[self.style].dash]


def legend_of(figure: Figure) -> tuple[LegendEntry, ...]:
    """Return the names of all panels of a figure, each once, in the order of the panels."""
    entries: dict[str, LegendEntry] = {}
    for panel in figure.panels:
        # The first sample of a name stands for all of its series.
        for entry in _entries(panel):
            entries.setdefault(entry.name, entry)
    return tuple(entries.values())


def _entries(panel: Panel) -> list[LegendEntry]:
    found = []
    for series in panel.series:
        # Clouds of candidates have the name of their line, which is in the legend.
        if not series.in_legend:
            continue
        kind: Literal["line", "points", "bars", "rule"] = "line"
        if series.kind in ("points", "bars"):
            kind = "points" if series.kind == "points" else "bars"
        found.append(LegendEntry(series.name, series.style, kind, series.emphasis == "faint"))
    # Straight lines come after the series.
    for rule in panel.rules:
        found.append(LegendEntry(rule.name, rule.style, "rule"))
    return found
