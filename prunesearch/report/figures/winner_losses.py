"""How much worse than the dense model a winner is, on the search data and on fresh data.

The losses of documents are in the unit of the metric, except for the perplexity. A study that
searched for it is shown by the cross-entropy, its logarithm, which is the mean of these losses.
"""

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
from prunesearch.objectives.registry import metric_labels
from prunesearch.report.figures.figure import HELD_OUT, SEARCHED_ON
from prunesearch.studies.document_losses import loss_metric_of
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

    @property
    def label(self) -> str:
        """Displayed name of the metric that the losses have."""
        metric = loss_metric_of(self.study.metric)
        return metric_labels().get(metric, metric)


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
    value, error = _signed_loss(study, made.value), _loss_error(study, made.value, made.stderr)
    if dense is None:
        return WinnerLoss(value, error, made.n, paired=False)
    difference = value - _signed_loss(study, dense.value)
    # Differences on the same documents have the smallest error.
    if made.is_comparable(dense) and len(made.per_document) > 1:
        paired_error = paired_test(dense.per_document, made.per_document).stderr
        return WinnerLoss(difference, paired_error, made.n, paired=True)
    return WinnerLoss(difference, error, made.n, paired=False)


def _is_exponential(study: StudyData) -> bool:
    """Return whether the metric of a study is the exponential of its losses, as a perplexity is."""
    return loss_metric_of(study.metric) != study.metric


def _signed_loss(study: StudyData, value: float) -> float:
    """Return a value of the metric as a loss, with the sign that makes less better."""
    if _is_exponential(study):
        return math.log(value)
    return -value if study.more_is_better else value


def _loss_error(study: StudyData, value: float, error: float | None) -> float | None:
    """Return the standard error of a loss from that of the value; None if it is not known."""
    if error is None or not _is_exponential(study):
        return error
    # d log(x) = dx / x
    return error / value


def _trial_loss(study: StudyData, candidate: str) -> WinnerLoss | None:
    """Return how much worse a trial's candidate is than the dense model, as its study has it."""
    dense = study.dense.get(study.metric)
    dense_loss = 0.0 if dense is None else _signed_loss(study, dense)
    for trial in study.complete():
        value = trial.figure(study.metric)
        if trial.dropped == candidate and value is not None:
            error = _loss_error(study, value, trial.figure(f"{study.metric}_stderr"))
            return WinnerLoss(_signed_loss(study, value) - dense_loss, error, 0, paired=False)
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
            scores[trial.dropped] = _signed_loss(study, value)
    if len(scores) < 2:
        return None
    # Two models with equal noise make the difference.
    noise = search.stderr / math.sqrt(2)
    return expected_bias(len(scores), noise, true_spread(list(scores.values()), noise))
