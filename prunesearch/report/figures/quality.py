"""Quality against evaluations: the best so far of each algorithm, and all candidates.

It corresponds to Figures 5 and 8 of the paper.
"""

import math
from collections.abc import Sequence

import numpy as np

from prunesearch.analysis.intervals import ends
from prunesearch.report.figures.figure import (
    SEARCHED_ON,
    Cell,
    Figure,
    NumberTable,
    Panel,
    Rule,
    Series,
)
from prunesearch.report.figures.groups import ComparableStudies, StudyGroup, comparable
from prunesearch.report.figures.progress import Course, courses_of, mean_course
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.scales import needs_logarithm
from prunesearch.report.figures.styles import DENSE
from prunesearch.report.figures.thinning import thinned
from prunesearch.report.removals import Removal
from prunesearch.studies.study_data import StudyData, TrialData

_HEAD = (
    "study",
    "algorithm",
    "seed",
    "evaluation",
    "trial",
    "value",
    "standard error",
    "best so far",
    "data",
    "what is dropped",
)


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no study has one value and a finished trial."""
    single = [study for study in report.studies if not study.is_pareto and study.complete()]
    if not single:
        return None
    # Studies with different data or budgets have panels of their own.
    panels = []
    for together in comparable(single):
        panels.append(_panel(together))
    most = max(len(group.studies) for part in comparable(single) for group in part.groups)
    return Figure(
        key="quality",
        title="Quality against evaluations",
        caption=_caption(single, most),
        badges=(SEARCHED_ON,),
        panels=tuple(panels),
        table=_table(single),
        columns=min(2, len(panels)),
    )


def _caption(studies: Sequence[StudyData], most: int) -> str:
    # Metrics of one direction need not be named.
    words = {study.metric_label: _better(study) for study in studies}
    better = _better(studies[0])
    if len(set(words.values())) > 1:
        better = "; ".join(f"{metric}: {word}" for metric, word in sorted(words.items()))
    if most > 1:
        error = (
            "Of several studies that differ in the seed it is the mean, and the band is one "
            "standard error of the mean on each side."
        )
    else:
        error = "The band is one standard error of that candidate's score on each side."
    return (
        "Each small point is a candidate: its score, against the number of candidates that its "
        f"search had evaluated by then ({better}). The line is the best score so far. "
        f"{error} Large points are the best and the worst candidate of each algorithm."
    )


def _better(study: StudyData) -> str:
    """Return which scores of a study are better."""
    return f"{'higher' if study.more_is_better else 'lower'} is better"


def _panel(together: ComparableStudies) -> Panel:
    clouds, lines, marks = [], [], []
    for group in together.groups:
        courses = courses_of(group)
        clouds.append(_cloud(group, courses))
        lines.append(_line(group, courses))
        marks += _marks(group, courses)
    # The dense model is a straight line, where its value is known.
    first = together.first
    rules = []
    if first.value_names[0] in first.dense:
        rules.append(Rule(first.dense[first.value_names[0]], "dense model", style=DENSE))
    # A logarithmic axis has no 0, which the dense model has for some metrics.
    is_wide = _is_wide([*clouds, *lines])
    if is_wide:
        rules = [rule for rule in rules if rule.value > 0]
    return Panel(
        title=together.title,
        x_label="evaluations",
        y_label=first.metric_label,
        content=(*clouds, *lines, *marks),
        rules=tuple(rules),
        log_y=is_wide,
    )


def _cloud(group: StudyGroup, courses: Sequence[Course]) -> Series:
    """Return all candidates of a group as faint points."""
    x: list[int] = []
    y, labels, keep = [], [], []
    for course in courses:
        improvements = set(course.improvements)
        for position in course.finished:
            trial = course.trials[position]
            if position in improvements:
                keep.append(len(x))
            x.append(position + 1)
            y.append(trial.values[0])
            labels.append(_label(course.study, trial))
    # The name is that of the line, so that the legend hides both.
    points = Series(
        group.label, x, y, "points", style=group.style, labels=labels, emphasis="faint",
        in_legend=False,
    )  # fmt: skip
    return thinned(points, keep)


def _line(group: StudyGroup, courses: Sequence[Course]) -> Series:
    """Return the best so far of a group: its mean and error over studies."""
    # Take the mean of the best values so far over the studies of the group.
    values = []
    for course in courses:
        values.append(course.of_best([_value(trial) for trial in course.trials]))
    mean = mean_course(values)
    error = mean.error
    # One study has no error over studies. Its best score has one of its own.
    if len(courses) == 1:
        errors = [_error(courses[0].study, trial) for trial in courses[0].trials]
        of_best = courses[0].of_best(errors)
        error = [float(of_best[at - 1]) for at in mean.x]
    low, high = ends(mean.mean, np.nan_to_num(error))
    label = group.label
    return Series(label, mean.x, mean.mean, "step", low=low, high=high, style=group.style)


def _marks(group: StudyGroup, courses: Sequence[Course]) -> list[Series]:
    """Return the best and the worst candidate of a group."""
    # Compare the candidates of all studies of the group by their losses.
    finished: list[tuple[float, Course, int]] = []
    for course in courses:
        for position in course.finished:
            loss = course.study.losses(course.trials[position])[0]
            finished.append((loss, course, position))
    found = []
    for name, choose in (("best", min), ("worst", max)):
        _, course, position = choose(finished, key=lambda entry: entry[0])
        trial = course.trials[position]
        label = f"{name}\n{_label(course.study, trial)}"
        found.append(
            Series(
                group.label, [position + 1], [trial.values[0]], "points", style=group.style,
                labels=[label], emphasis="strong", in_legend=False,
            )
        )  # fmt: skip
    return found


def _value(trial: TrialData) -> float:
    return trial.values[0] if trial.values else math.nan


def _error(study: StudyData, trial: TrialData) -> float:
    """Return the standard error of a trial's score; NaN if it has none."""
    error = study.error_of(trial)
    return math.nan if error is None else error


def _label(study: StudyData, trial: TrialData) -> str:
    error = _error(study, trial)
    text = f"{study.name}, trial {trial.number}: {trial.values[0]:.4g}"
    if math.isfinite(error):
        text += f" ± {error:.2g}"
    return f"{text}\n{Removal.of(trial.dropped).phrase}"


def _is_wide(series: Sequence[Series]) -> bool:
    """Return whether the values need a logarithmic axis."""
    values: list[float] = []
    for drawn in series:
        values += [*drawn.y, *(drawn.low or ())]
    return needs_logarithm(values)


def _table(studies: Sequence[StudyData]) -> NumberTable:
    """Return all finished trials of all studies."""
    rows: list[tuple[Cell, ...]] = []
    for study in studies:
        course = Course.of(study)
        best = course.of_best([_value(trial) for trial in course.trials])
        for position in course.finished:
            trial = course.trials[position]
            error = _error(study, trial)
            rows.append(
                (
                    study.name,
                    study.sampler,
                    study.recipe.search.seed,
                    position + 1,
                    trial.number,
                    trial.values[0],
                    error if math.isfinite(error) else None,
                    float(best[position]),
                    SEARCHED_ON,
                    trial.dropped,
                )
            )
    return NumberTable(_HEAD, tuple(rows))


register(
    FigureEntry(
        name="quality",
        title="Quality against evaluations",
        order=10,
        figure=figure,
        absent="A study with two objectives has no single best candidate: see its front.",
    )
)
