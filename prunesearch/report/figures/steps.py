"""Size and latency against evaluations: what the best candidate so far costs.

It corresponds to Figures 6 and 9 of the paper, which show one run of the model for each step. Here
the size is exact, the predicted latency comes from the latencies of the blocks, and the measured
latency is a median of several runs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from prunesearch.analysis.intervals import ends
from prunesearch.report.figures.figure import Cell, Figure, NumberTable, Panel, Rule, Series
from prunesearch.report.figures.groups import ComparableStudies, StudyGroup, comparable
from prunesearch.report.figures.progress import Course, courses_of, mean_course
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.scales import GIB
from prunesearch.report.figures.styles import DENSE
from prunesearch.report.figures.thinning import thinned
from prunesearch.report.removals import Removal
from prunesearch.studies.measurements import Measurement, of_role
from prunesearch.studies.study_data import StudyData, TrialData

_CLOSE = 0.8  # least share of the largest cost, from which costs differ little
_EQUAL = 0.999  # the same, from which they do not differ
Cost = Callable[[TrialData], float]
_HEAD = (
    "study",
    "algorithm",
    "evaluation",
    "trial",
    "size (bytes)",
    "predicted latency (ms)",
    "measured latency (ms)",
    "runs",
    "best so far",
    "what is dropped",
)


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no study has one value and candidates with a cost."""
    single = [study for study in report.studies if not study.is_pareto and study.complete()]
    panels: list[Panel] = []
    for together in comparable(single):
        panels += _panels(together, report)
    if not panels:
        return None
    return Figure(
        key="steps",
        title="Size and latency against evaluations",
        caption=_caption(panels),
        badges=(),
        panels=tuple(panels),
        table=_table(single, report),
        columns=len(panels) // len(comparable(single)) if len(panels) > 1 else 1,
    )


def _caption(panels: Sequence[Panel]) -> str:
    text = (
        "Each small point is a candidate: its size or latency, against the number of candidates "
        "that its search had evaluated by then. The line is the cost of the best candidate so far; "
        "the band of a mean over studies is one standard error on each side. The predicted latency "
        "of a prefill is the sum of the latencies of the blocks that are kept."
    )
    if any(panel.y_label.startswith("measured") for panel in panels):
        text += (
            " The measured latency is the median of several runs: of the winner, and of the dense "
            "model as a dotted line."
        )
    if any(_is_constant(panel) for panel in panels):
        text += " A line that is level means that all candidates cost the same, within 0.1 %."
    return text


def _is_constant(panel: Panel) -> bool:
    """Return whether all candidates of a panel cost nearly the same."""
    values = [value for series in panel.series for value in series.y if math.isfinite(value)]
    return bool(values) and min(values) >= _EQUAL * max(values)


def _panels(together: ComparableStudies, report: ReportData) -> list[Panel]:
    """Return the panels of comparable studies: size, predicted and measured latency."""
    found = []
    # 1. Predicted costs are known of every candidate.
    dense_ms = together.first.latency
    for y_label, cost, dense in (
        ("size of the weights (GiB)", _size, _dense_size(together, report)),
        ("predicted latency (ms)", _latency, dense_ms.dense_ms if dense_ms else None),
    ):
        series: list[Series] = []
        for group in together.groups:
            series += _series(group, cost)
        if series:
            rules = () if dense is None else (Rule(dense, "dense model", style=DENSE),)
            found.append(
                Panel(
                    together.title, "evaluations", y_label, tuple(series), rules,
                    y_range=_from_zero(series, rules),
                )
            )  # fmt: skip
    # 2. Measured latencies are known of the winner and the dense model only.
    measured = _measured(together, report)
    if measured is not None:
        found.append(measured)
    return found


def _from_zero(series: Sequence[Series], rules: Sequence[Rule]) -> tuple[float, float] | None:
    """Return an axis that begins at 0, so that shares can be seen; None for costs that differ
    little, whose differences it would hide.
    """
    values = [value for drawn in series for value in drawn.y if math.isfinite(value)]
    least, largest = min(values), max(values)
    # Costs that differ little need an axis of their own range.
    if _CLOSE * largest < least < _EQUAL * largest:
        return None
    return 0.0, 1.08 * max(largest, *(rule.value for rule in rules), 0.0)


def _size(trial: TrialData) -> float:
    size = trial.figure("bytes")
    return math.nan if size is None else size / GIB


def _latency(trial: TrialData) -> float:
    latency = trial.figure("latency_ms")
    return math.nan if latency is None else latency


def _dense_size(together: ComparableStudies, report: ReportData) -> float | None:
    """Return the size of the dense model in GiB; None if no study knows it."""
    for study in together.studies:
        if "bytes" in study.dense_costs:
            return study.dense_costs["bytes"] / GIB
    # Studies of earlier versions know it if a later stage measured the model.
    for study in together.studies:
        for measurement in of_role(report.measurements.get(study.name, ()), "dense"):
            if measurement.bytes is not None:
                return measurement.bytes / GIB
    return None


def _series(group: StudyGroup, cost: Cost) -> list[Series]:
    """Return all candidates of a group and its best so far; empty if their cost is not known."""
    # 1. Collect all candidates. The best so far are kept when the series is thinned.
    x: list[int] = []
    y, labels, keep, values = [], [], [], []
    for course in courses_of(group):
        improvements = set(course.improvements)
        for position in course.finished:
            trial = course.trials[position]
            if position in improvements:
                keep.append(len(x))
            x.append(position + 1)
            y.append(cost(trial))
            labels.append(
                f"{course.study.name}, trial {trial.number}: {cost(trial):.5g}\n"
                f"{Removal.of(trial.dropped).phrase}"
            )
        values.append(course.of_best([cost(trial) for trial in course.trials]))
    # 2. Without a known cost there is nothing to draw.
    if not any(map(math.isfinite, y)):
        return []
    cloud = Series(
        group.label, x, y, "points", style=group.style, labels=labels, emphasis="faint",
        in_legend=False,
    )  # fmt: skip
    mean = mean_course(values)
    line = Series(group.label, mean.x, mean.mean, "step", style=group.style)
    # The cost of a single study is exact.
    if len(values) > 1:
        low, high = ends(mean.mean, mean.error)
        line = replace(line, low=low, high=high)
    return [thinned(cloud, keep), line]


def _measured(together: ComparableStudies, report: ReportData) -> Panel | None:
    """Return the panel of measured latencies; None if nothing was measured."""
    series: list[Series] = []
    rules: list[Rule] = []
    for group in together.groups:
        x, y, labels = [], [], []
        for course in courses_of(group):
            # A winner stands at the evaluation that found it.
            winner = _winner(report, course.study)
            if winner is None or winner.prefill_ms is None:
                continue
            position = _found_at(course, winner.candidate)
            if position is None:
                continue
            x.append(position + 1)
            y.append(winner.prefill_ms)
            labels.append(
                f"{course.study.name}: {winner.prefill_ms:.5g} ms, median of "
                f"{winner.latency_runs} runs on {winner.machine}"
            )
        if x:
            series.append(
                Series(
                    group.label, x, y, "points", style=group.style, labels=labels,
                    emphasis="strong",
                )
            )  # fmt: skip
    if not series:
        return None
    for study in together.studies:
        for dense in of_role(report.measurements.get(study.name, ()), "dense"):
            if dense.prefill_ms is not None and not rules:
                rules.append(Rule(dense.prefill_ms, "dense model", style=DENSE))
    return Panel(
        together.title, "evaluations", "measured latency (ms)", tuple(series), tuple(rules),
        y_range=_from_zero(series, rules),
    )  # fmt: skip


def _found_at(course: Course, candidate: str) -> int | None:
    """Return the position of the first finished trial with a candidate; None without."""
    for position in course.finished:
        if course.trials[position].dropped == candidate:
            return position
    return None


def _winner(report: ReportData, study: StudyData) -> Measurement | None:
    """Return a measurement of the winner with a latency; None without."""
    for measurement in of_role(report.measurements.get(study.name, ()), "winner"):
        if measurement.prefill_ms is not None:
            return measurement
    return None


def _table(studies: Sequence[StudyData], report: ReportData) -> NumberTable:
    """Return the costs of all finished trials of all studies."""
    rows: list[tuple[Cell, ...]] = []
    for study in studies:
        course, winner = Course.of(study), _winner(report, study)
        improvements = set(course.improvements)
        for position in course.finished:
            trial = course.trials[position]
            # A measured latency belongs to the trials that propose the measured candidate.
            is_winner = winner is not None and winner.candidate == trial.dropped
            rows.append(
                (
                    study.name,
                    study.sampler,
                    position + 1,
                    trial.number,
                    trial.figure("bytes"),
                    trial.figure("latency_ms"),
                    winner.prefill_ms if winner is not None and is_winner else None,
                    winner.latency_runs if winner is not None and is_winner else None,
                    "yes" if position in improvements else "no",
                    trial.dropped,
                )
            )
    return NumberTable(_HEAD, tuple(rows))


register(
    FigureEntry(
        name="steps",
        title="Size and latency against evaluations",
        order=20,
        figure=figure,
        absent="A study with two objectives has no single best candidate: see its front.",
    )
)
