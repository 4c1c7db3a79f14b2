"""Selects a study's best trials, or the best trial that meets given limits."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunesearch.errors import InputError, StudyError
from prunesearch.objectives.registry import relative_metrics, zero_metrics
from prunesearch.studies.recommendation import Recommendation, read_recommendation
from prunesearch.units import parse_size

DENSE_ATTR = "dense"
"""User attribute of a study: name of the searched metric, metrics and costs of the dense model."""
STDERR = "_stderr"
"""Suffix of a metric's name under which its standard error is stored, as in lm-eval."""


def best_trials(study: Study, count: int | None) -> Sequence[FrozenTrial]:
    """Return the study's best finished trials, the best first.

    Of equal trials the earlier comes first.

    For a Pareto study, return the trials that no other trial dominates, the best quality first.

    Args:
        study: the study.
        count: largest number of trials to return; None for all.
    """
    signs = []
    for direction in study.directions:
        signs.append(-1.0 if direction == StudyDirection.MAXIMIZE else 1.0)

    def losses(trial: FrozenTrial) -> tuple[float, ...]:
        signed = [sign * value for sign, value in zip(signs, trial.values, strict=True)]
        return (*signed, trial.number)

    ranked = sorted(_finished(study), key=losses)
    if len(signs) == 1:
        return ranked[:count]
    # Quality falls along the list, so a trial is on the front if it is smaller than all trials
    # before it.
    front: list[FrozenTrial] = []
    for trial in ranked:
        if not front or signs[1] * trial.values[1] < signs[1] * front[-1].values[1]:
            front.append(trial)
    return front[:count]


def recommendation_of(study: Study) -> Recommendation | None:
    """Return which trial of a noisy study is best; None if that was not decided."""
    return read_recommendation(study.user_attrs, len(_finished(study)))


def recommended_trials(study: Study) -> Sequence[FrozenTrial]:
    """Return the study's finished trials, the best first; the front of a Pareto study.

    Where scores are noisy, the finalists come first, in the order that was decided. All others
    follow by their measured values.
    """
    ranked = best_trials(study, None)
    decided = recommendation_of(study)
    if decided is None:
        return ranked
    place = {one.trial: index for index, one in enumerate(decided.finalists)}
    return sorted(ranked, key=lambda trial: place.get(trial.number, len(place)))


def _finished(study: Study) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in trials if trial.values]


@dataclass(frozen=True)
class SelectionCriteria:
    """The limits that a selected trial must meet.

    Attributes:
        loss: largest loss of quality. If `relative`, it is a share of the dense model's value:
            accuracy lost, or perplexity gained, divided by the dense value. Otherwise it is in the
            metric's units.
        relative: whether `loss` is a share.
        bytes: largest size.
    """

    loss: float | None = None
    relative: bool = False
    bytes: int | None = None

    @classmethod
    def parse(cls, loss: str | None, size: str | None) -> Self:
        """Parse a loss such as ``2%`` or ``0.05``, and a size such as ``100MiB``.

        Raises:
            InputError: one of them cannot be parsed.
        """
        share, relative, limit = None, False, None
        if loss is not None:
            match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", loss.strip())
            if match is None:
                raise InputError(
                    f"`max_loss` {loss!r} cannot be read: give a share (2%) or a difference (0.05)"
                )
            relative = match[2] == "%"
            share = float(match[1])
            if relative:
                share /= 100.0
        if size is not None:
            limit = parse_size(size, "`max_size`")
        return cls(share, relative, limit)


def choose(study: Study, wanted: SelectionCriteria) -> FrozenTrial:
    """Return the best trial that meets the limits.

    With a largest loss, this is the smallest model. Otherwise it is the model of best quality.
    Without limits, a study with one objective has a best trial, and a Pareto study has none. Where
    scores are noisy, quality is what was decided (see `recommended_trials`). The measured values
    decide only whether a trial is within the largest loss.

    Args:
        study: the study.
        wanted: the limits.

    Raises:
        StudyError: no trial meets the limits, or a Pareto study is given without limits.
        InputError: the largest loss is a share of a metric that is 0 for the dense model.
    """
    # 1. Without limits, take the best trial.
    name = study.study_name
    trials = recommended_trials(study)
    if not trials:
        raise StudyError(f"study {name!r} has no finished trial yet: run its search first")
    if wanted == SelectionCriteria():
        if len(study.directions) > 1:
            raise StudyError(
                f"study {name!r} has {len(trials)} best trials, one for each size: choose with "
                f"`max_loss` 2% or "
                "`max_size` 100MiB"
            )
        return trials[0]
    # 2. Keep the trials that are small enough. The best comes first.
    fitting = list(trials) if len(study.directions) == 1 else _by_quality(study)
    fitting = [trial for trial in fitting if _has_size(trial)]
    if not fitting:
        raise StudyError(f"study {name!r} does not say how large its models are")
    if wanted.bytes is not None:
        least = min(map(_size, fitting))
        fitting = [trial for trial in fitting if _size(trial) <= wanted.bytes]
        if not fitting:
            raise StudyError(
                f"no trial of study {name!r} has at most {wanted.bytes:,} bytes: the smallest has "
                f"{least:,}"
            )
    # 3. Without a largest loss, take the best quality.
    if wanted.loss is None:
        return fitting[0]
    # 4. Otherwise take the smallest model that loses little enough.
    if wanted.relative:
        _check_share(study)
    losses = {t.number: quality_lost(study, t, relative=wanted.relative) for t in fitting}
    kept = [t for t in fitting if losses[t.number] <= wanted.loss]
    if not kept:
        least_loss = min(losses.values())
        shown = f"{least_loss:.2%}" if wanted.relative else f"{least_loss:.4g}"
        raise StudyError(f"no trial of study {name!r} loses so little: the least is {shown}")
    # Of trials of one size, min takes the first, which is the best.
    return min(kept, key=_size)


def _by_quality(study: Study) -> list[FrozenTrial]:
    """Return all finished trials of a Pareto study, the best quality first."""
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0
    return sorted(_finished(study), key=lambda trial: (sign * trial.values[0], trial.number))


def _metric_of_shares(study: Study, metric: str, dense: Collection[str]) -> str:
    """Return the metric whose share of the dense value tells the loss.

    Args:
        study: the study.
        metric: the metric that was searched.
        dense: names of the dense model's metrics.
    """
    # A task may have a perplexity beside the accuracy that was searched.
    if study.directions[0] == StudyDirection.MAXIMIZE:
        return metric
    for name in relative_metrics():
        if name in dense:
            metric = name
    return metric


def _check_share(study: Study) -> None:
    """Refuse a share of a metric that is 0 for the dense model.

    Raises:
        InputError: the metric is 0.
    """
    metric, metrics = _dense(study)
    if metric is None:
        return
    metric = _metric_of_shares(study, metric, metrics)
    if metric in zero_metrics() or not _number(metrics, metric, study):
        raise InputError(
            f"study {study.study_name!r} has no share of quality: {metric} of the dense model is "
            f"0; give `max_loss` as a difference of {metric}, such as 0.05"
        )


def _size(trial: FrozenTrial) -> int:
    return int(trial.user_attrs["bytes"])


def _has_size(trial: FrozenTrial) -> bool:
    """Return whether a trial says how large its model is.

    Earlier versions did not note it for trials that were enqueued.
    """
    return isinstance(trial.user_attrs.get("bytes"), int)


def _dense(study: Study) -> tuple[str | None, Mapping[str, object]]:
    """Return the name of the searched metric and the dense model's metrics.

    The name is None if the study does not hold them yet.

    Raises:
        StudyError: what the study holds cannot be read. Anybody may write into a shared database.
    """
    try:
        dense = json.loads(study.user_attrs.get(DENSE_ATTR, "{}"))
        metric, metrics = dense.get("metric"), dense.get("metrics", {})
    except (TypeError, ValueError, AttributeError):
        raise StudyError(f"study {study.study_name!r} is damaged: {DENSE_ATTR!r}") from None
    if not isinstance(metrics, dict) or not isinstance(metric, str | None):
        raise StudyError(f"study {study.study_name!r} is damaged: {DENSE_ATTR!r}")
    return metric, metrics


def searched_metric(study: Study) -> str | None:
    """Return the name of the metric that was searched; None if the study does not hold it.

    Raises:
        StudyError: what the study holds cannot be read.
    """
    return _dense(study)[0]


def _number(values: Mapping[str, object], name: str, study: Study) -> float:
    """Return a metric that a study holds.

    Raises:
        StudyError: it is missing, or is not a number.
    """
    value = values.get(name)
    if not isinstance(value, int | float):
        raise StudyError(
            f"study {study.study_name!r} is damaged: a value of {name!r} is not a number"
        )
    return value


def quality_lost(study: Study, trial: FrozenTrial, *, relative: bool) -> float:
    """Return how much worse a trial's model is than the dense model.

    Args:
        study: the study.
        trial: the trial.
        relative: whether to return a share of the dense model's value: accuracy lost / dense
            accuracy for tasks, perplexity gained / dense perplexity for KL and perplexity (see
            `ObjectiveEntry.relative_metric`). Otherwise the difference of the metric that was
            searched is returned, in its own units.

    Raises:
        StudyError: the study does not hold the dense model's metrics, or it is damaged.
    """
    metric, metrics = _dense(study)
    if metric is None:
        raise StudyError(
            f"study {study.study_name!r} does not say how good the dense model is: run its search "
            f"again, which adds it"
        )
    if relative:
        metric = _metric_of_shares(study, metric, metrics)
    before, after = _number(metrics, metric, study), _number(trial.user_attrs, metric, study)
    lost = after - before
    if study.directions[0] == StudyDirection.MAXIMIZE:
        lost = before - after
    # A share of 0 is not defined: the difference is returned then.
    if relative and before:
        lost = lost / abs(before)
    return float(lost)


def figures(study: Study, trial: FrozenTrial) -> dict[str, dict[str, float]]:
    """Return a trial's metrics, their standard errors, and the dense model's metrics.

    Attributes about the search itself, such as its time, are left out.
    """
    dense: dict[str, float] = json.loads(study.user_attrs.get(DENSE_ATTR, "{}")).get("metrics", {})
    kept = trial.user_attrs
    names = [name for name in dense if isinstance(kept.get(name), int | float)]
    return {
        "metrics": {name: kept[name] for name in names},
        "stderr": {name: kept[name + STDERR] for name in names if name + STDERR in kept},
        "dense_metrics": {name: dense[name] for name in names},
    }
