"""The key figures of a study in optuna-dashboard, drawn again while the search runs.

A search never waits for them for long: the next drawing comes a minute after the last one at the
earliest, and not before the search has run for a hundred times as long as the last one took. One
that fails is reported once, and the search goes on without figures.
"""

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.errors import PruneSearchError, one_line
from prunesearch.report.figures.figure import Panel, Series
from prunesearch.report.figures.registry import REGISTRY
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.page.plotly_panel import plotly_figure
from prunesearch.studies import notes
from prunesearch.studies.optuna_internals.access import backend_of
from prunesearch.studies.study_data import read_study

KEY_FIGURES = ("quality", "steps", "drops", "pareto", "effects")
"""Names of the figures that the dashboard shows, where the studies have something to show."""
SECONDS = 60.0
"""Shortest time between two drawings."""
SHARE = 0.01
"""Largest share of a search that drawings may take."""
_POINTS = 300  # points of a series; the dashboard keeps a figure in rows of 2 kB
_PANELS = 2  # panels of a figure that are shown
_FAILURES = (
    PruneSearchError, SQLAlchemyError, StorageInternalError, OSError, RuntimeError, ValueError,
    TypeError, LookupError, ArithmeticError, AttributeError, ImportError,
)  # fmt: skip
_log = logging.getLogger(__name__)


class DashboardFigures:
    """Draws the key figures of a study for optuna-dashboard.

    Args:
        study: the study.

    Attributes:
        seconds: time that the last drawing took.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._drawn = time.monotonic()
        self._stored: dict[str, str] = {}
        self._failed = False
        self.seconds = 0.0

    def now_and_then(self) -> None:
        """Draw the figures if the last drawing is long enough ago."""
        if time.monotonic() - self._drawn >= max(SECONDS, self.seconds / SHARE):
            self.write()

    def write(self) -> None:
        """Draw the figures. A failure is logged once."""
        if self._failed:
            return
        start = time.monotonic()
        try:
            self._draw()
        except _FAILURES as error:
            self._failed = True
            name = self._study.study_name
            _log.warning("the figures of study %r were not drawn: %s", name, one_line(error))
        self._drawn = time.monotonic()
        self.seconds = self._drawn - start

    def _draw(self) -> None:
        """Draw each figure, and store those that have changed."""
        storage = backend_of(self._study)
        if not isinstance(storage, RDBStorage):
            return
        # 1. Read the study. No transaction stays open while it is drawn.
        with storage.engine.connect() as connection:
            found = read_study(connection, self._study.study_name)
        if not found.complete():
            return
        # 2. Draw it.
        report = ReportData((found,), datetime.now(UTC))
        for name in KEY_FIGURES:
            if name not in REGISTRY.names():
                continue
            figure = REGISTRY.get(name).figure(report)
            if figure is None:
                continue
            for place, panel in enumerate(figure.panels[:_PANELS]):
                title = f"{figure.title}: {panel.title}" if panel.title else figure.title
                drawn = plotly_figure(_thinned(panel), title)
                # The dashboard has a template of its own, and the default one takes 7 kB.
                drawn.update_layout(template=None)
                self._save(f"prunesearch-{name}-{place}", drawn.to_json(), drawn)

    def _save(self, name: str, document: str, drawn: object) -> None:
        """Store a figure, unless it is stored already."""
        if self._stored.get(name) == document:
            return
        notes.save_figure(self._study, drawn, name)
        self._stored[name] = document


def _thinned(panel: Panel) -> Panel:
    """Return a panel whose series have at most `_POINTS` points, with the first, last and extreme
    ones.
    """
    content = []
    for part in panel.content:
        content.append(_thinned_series(part) if isinstance(part, Series) else part)
    return replace(panel, content=tuple(content))


def _thinned_series(series: Series) -> Series:
    count = len(series.x)
    if count <= _POINTS:
        return series
    kept = set(np.linspace(0, count - 1, _POINTS - 2).astype(int).tolist())
    values = np.asarray(series.y, dtype=float)
    if not np.isnan(values).all():
        kept |= {int(np.nanargmin(values)), int(np.nanargmax(values))}
    places = sorted(kept)
    changed: dict[str, list[object]] = {}
    for field in ("x", "y", "low", "high", "labels"):
        known = getattr(series, field)
        if known is not None:
            changed[field] = [known[place] for place in places]
    return replace(series, **changed, total=series.total or count)  # type: ignore[arg-type]
