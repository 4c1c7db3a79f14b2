"""Winners on the data that they were searched on, and on fresh data.

Of many noisy scores the best is partly luck, so a winner does worse on data that no candidate was
compared on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunesearch.analysis.intervals import NORMAL_REACH, ends
from prunesearch.analysis.paired import paired_test
from prunesearch.analysis.selection_bias import (
    SelectionBias,
    expected_bias,
    mean_bias,
    selection_bias,
    true_spread,
)
from prunesearch.report.figures.figure import (
    HELD_OUT,
    SEARCHED_ON,
    Cell,
    Figure,
    NumberTable,
    Panel,
    Rule,
    Series,
)
from prunesearch.report.figures.pooled import short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.styles import NEUTRAL, numbered, style_of
from prunesearch.studies.measurements import Badge, Measurement
from prunesearch.studies.study_data import StudyData

_HEAD = (
    "study",
    "algorithm",
    "winner",
    "loss on search data",
    "standard error",
    "loss on fresh data",
    "standard error (fresh)",
    "bias",
    "standard error of the bias",
    "95 % from",
    "to",
    "expected bias",
    "documents (fresh)",
)


@dataclass(frozen=True)
class _Loss:
    """How much worse a winner is than the dense model on the same data.

    Attributes:
        value: the difference; for a metric where more is better with its sign turned.
        stderr: its standard error; None if it is not known.
        n: number of documents.
        paired: whether the error is that of differences on the same documents.
    """

    value: float
    stderr: float | None
    n: int
    paired: bool


@dataclass(frozen=True)
class _Winner:
    """A winner on both data.

    Attributes:
        study: the study.
        candidate: what it drops.
        search, fresh: its losses.
        bias: the difference.
        expected: bias that the noise of the scores lets expect; None if the noise is not known.
    """

    study: StudyData
    candidate: str
    search: _Loss
    fresh: _Loss
    bias: SelectionBias
    expected: float | None


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no winner was measured on fresh data."""
    winners = []
    for study in report.studies:
        winner = _winner(study, report.measurements.get(study.name, ()))
        if winner is not None:
            winners.append(winner)
    if not winners:
        return None
    names = short_names(report.studies)
    # Losses of different metrics have axes of their own.
    by_label: dict[str, list[_Winner]] = {}
    for winner in winners:
        by_label.setdefault(winner.study.metric_label, []).append(winner)
    panels: list[Panel] = []
    for same in by_label.values():
        panels += [_loss_panel(same, names), _bias_panel(same)]
    return Figure(
        key="selection-bias",
        title="Selection bias",
        caption=(
            "How much worse each winner is than the dense model: on the data that it was searched "
            "on, and on fresh data, with 95 % intervals. A bias above zero means that the search "
            "data flatter the winner."
        ),
        badges=(SEARCHED_ON, HELD_OUT),
        panels=tuple(panels),
        table=NumberTable(_HEAD, tuple(_row(winner) for winner in winners)),
        columns=2,
    )


def _winner(study: StudyData, measurements: Sequence[Measurement]) -> _Winner | None:
    """Return a study's winner on both data; None if it was not measured on fresh data."""
    # 1. The latest measurement on fresh data counts.
    fresh = _found(measurements, "winner", HELD_OUT, study)
    if fresh is None:
        return None
    fresh_loss = _loss(study, fresh, _found(measurements, "dense", HELD_OUT, study, fresh))
    # 2. On the search data it may be measured again; if not, the trial has its value.
    search_loss: _Loss | None = None
    again = _found(measurements, "winner", SEARCHED_ON, study, candidate=fresh.candidate)
    if again is not None:
        search_loss = _loss(study, again, _found(measurements, "dense", SEARCHED_ON, study, again))
    else:
        search_loss = _trial_loss(study, fresh.candidate)
    if search_loss is None:
        return None
    bias = selection_bias(
        search_loss.value, search_loss.stderr, fresh_loss.value, fresh_loss.stderr
    )
    return _Winner(
        study, fresh.candidate, search_loss, fresh_loss, bias, _expected(study, search_loss)
    )


def _found(
    measurements: Sequence[Measurement],
    role: str,
    badge: Badge,
    study: StudyData,
    beside: Measurement | None = None,
    candidate: str = "",
) -> Measurement | None:
    """Return the latest measurement of the searched metric that fits; None without.

    Args:
        measurements: measurements of the study.
        role: role of the measurement.
        badge: whether the search has seen the data.
        study: the study.
        beside: measurement on the same data; None for any data.
        candidate: what the candidate drops; empty for any.
    """
    latest: Measurement | None = None
    for made in measurements:
        fits = (made.role, made.badge, made.metric) == (role, badge, study.metric)
        fits = fits and (beside is None or made.data_content == beside.data_content)
        fits = fits and (not candidate or made.candidate == candidate)
        if fits and (latest is None or made.made >= latest.made):
            latest = made
    return latest


def _loss(study: StudyData, made: Measurement, dense: Measurement | None) -> _Loss:
    """Return how much worse a measured candidate is than the dense model."""
    sign = -1.0 if study.more_is_better else 1.0
    if dense is None:
        return _Loss(sign * made.value, made.stderr, made.n, paired=False)
    difference = sign * (made.value - dense.value)
    # Differences on the same documents have the smallest error.
    if made.is_comparable(dense) and len(made.per_document) > 1:
        error = paired_test(dense.per_document, made.per_document).stderr
        return _Loss(difference, error, made.n, paired=True)
    return _Loss(difference, made.stderr, made.n, paired=False)


def _trial_loss(study: StudyData, candidate: str) -> _Loss | None:
    """Return how much worse a trial's candidate is than the dense model, as its study has it."""
    sign = -1.0 if study.more_is_better else 1.0
    for trial in study.complete():
        value = trial.figure(study.metric)
        if trial.dropped == candidate and value is not None:
            dense = study.dense.get(study.metric, 0.0)
            error = trial.figure(f"{study.metric}_stderr")
            return _Loss(sign * (value - dense), error, 0, paired=False)
    return None


def _expected(study: StudyData, search: _Loss) -> float | None:
    """Return the bias to expect of the best of a study's candidates.

    The noise of a score is estimated from differences on the same documents, because what all
    candidates share does not decide which wins.
    """
    if not search.paired or search.stderr is None:
        return None
    scores: dict[str, float] = {}
    for trial in study.complete():
        value = trial.figure(study.metric)
        if value is not None:
            scores[trial.dropped] = value
    if len(scores) < 2:
        return None
    # Two models with equal noise make the difference.
    noise = search.stderr / math.sqrt(2)
    return expected_bias(len(scores), noise, true_spread(list(scores.values()), noise))


def _loss_panel(winners: Sequence[_Winner], names: dict[str, str]) -> Panel:
    """Return the panel of both losses of each winner."""
    places = [names[winner.study.name] for winner in winners]
    content = []
    for index, (name, losses) in enumerate(
        (
            ("search data (searched on)", [winner.search for winner in winners]),
            ("fresh data (held out)", [winner.fresh for winner in winners]),
        )
    ):
        y = [loss.value for loss in losses]
        low, high = ends(y, [NORMAL_REACH * (loss.stderr or 0.0) for loss in losses])
        content.append(Series(name, places, y, "bars", low, high, numbered(index)))
    return Panel(
        "Loss of the winners",
        "study",
        f"above the dense model, {winners[0].study.metric_label}",
        tuple(content),
        categories=tuple(places),
    )


def _bias_panel(winners: Sequence[_Winner]) -> Panel:
    """Return the panel of the bias of each algorithm, a mean if it has several studies."""
    samplers: dict[str, list[SelectionBias]] = {}
    for winner in winners:
        samplers.setdefault(winner.study.sampler, []).append(winner.bias)
    content = []
    for sampler, biases in samplers.items():
        y, low, high = biases[0].bias, biases[0].low, biases[0].high
        # Several studies have a mean, whose error is that over studies.
        if len(biases) > 1:
            mean = mean_bias([bias.bias for bias in biases])
            y, low, high = mean.mean, mean.low, mean.high
        content.append(
            Series(
                sampler,
                [sampler],
                [y],
                "points",
                [low],
                [high],
                style_of(sampler),
                in_legend=False,
            )
        )
    return Panel(
        "Bias of each algorithm",
        "algorithm",
        f"fresh \u2212 search data, {winners[0].study.metric_label}",
        tuple(content),
        rules=(Rule(0.0, "no bias", style=NEUTRAL),),
        categories=tuple(samplers),
    )


def _row(winner: _Winner) -> tuple[Cell, ...]:
    bias = winner.bias
    known = math.isfinite(bias.stderr)
    return (
        winner.study.name,
        winner.study.sampler,
        winner.candidate,
        winner.search.value,
        winner.search.stderr,
        winner.fresh.value,
        winner.fresh.stderr,
        bias.bias,
        bias.stderr if known else None,
        bias.low if known else None,
        bias.high if known else None,
        winner.expected,
        winner.fresh.n,
    )


register(
    FigureEntry(
        name="selection-bias",
        title="Selection bias",
        order=65,
        figure=figure,
        absent=("No winner was measured on fresh data: the option --score does it."),
    )
)
