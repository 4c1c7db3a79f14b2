"""Stores in a study what its winner and the dense model lose on each document of the search data.

With these losses, `prunesearch compare` and reports test whether two winners differ, without the
model and without the cache.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.study import Study

from prunesearch.candidate import Evaluation
from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError, RunError
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.pipeline.session import Session
from prunesearch.studies import measurements, persistence
from prunesearch.studies.measurements import Measurement

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchedScores:
    """Losses of the dense model and the winner on the same documents. Less is better."""

    dense: Sequence[float]
    best: Sequence[float]


def scores_of(session: Session, dense: Evaluation, best: Evaluation) -> SearchedScores | None:
    """Return the losses of the dense model and the winner; both are in the cache.

    They are None if the metric has no value for each document.
    """
    try:
        before, after = session.engine.losses([dense.candidate, best.candidate])
    except InputError:
        return None
    return SearchedScores(before, after)


def remember(
    study: Study,
    recipe: Recipe,
    session: Session,
    scalarizer: TrialScalarizer,
    scored: Sequence[tuple[str, Evaluation, Sequence[float]]],
) -> None:
    """Store losses as measurements of the study. Those that are stored already are kept.

    A failure of the database is only logged, because the search itself is complete.

    Args:
        study: the study.
        recipe: recipe of the study.
        session: model, objective and engine of the search.
        scalarizer: what a candidate costs.
        scored: role, evaluation and losses of each model.
    """
    portable, objective = recipe.portable(), session.objective
    data = portable.objective.task or portable.data.calibration
    for role, evaluation, losses in scored:
        costs = scalarizer.costs(evaluation.candidate)
        measurement = Measurement(
            candidate=evaluation.candidate.text,
            role=role,
            data=data,
            data_content=objective.digest,
            badge="searched on",
            metric=objective.metric,
            value=evaluation.metrics[objective.metric],
            stderr=evaluation.stderr.get(objective.metric),
            n=len(losses),
            per_document=tuple(losses),
            params=int(costs["params"]),
            bytes=int(costs["bytes"]),
            made=round(time.time(), 3),
        )
        # A resumed search has stored the same numbers before.
        if measurements.has(study, measurement):
            continue
        try:
            with persistence.database_failures(study.study_name):
                measurements.add(study, measurement)
        except RunError as error:
            _log.warning("the losses of study %r were not stored: %s", study.study_name, error)
            return
