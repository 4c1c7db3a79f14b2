"""Where the best candidate of each study came from: the trials that it was derived from."""

from prunesearch.report.figures.figure import (
    SEARCHED_ON,
    Cell,
    Figure,
    Heatmap,
    NumberTable,
    Panel,
    Series,
)
from prunesearch.report.figures.pooled import PooledStudies, pooled, short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.styles import style_of
from prunesearch.studies.ancestry import Ancestor, ancestry
from prunesearch.studies.study_data import StudyData, TrialData

_MOST_MAPS = 4  # studies whose steps are drawn layer by layer
_MOST_SERIES = 8  # studies whose steps are drawn as a line
_MOST_STEPS = 24  # steps in a map; the last ones are drawn

Lineage = tuple[StudyData, tuple[Ancestor, ...]]


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no study has a finished trial."""
    names = short_names(report.studies)
    panels: list[Panel] = []
    lineages: list[Lineage] = []
    for group in pooled(report.studies):
        found = []
        for study in group.studies:
            best = study.winner()
            if best is not None:
                found.append((study, ancestry(study, best)))
        panels.append(_value_panel(group, found, names))
        # A line of one step has nothing to show layer by layer.
        for study, steps in found[:_MOST_MAPS]:
            if len(steps) > 1:
                panels.append(_map_panel(study, steps, names[study.name]))
        lineages += found
    if not lineages:
        return None
    return Figure(
        key="lineage",
        title="Lineage of the best candidates",
        caption=(
            "A line joins the trials that the best candidate of a study was derived from, up to "
            "the best candidate itself, with the value of each. In a map, a row is one of these "
            "trials, and the colour is the share of each layer that it removes. If a candidate "
            "was made from several trials, the closest one is followed. A single step means that "
            "the candidate was drawn from no other."
        ),
        badges=(SEARCHED_ON,),
        panels=tuple(panels),
        table=_table(lineages),
        columns=2,
    )


def _value_panel(group: PooledStudies, lineages: list[Lineage], names: dict[str, str]) -> Panel:
    """Return the panel with the value of each step."""
    content = []
    for study, steps in lineages[:_MOST_SERIES]:
        labels = []
        for step in steps:
            labels.append(f"trial {step.trial.number}: {_change(step)}")
        content.append(
            Series(
                names[study.name],
                [float(step.trial.number) for step in steps],
                [_value(study, step.trial) for step in steps],
                "line",
                style=style_of(study.sampler),
                labels=labels,
                emphasis="strong",
            )
        )
    title = "Value of each step"
    if group.title:
        title += f": {group.title}"
    return Panel(title, "number of the trial", group.value_label, tuple(content))


def _value(study: StudyData, trial: TrialData) -> float:
    """Return the value of a trial; for a partial subset the metric, which its study was not
    told.
    """
    if trial.values:
        return trial.values[0]
    value = trial.figure(study.metric)
    return float("nan") if value is None else value


def _change(step: Ancestor) -> str:
    """Return what a step changed, such as ``+4 -7``; for the first step what it drops."""
    if not step.origin:
        return f"drops {step.trial.dropped}"
    words = [f"+{unit}" for unit in step.added]
    words += [f"\u2212{unit}" for unit in step.restored]
    return " ".join(words) or "no change"


def _map_panel(study: StudyData, steps: tuple[Ancestor, ...], name: str) -> Panel:
    """Return the map of what each step dropped."""
    steps = steps[-_MOST_STEPS:]
    share_TU = study.dropped_shares([step.trial for step in steps])
    # A row for each step, the first trial at the top.
    rows = []
    for step in steps:
        rows.append(f"trial {step.trial.number}")
    label = "share removed"
    heatmap = Heatmap(list(study.units), rows, share_TU.tolist(), label)
    return Panel(f"Dropped in each step: {name}", "layer", "", (heatmap,))


def _table(lineages: list[Lineage]) -> NumberTable:
    rows: list[tuple[Cell, ...]] = []
    for study, steps in lineages:
        for place, step in enumerate(steps):
            parent = steps[place - 1].trial.number if place else None
            rows.append(
                (
                    study.name,
                    step.trial.number,
                    _value(study, step.trial),
                    parent,
                    step.origin or None,
                    ", ".join(step.added) or None,
                    ", ".join(step.restored) or None,
                    step.trial.dropped,
                    SEARCHED_ON,
                )
            )
    head = (
        "study",
        "trial",
        "value",
        "derived from",
        "which was the",
        "removed in addition",
        "restored",
        "all removed",
        "data",
    )
    return NumberTable(head, tuple(rows))


register(
    FigureEntry(
        name="lineage",
        title="Lineage of the best candidates",
        order=70,
        figure=figure,
        absent="No study has a finished trial.",
    )
)
