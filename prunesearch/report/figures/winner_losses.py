"""How much worse than the dense model a winner is, on the search data and on fresh data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunesearch.analysis.paired import paired_test
from prunesearch.analysis.selection_bias import (
    SelectionBias,
    expected_bias,
    selection_bias,
    true_spread,
)
from prunesearch.report.figures.figure import HELD_OUT, SEARCHED_ON
from prunesearch.studies.measurements import Badge, Measurement
from prunesearch.studies.study_data import StudyData


@dataclass(frozen=True)
class WinnerLoss:
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
class WinnerOnBothData:
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
    search: WinnerLoss
    fresh: WinnerLoss
    bias: SelectionBias
    expected: float | None


def winner_of(study: StudyData, measurements: Sequence[Measurement]) -> WinnerOnBothData | None:
    """Return a study's winner on both data; None if it was not measured on fresh data."""
    # 1. The latest measurement on fresh data counts.
    fresh = _found(measurements, "winner", HELD_OUT, study)
    if fresh is None:
        return None
    fresh_loss = _loss(study, fresh, _found(measurements, "dense", HELD_OUT, study, fresh))
    # 2. On the search data it may be measured again; if not, the trial has its value.
    search_loss: WinnerLoss | None = None
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
    return WinnerOnBothData(
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


def _loss(study: StudyData, made: Measurement, dense: Measurement | None) -> WinnerLoss:
    """Return how much worse a measured candidate is than the dense model."""
    sign = -1.0 if study.more_is_better else 1.0
    if dense is None:
        return WinnerLoss(sign * made.value, made.stderr, made.n, paired=False)
    difference = sign * (made.value - dense.value)
    # Differences on the same documents have the smallest error.
    if made.is_comparable(dense) and len(made.per_document) > 1:
        error = paired_test(dense.per_document, made.per_document).stderr
        return WinnerLoss(difference, error, made.n, paired=True)
    return WinnerLoss(difference, made.stderr, made.n, paired=False)


def _trial_loss(study: StudyData, candidate: str) -> WinnerLoss | None:
    """Return how much worse a trial's candidate is than the dense model, as its study has it."""
    sign = -1.0 if study.more_is_better else 1.0
    for trial in study.complete():
        value = trial.figure(study.metric)
        if trial.dropped == candidate and value is not None:
            dense = study.dense.get(study.metric, 0.0)
            error = trial.figure(f"{study.metric}_stderr")
            return WinnerLoss(sign * (value - dense), error, 0, paired=False)
    return None


def _expected(study: StudyData, search: WinnerLoss) -> float | None:
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
