"""Quality against size and latency: all candidates, fronts, and what was measured on other data."""

from collections.abc import Sequence

from prunesearch.analysis.intervals import quantile_of, reach_of
from prunesearch.objectives.registry import metric_labels
from prunesearch.report.figures.candidate_panels import (
    LATENCY,
    SIZE,
    hypervolume_panel,
    search_panel,
)
from prunesearch.report.figures.figure import (
    HELD_OUT,
    SEARCHED_ON,
    Cell,
    Figure,
    NumberTable,
    Panel,
    Series,
)
from prunesearch.report.figures.measured_names import latest, name_of, style_of_role
from prunesearch.report.figures.pooled import PooledStudies, pooled, short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.scales import GIB
from prunesearch.report.figures.thinning import thinning_note
from prunesearch.report.figures.units import joined
from prunesearch.studies.compared_study import metric_settings
from prunesearch.studies.measurements import BASELINE, Badge, Measurement
from prunesearch.studies.study_data import StudyData, TrialData


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no study has a finished trial."""
    names = short_names(report.studies)
    several = len(report.studies) > 1
    measured = latest(report.measurements, report.studies)
    panels: list[Panel] = []
    for group in pooled(report.studies):
        # What was measured on the search data has a place among the candidates.
        baselines = [pair for pair in measured if _is_comparable(*pair, group)]
        series = _measured_series(baselines, SIZE.label, names, several)
        panels += search_panel(group, SIZE, names, series)
        panels += search_panel(group, LATENCY, names, ())
        panels += hypervolume_panel(group, names)
    # Fresh data have axes of their own.
    panels += _measured_panels(measured, names, several)
    if not panels:
        return None
    badges: tuple[Badge, ...] = (SEARCHED_ON,)
    caption = (
        "Each small point is a candidate: its score, against its size or the latency of a prefill. "
        "The line is the best score of all candidates that are at most this large or slow. Error "
        "bars and bands are 95 % intervals."
    )
    if measured:
        badges = tuple(dict.fromkeys((SEARCHED_ON, *(made.badge for _, made in measured))))
        caption += (
            " Models that were measured on fresh data have panels of their own, because their "
            "values cannot be compared with those of the search."
        )
    if any(study.is_pareto for study in report.studies):
        caption += (
            " The hypervolume is the share of the box around all candidates that the front "
            "dominates. More is better."
        )
    return Figure(
        key="pareto",
        title="Quality against size and latency",
        caption=caption + thinning_note(panels),
        badges=badges,
        panels=tuple(panels),
        table=_table(report.studies, measured, names),
        columns=2,
    )


def _is_comparable(study: StudyData, made: Measurement, group: PooledStudies) -> bool:
    """Return whether a measurement is of a baseline on the data of a search."""
    first = group.studies[0]
    return (
        (made.data_content, made.metric) == (first.data_content, first.value_names[0])
        and metric_settings(study, made.metric) == metric_settings(first, made.metric)
        and study.model_content == first.model_content
        and (made.role.startswith(BASELINE) or made.role == "dense")
    )


def _measured_panels(
    measured: Sequence[tuple[StudyData, Measurement]], names: dict[str, str], several: bool
) -> list[Panel]:
    """Return the panels of what was measured on fresh data, one for each data and cost."""
    by_data: dict[tuple[str, str, str], list[tuple[StudyData, Measurement]]] = {}
    for study, made in measured:
        if made.badge == HELD_OUT and made.metric == study.metric:
            key = made.data_content, made.metric, metric_settings(study, made.metric)
            by_data.setdefault(key, []).append((study, made))
    panels = []
    for (_, metric, settings), found in by_data.items():
        label = joined(metric_labels().get(metric, metric), settings)
        for axis in (SIZE.label, "latency of a prefill, measured (ms)"):
            content = _measured_series(found, axis, names, several)
            # Models of one size need no axis.
            if len({x for series in content for x in series.x}) > 1:
                title = f"{found[0][1].data} ({HELD_OUT})"
                panels.append(Panel(title, axis, label, tuple(content)))
    return panels


def _measured_series(
    measured: Sequence[tuple[StudyData, Measurement]],
    axis: str,
    names: dict[str, str],
    several: bool,
) -> list[Series]:
    """Return a series for each model. A baseline with several candidates has several points."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    styles: dict[str, int] = {}
    for study, made in measured:
        x = _measured_cost(made, axis)
        if x is not None:
            name = name_of(made, names[study.name], several)
            styles[name] = style_of_role(made, study)
            rows.setdefault(name, []).append(
                (x, made.value, reach_of(made.stderr, quantile_of(made.n)))
            )
    content = []
    for name, points in rows.items():
        content.append(
            Series(
                name,
                [x for x, _, _ in points],
                [value for _, value, _ in points],
                "points",
                [value - reach for _, value, reach in points],
                [value + reach for _, value, reach in points],
                styles[name],
            )
        )
    return content


def _measured_cost(made: Measurement, axis: str) -> float | None:
    """Return the size or the latency of what was measured."""
    if axis.startswith("size"):
        return None if made.bytes is None else made.bytes / GIB
    return made.prefill_ms


def _table(
    studies: Sequence[StudyData],
    measured: Sequence[tuple[StudyData, Measurement]],
    names: dict[str, str],
) -> NumberTable:
    """Return what was measured, then all candidates, those of the fronts first."""
    rows: list[tuple[Cell, ...]] = []
    for study, made in measured:
        rows.append(
            (
                study.name,
                name_of(made, names[study.name], False),
                made.value,
                made.stderr,
                made.params,
                made.bytes,
                made.prefill_ms,
                made.prefill_error_ms,
                made.candidate,
                made.badge,
            )
        )
    # The rows of fronts come before the others, because the page shows the first rows only.
    fronts: list[tuple[Cell, ...]] = []
    others: list[tuple[Cell, ...]] = []
    for study in studies:
        on_front = {trial.number for trial in study.front()}
        for trial in study.complete():
            row = _trial_row(study, trial)
            (fronts if trial.number in on_front else others).append(row)
    head = (
        "study",
        "what",
        "value",
        "standard error",
        "parameters",
        "bytes",
        "latency (ms)",
        "standard error (ms)",
        "dropped",
        "data",
    )
    return NumberTable(head, (*rows, *fronts, *others))


def _trial_row(study: StudyData, trial: TrialData) -> tuple[Cell, ...]:
    return (
        study.name,
        f"trial {trial.number}",
        trial.values[0],
        study.error_of(trial),
        trial.figure("params"),
        trial.figure("bytes"),
        trial.figure("latency_ms"),
        None,
        trial.dropped,
        SEARCHED_ON,
    )


register(
    FigureEntry(
        name="pareto",
        title="Quality against size and latency",
        order=60,
        figure=figure,
        absent="All candidates have the same size and latency.",
    )
)
