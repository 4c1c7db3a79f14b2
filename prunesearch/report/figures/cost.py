"""What the searches cost: time of scoring, and the replies of a language model."""

from dataclasses import dataclass

import numpy as np

from prunesearch.analysis.intervals import half_width, standard_error
from prunesearch.report.figures.figure import Cell, Figure, NumberTable, Panel, Series
from prunesearch.report.figures.pooled import short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.styles import numbered, style_of
from prunesearch.studies.search_cost import SearchCost
from prunesearch.studies.sources import ATTRIBUTE, Replies
from prunesearch.studies.study_data import StudyData, TrialData


@dataclass(frozen=True)
class _Cost:
    """What a study cost.

    Attributes:
        study: the study.
        finished: number of finished trials, partial subsets and lost races included.
        failed: number of failed trials.
        search: the time of scoring, and what the cache saved.
        replies: counts of a language model's replies; None without.
    """

    study: StudyData
    finished: int
    failed: int
    search: SearchCost
    replies: Replies | None

    @property
    def mean(self) -> float:
        """Mean seconds of an evaluation; NaN without any."""
        return float(np.mean(self.search.second_N)) if self.search.second_N else float("nan")

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN with fewer than two evaluations."""
        return standard_error(self.search.second_N)


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no study has a finished trial."""
    names = short_names(report.studies)
    costs = []
    for study in report.studies:
        cost = _cost(study)
        if cost.finished:
            costs.append(cost)
    if not costs:
        return None
    # Show time always, and tokens if a language model was asked.
    panels = [*_time_panels(costs, names), *_reply_panels(costs, names)]
    return Figure(
        key="cost",
        title="Cost of the searches",
        caption=(
            "A bar is the time in seconds that a study spent on scoring candidates. A result that "
            "was found in the cache costs nothing. A point is the mean time of an evaluation that "
            "was computed, and its error bar is the 95 % interval of the mean."
        ),
        badges=(),
        panels=tuple(panels),
        table=_table(costs),
        columns=2,
    )


def _cost(study: StudyData) -> _Cost:
    """Add up what a study cost."""
    failed, finished = 0, 0
    replies: Replies | None = None
    for trial in study.trials:
        finished += trial.state in ("complete", "pruned")
        failed += trial.state == "fail"
        # One trial of a generation carries the replies of all.
        found = _replies(trial)
        if found is not None:
            replies = found if replies is None else replies.plus(found)
    return _Cost(study, finished, failed, SearchCost.of(study), replies)


def _replies(trial: TrialData) -> Replies | None:
    """Return the counts of replies that are stored with a trial; None if a model proposed none."""
    facts = trial.attributes.get(ATTRIBUTE)
    stored = facts.get("replies") if isinstance(facts, dict) else None
    return Replies.from_stored(stored) if isinstance(stored, dict) else None


def _time_panels(costs: list[_Cost], names: dict[str, str]) -> list[Panel]:
    """Return the panels of the total time and of the time of an evaluation."""
    spent, mean = [], []
    for cost in costs:
        name, style = names[cost.study.name], style_of(cost.study.sampler)
        total = cost.search.seconds
        spent.append(Series(name, [name], [total], "bars", style=style, in_legend=False))
        error = cost.error * half_width(len(cost.search.second_N))
        mean.append(
            Series(
                name,
                [name],
                [cost.mean],
                "points",
                low=[cost.mean - error],
                high=[cost.mean + error],
                style=style,
                in_legend=False,
            )
        )
    # Both panels have the studies in the same order.
    categories = tuple(names[cost.study.name] for cost in costs)
    return [
        Panel(
            "Time of scoring",
            "study",
            "time (s)",
            tuple(spent),
            bars="stacked",
            categories=categories,
        ),
        Panel(
            "Time of an evaluation",
            "study",
            "time of an evaluation (s)",
            tuple(mean),
            categories=categories,
        ),
    ]


def _reply_panels(costs: list[_Cost], names: dict[str, str]) -> list[Panel]:
    """Return the panel of a language model's tokens; none if no model proposed candidates."""
    asked = [cost for cost in costs if cost.replies is not None]
    if not asked:
        return []
    places = [names[cost.study.name] for cost in asked]
    read, written = [], []
    for cost in asked:
        assert cost.replies is not None
        read.append(float(cost.replies.prompt_tokens))
        written.append(float(cost.replies.completion_tokens))
    return [
        Panel(
            "Tokens of the language model",
            "study",
            "tokens",
            (
                Series("read", places, read, "bars", style=numbered(0)),
                Series("written", places, written, "bars", style=numbered(1)),
            ),
            categories=tuple(places),
        )
    ]


def _table(costs: list[_Cost]) -> NumberTable:
    """Return all numbers. The columns of the language model are there if one was asked."""
    head = [
        "study",
        "finished trials",
        "failed",
        "computed",
        "scoring (s)",
        "saved by the cache (s)",
        "first start to last end (s)",
        "mean evaluation (s)",
        "standard error (s)",
    ]
    asked = any(cost.replies is not None for cost in costs)
    if asked:
        head += ["replies", "recorded before", "tokens read", "tokens written", "replies (s)"]
        head += ["price"]
    rows = []
    for cost in costs:
        row: list[Cell] = [
            cost.study.name,
            cost.finished,
            cost.failed,
            cost.search.computed,
            cost.search.seconds,
            cost.search.saved_seconds,
            cost.search.span,
            cost.mean if cost.search.second_N else None,
            cost.error if len(cost.search.second_N) > 1 else None,
        ]
        if asked:
            row += _reply_cells(cost.replies)
        rows.append(tuple(row))
    return NumberTable(tuple(head), tuple(rows))


def _reply_cells(replies: Replies | None) -> list[Cell]:
    if replies is None:
        return [None] * 6
    return [
        replies.calls,
        replies.replayed,
        replies.prompt_tokens,
        replies.completion_tokens,
        replies.seconds,
        replies.cost,
    ]


register(
    FigureEntry(
        name="cost",
        title="Cost of the searches",
        order=90,
        figure=figure,
        absent="No study has a finished trial.",
    )
)
