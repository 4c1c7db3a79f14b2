"""The key figures of a study in optuna-dashboard, drawn again while the search runs.

A search never waits for them: they are drawn in a thread of their own, over a connection of its
own, one drawing at a time. The next drawing comes a minute after the last one at the earliest, and
not before the search has run for a hundred times as long as the last one took. At the end of a
search the last drawing is awaited for some seconds. The first failure is reported, and the search
goes on without the figures.
"""

import logging
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.errors import PruneSearchError, one_line
from prunesearch.report.figures.figure import Figure, Panel, Series
from prunesearch.report.figures.registry import REGISTRY
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.page.plotly_panel import plotly_figure
from prunesearch.studies.dashboard_figures import save_figures
from prunesearch.studies.optuna_internals.access import backend_of
from prunesearch.studies.study_data import read_study

if TYPE_CHECKING:
    import plotly.graph_objects as go

KEY_FIGURES = ("quality", "steps", "drops", "pareto", "effects")
"""Names of the figures that the dashboard shows, where the studies have something to show."""
SECONDS = 60.0
"""Shortest time between two drawings."""
SHARE = 0.01
"""Largest share of a search that drawings may take."""
LONGEST_WAIT = 20.0
"""Seconds that the end of a search waits for the last drawing."""
_POINTS = 300  # points of a series; the dashboard keeps a figure in rows of 2 kB
_PANELS = 2  # panels of a figure that are shown
_FAILURES = (
    PruneSearchError, SQLAlchemyError, StorageInternalError, OSError, RuntimeError, ValueError,
    TypeError, LookupError, ArithmeticError, AttributeError, ImportError,
)  # fmt: skip
_one_at_a_time = threading.Lock()  # several studies may be searched at once
_log = logging.getLogger(__name__)


class DashboardFigures:
    """Draws the key figures of a study for optuna-dashboard.

    Args:
        study: the study.

    Attributes:
        seconds: time that the last drawing took.
    """

    def __init__(self, study: Study) -> None:
        self._name = study.study_name
        storage = backend_of(study)
        self._engine: Engine | None = storage.engine if isinstance(storage, RDBStorage) else None
        self._drawn = time.monotonic()
        self._stored: dict[str, str] = {}
        self._failed = False
        self._thread: threading.Thread | None = None
        self.seconds = 0.0

    def now_and_then(self) -> None:
        """Begin to draw the figures if the last drawing is long enough ago."""
        if self._thread is not None and self._thread.is_alive():
            return
        if time.monotonic() - self._drawn >= max(SECONDS, self.seconds / SHARE):
            self.begin()

    def begin(self) -> None:
        """Draw the figures in another thread, after those that are being drawn."""
        if self._engine is None or not KEY_FIGURES:
            return
        # The thread ends with the process. Figures are written whole or not at all.
        self._thread = threading.Thread(
            target=self.write, name=f"figures of {self._name}", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """Draw the figures of a search that has ended, and wait for them for some seconds."""
        self.begin()
        if self._thread is None:
            return
        self._thread.join(LONGEST_WAIT)
        if self._thread.is_alive():
            _log.info("the figures of study %r are still being drawn", self._name)

    def write(self) -> None:
        """Draw the figures. The first failure is logged."""
        with _one_at_a_time:
            start = time.monotonic()
            try:
                self._draw()
            except _FAILURES as error:
                if not self._failed:
                    reason = one_line(error)
                    _log.warning("the figures of study %r were not drawn: %s", self._name, reason)
                self._failed = True
            self._drawn = time.monotonic()
            self.seconds = self._drawn - start

    def _draw(self) -> None:
        """Draw each figure, and store those that have changed."""
        assert self._engine is not None
        # 1. Read the study. No transaction stays open while it is drawn.
        with self._engine.connect() as connection:
            found = read_study(connection, self._name)
        if not found.complete():
            return
        # 2. Draw it.
        report = ReportData((found,), datetime.now(UTC))
        changed: dict[str, go.Figure] = {}
        documents: dict[str, str] = {}
        for key in KEY_FIGURES:
            figure = REGISTRY.get(key).figure(report)
            if figure is None:
                continue
            for place, panel in enumerate(figure.panels[:_PANELS]):
                name = f"prunesearch-{key}-{place}"
                drawn = _drawn(figure, panel)
                documents[name] = drawn.to_json()
                if self._stored.get(name) != documents[name]:
                    changed[name] = drawn
        # 3. Store what has changed.
        save_figures(self._engine, self._name, changed)
        self._stored = documents


def _drawn(figure: Figure, panel: Panel) -> "go.Figure":
    """Draw a panel of a figure, with a title that says what it shows."""
    title = figure.title
    if panel.title:
        title += f": {panel.title}"
    elif len(figure.panels) > 1:
        title = f"{panel.y_label[:1].upper()}{panel.y_label[1:]} against {panel.x_label}"
    drawn = plotly_figure(_thinned(panel), title)
    # The dashboard has a template of its own, and the default one takes 7 kB.
    return drawn.update_layout(template=None)


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
