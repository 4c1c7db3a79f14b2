"""Which of a study's trials is the best, or the best that keeps what is wanted."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunesearch.errors import InputError, StudyError
from prunesearch.quantity import parse_size

DENSE_ATTR = "dense"
"""User attribute of a study: the dense model's metrics, and which of them is searched."""
STDERR = "_stderr"
"""What the name of a metric ends with where its standard error is kept, as in lm-eval."""


def best_trials(study: Study, count: int | None) -> Sequence[FrozenTrial]:
    """The study's best finished trials, best first; ties go to the earlier one.

    Of a Pareto study: the trials that no other dominates, the best quality first.
    """
    done = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.values]
    signs = [-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in study.directions]
    ranked = sorted(done, key=lambda t: (*(s * v for s, v in zip(signs, t.values, strict=True)), t.number))
    if len(signs) == 1:
        return ranked[:count]
    front: list[FrozenTrial] = []
    for trial in ranked:  # quality falls along the list, so a trial is worth keeping if it is smaller than all before
        if not front or signs[1] * trial.values[1] < signs[1] * front[-1].values[1]:
            front.append(trial)
    return front[:count]


@dataclass(frozen=True)
class Wanted:
    """What a chosen trial must keep.

    Attributes:
        loss: largest loss of quality; a share of the dense model's (accuracy lost, or perplexity gained, divided by the
            dense one) where `relative`, else in the metric's own units.
        bytes: largest size.
    """

    loss: float | None = None
    relative: bool = False
    bytes: int | None = None

    @classmethod
    def parse(cls, loss: str | None, size: str | None) -> Self:
        """Read ``2%`` or ``0.05``, and ``100MiB``.

        Raises:
            InputError: either cannot be read.
        """
        share, relative, limit = None, False, None
        if loss is not None:
            match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", loss.strip())
            if match is None:
                raise InputError(f"--max-loss {loss!r} cannot be read: give a share (2%) or a difference (0.05)")
            relative = match[2] == "%"
            share = float(match[1]) / (100.0 if relative else 1.0)
        if size is not None:
            limit = parse_size(size, "--max-size")
        return cls(share, relative, limit)


def choose(study: Study, wanted: Wanted) -> FrozenTrial:
    """The best trial that keeps what is wanted: the smallest under a largest loss, else the best quality.

    Without anything wanted, a study with one objective has a best trial; a Pareto study has none.

    Raises:
        StudyError: no trial does, or nothing says which member of a front is meant.
    """
    name = study.study_name
    trials = best_trials(study, None)
    if not trials:
        raise StudyError(f"study {name!r} has no finished trial yet: run its search first")
    if wanted == Wanted():
        if len(study.directions) > 1:
            raise StudyError(
                f"study {name!r} has {len(trials)} best trials, one for each size: choose with --max-loss 2% or "
                "--max-size 100MiB"
            )
        return trials[0]
    trials = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.values]
    fitting = [t for t in trials if wanted.bytes is None or t.user_attrs.get("bytes", 0) <= wanted.bytes]
    if not fitting:
        least = min(t.user_attrs.get("bytes", 0) for t in trials)
        raise StudyError(f"no trial of study {name!r} has at most {wanted.bytes:,} bytes: the smallest has {least:,}")
    if wanted.loss is None:
        sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0
        return min(fitting, key=lambda t: (sign * t.values[0], t.number))
    losses = {t.number: quality_lost(study, t, relative=wanted.relative) for t in fitting}
    kept = [t for t in fitting if losses[t.number] <= wanted.loss]
    if not kept:
        least_loss = min(losses.values())
        shown = f"{least_loss:.2%}" if wanted.relative else f"{least_loss:.4g}"
        raise StudyError(f"no trial of study {name!r} loses so little: the least is {shown}")
    return min(kept, key=lambda t: (t.user_attrs.get("bytes", 0), losses[t.number], t.number))


def quality_lost(study: Study, trial: FrozenTrial, *, relative: bool) -> float:
    """How much worse a trial's model is than the dense one.

    Relative: accuracy lost / dense accuracy for tasks; perplexity gained / dense perplexity for KL and perplexity. Else
    the difference of the metric that was searched, in its own units.

    Raises:
        StudyError: the study does not hold the dense model's metrics.
    """
    dense = json.loads(study.user_attrs.get(DENSE_ATTR, "{}"))
    metric = dense.get("metric")
    if metric is None:
        raise StudyError(
            f"study {study.study_name!r} does not say how good the dense model is: run its search again, which adds it"
        )
    if relative and "perplexity" in dense["metrics"]:
        metric = "perplexity"
    before, after = dense["metrics"][metric], trial.user_attrs[metric]
    lost = before - after if study.directions[0] == StudyDirection.MAXIMIZE else after - before
    return float(lost / abs(before)) if relative and before else float(lost)


def figures(study: Study, trial: FrozenTrial) -> dict[str, dict[str, float]]:
    """A trial's metrics, their standard errors, and the dense model's metrics; not what the search itself took."""
    dense: dict[str, float] = json.loads(study.user_attrs.get(DENSE_ATTR, "{}")).get("metrics", {})
    kept = trial.user_attrs
    names = [name for name in dense if isinstance(kept.get(name), int | float)]
    return {
        "metrics": {name: kept[name] for name in names},
        "stderr": {name: kept[name + STDERR] for name in names if name + STDERR in kept},
        "dense_metrics": {name: dense[name] for name in names},
    }
