"""The registry of figures.

A file in this folder that calls `register` adds a figure to the page, the images, the tables and
the Markdown of a report. A figure is a function of a `ReportData`. It computes values and draws
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from prunesearch.errors import UnknownNameError
from prunesearch.report.figures.figure import Figure
from prunesearch.report.figures.report_data import ReportData
from prunesearch.runtime.registry import Registry


@dataclass(frozen=True)
class FigureEntry:
    """Facts about one figure.

    Attributes:
        name: name of the figure; the key of what `figure` returns.
        title: title, for a figure that has nothing to show.
        order: position in the report.
        figure: function that makes the figure. It returns None if the studies have nothing to show.
        absent: why there may be nothing to show, and what to do, as one sentence.
    """

    name: str
    title: str
    order: int
    figure: Callable[[ReportData], Figure | None]
    absent: str


REGISTRY: Registry[FigureEntry] = Registry(
    "prunesearch.report.figures", lambda name, known: UnknownNameError("figure", name, known)
)
register = REGISTRY.register
