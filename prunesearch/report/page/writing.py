"""Writes a report: the page, Markdown, images and CSV files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.page.contents import ReportContents
from prunesearch.report.page.csv_files import write_csv
from prunesearch.report.page.facts import contents_of
from prunesearch.report.page.folder import ReportFolder
from prunesearch.report.page.html_page import render_page
from prunesearch.report.page.images import write_image
from prunesearch.report.page.markdown import write_markdown
from prunesearch.report.tables import Commands, Parts, table
from prunesearch.runtime.json_values import json_as
from prunesearch.studies.measurements import BASELINE, Badge


@dataclass(frozen=True)
class KeyFigure:
    """The best value of a study, or a value that was measured afterwards.

    Attributes:
        study: name of the study.
        role: ``best`` of the search, or the role of a measurement.
        metric: name of the metric.
        value: the value.
        stderr: its standard error; None if it has none.
        badge: whether the search has seen the data.
        data: what was scored.
        dropped: what the candidate drops.
    """

    study: str
    role: str
    metric: str
    value: float
    stderr: float | None
    badge: Badge
    data: str
    dropped: str


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written.

    Attributes:
        out: folder of the report.
        page: path of the page.
        files: paths of all files.
        key_figures: the values that matter.
        notes: what a reader must know first.
        absent: titles of figures that have nothing to show, and why.
    """

    out: str
    page: str
    files: tuple[str, ...]
    key_figures: tuple[KeyFigure, ...]
    notes: tuple[str, ...]
    absent: dict[str, str] = field(metadata=json_as("not_shown"))


def write_report(report: ReportData, folder: ReportFolder, command: str) -> WrittenReport:
    """Write a report.

    Args:
        report: data of the report.
        folder: where to write it.
        command: command that makes the report again, for its page.

    Raises:
        StorageError: the folder cannot be written.
    """
    contents = contents_of(report, command)
    files = _files(contents)
    folder.write(files)
    paths = tuple(str(folder.path / name) for name in files)
    return WrittenReport(
        out=str(folder.path),
        page=str(folder.path / "index.html"),
        files=paths,
        key_figures=_key_figures(report),
        notes=contents.notes,
        absent=dict(contents.absent),
    )


def _files(contents: ReportContents) -> dict[str, Callable[[Path], None]]:
    """Return functions that write the files of a report, by name. The page is the last."""
    files: dict[str, Callable[[Path], None]] = {}
    for figure in contents.figures:
        if figure.table is not None:
            files[f"data/{figure.key}.csv"] = partial(write_csv, figure.table)
        if figure.panels:
            files[f"figures/{figure.key}.png"] = partial(write_image, figure)
    files["data/studies.csv"] = partial(write_csv, contents.studies)
    files["report.md"] = partial(write_markdown, contents)
    files["index.html"] = partial(_write_page, contents)
    return files


def _write_page(contents: ReportContents, path: Path) -> None:
    path.write_text(render_page(contents), encoding="utf-8")


def _key_figures(report: ReportData) -> tuple[KeyFigure, ...]:
    """Return the best values of the studies, and what was measured afterwards."""
    found = []
    for study in report.studies:
        # A front has no best value.
        best = None if study.is_pareto else study.best()
        if best is not None:
            error = study.error_of(best)
            metric, value = study.value_names[0], best.values[0]
            found.append(
                KeyFigure(study.name, "best", metric, value, error, "searched on", "", best.dropped)
            )
        for made in report.measurements.get(study.name, ()):
            found.append(
                KeyFigure(
                    study.name, made.role, made.metric, made.value, made.stderr, made.badge,
                    made.data, made.candidate,
                )
            )  # fmt: skip
    return tuple(found)


def written(report: WrittenReport) -> Parts:
    """Show what was written, and the key figures."""
    rows = []
    for found in report.key_figures:
        # Baselines are many. The page compares them with the winner.
        if found.role.startswith(BASELINE):
            continue
        value = f"{found.value:.4f}"
        if found.stderr:
            value += f" ± {found.stderr:.2g}"
        rows.append((found.study, found.role, found.metric, value, found.badge))
    parts: Parts = [
        table("Key figures", ("study", "candidate", "metric", "value", "data"), rows),
        *report.notes,
    ]
    for title, reason in report.absent.items():
        parts.append(f"not shown: {title}. {reason}")
    parts.append(Commands(f"wrote {len(report.files)} files; open {report.page}"))
    return parts
