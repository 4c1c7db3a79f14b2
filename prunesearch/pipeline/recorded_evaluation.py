"""What `evaluate`, and the evaluation of a run, measured of a study's checkpoint, stored in the
study.

Reports show it beside the search. The evaluation itself does not depend on it.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.study import Study
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.candidate import Evaluation
from prunesearch.errors import PruneSearchError, one_line
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.export.manifest import MANIFEST
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import Objective
from prunesearch.objectives.registry import zero_metrics
from prunesearch.pipeline.held_out_data import MeasuredData, are_same_data, overlaps, seen_data
from prunesearch.pipeline.measured_exports import ExportFolder
from prunesearch.pipeline.measured_values import MeasuredModel, losses_of, measurements_of
from prunesearch.pipeline.session import objective_for
from prunesearch.pipeline.state import EvaluationRequest, Request
from prunesearch.studies import measurements, persistence, places
from prunesearch.studies.measurements import Badge
from prunesearch.studies.recommendation import confirming_documents

_log = logging.getLogger(__name__)


def record_evaluation(
    request: Request, loaded: LoadedModel, engine: LocalEngine, evaluation: Evaluation
) -> None:
    """Store the metrics of a checkpoint in the study that it was made of.

    Nothing is stored of other models, of a checkpoint without some of its layers, and of metrics
    that the study has already. A study that cannot be read or written is only logged.

    Args:
        request: what was evaluated.
        loaded: the model.
        engine: what evaluated it.
        evaluation: its metrics.
    """
    asked = request.evaluation
    assert asked is not None
    folder = Path(asked.model.path)
    if evaluation.candidate.text != measurements.DENSE or not (folder / MANIFEST).is_file():
        return
    try:
        export = ExportFolder.read(folder)
        if not export.study:
            return
        storage = persistence.open_storage(request.options.storage, create=False)
        study = persistence.load(storage, export.study)
        if not export.belongs_to(study):
            return
        losses = losses_of(engine, [evaluation.candidate]).get(evaluation.candidate, ())
        measured = MeasuredModel(
            export.dropped,
            export.role,
            _name(asked, len(losses)),
            _badge(request, study, loaded, engine.objective),
            export.digest,
        )
        # Without the dense model's outputs the checkpoint was compared with itself.
        metrics = _without_zeros(evaluation.metrics)
        for found in measurements_of(loaded, engine, measured, evaluation, losses, metrics):
            if not measurements.has(study, found):
                measurements.add(study, found)
    except (PruneSearchError, SQLAlchemyError, StorageInternalError) as error:
        _log.info("no study keeps the evaluation of %s: %s", folder, one_line(error))


def _without_zeros(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics that do not compare a model with itself."""
    return [name for name in metrics if name not in (*zero_metrics(), "mix")]


def _name(asked: EvaluationRequest, count: int) -> str:
    """Return a short name of the data.

    Args:
        asked: what was evaluated.
        count: number of documents or sequences; 0 if it is not known.
    """
    if asked.protocol is not None:
        return f"text of protocol {asked.protocol.name}"
    return MeasuredData("held out", asked.data).name(asked.objective, count)


def _badge(request: Request, study: Study, loaded: LoadedModel, objective: Objective) -> Badge:
    """Return whether the search or its confirmation has seen the data: those of its text or task,
    or some of them.

    Raises:
        PruneSearchError: the data of the search are of the same kind, and cannot be read.
    """
    asked = request.evaluation
    assert asked is not None
    # 1. Data of another kind were not seen.
    recipe = places.located(study, {}, needed=())
    text = asked.protocol is not None or asked.objective.calibrated
    same_text = recipe.objective.calibrated and text
    tasks = () if asked.protocol is not None else asked.objective.task_names
    same_task = set(recipe.objective.task_names) & set(tasks)
    if not same_text and not same_task:
        return "held out"
    # 2. The same text in windows of another length has no window in common with that of the search.
    data = seen_data(recipe, confirming_documents(study.user_attrs)).data
    named = asked.data.calibration if asked.protocol is None else asked.protocol.data
    if same_text and named is not None and are_same_data(named, data.calibration):
        return "searched on"
    # 3. Compare the items.
    searched = objective_for(recipe.objective, data, loaded, request.options)
    return "searched on" if overlaps(searched, objective) else "held out"
