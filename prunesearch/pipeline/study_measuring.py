"""Measures the candidates and checkpoints of one study."""

import json
from collections.abc import Sequence

from optuna.study import Study

from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import DataError
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.local_scorer import LocalScorer
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.execution.block_code import BlockCode
from prunesearch.execution.latency import LatencyModel
from prunesearch.execution.speed import MeasuredSpeed, measure_speeds
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import ChunkWork, Objective
from prunesearch.objectives.calibration import CalibrationObjective, DenseOutputs
from prunesearch.objectives.greedy_texts import greedy_texts
from prunesearch.objectives.registry import zero_metrics
from prunesearch.pipeline.compared_candidates import (
    ComparedCandidate,
    SharedFacts,
    baselines,
    baselines_key,
    finished_trials,
    winners,
)
from prunesearch.pipeline.held_out_data import (
    HeldOutOptions,
    MeasuredData,
    held_out_data,
    refuse_overlap,
    searched_data,
    seen_data,
)
from prunesearch.pipeline.measured_exports import ExportFolder
from prunesearch.pipeline.measured_values import (
    MeasuredModel,
    losses_of,
    measurements_of,
    with_speed,
)
from prunesearch.pipeline.searched_model import check_searched_data
from prunesearch.pipeline.session import objective_for, require, space_of
from prunesearch.pipeline.width_search import put_in_order_of
from prunesearch.runtime import stopping
from prunesearch.studies import measurements
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.recommendation import confirming_documents
from prunesearch.studies.study_data import LATENCY_ATTR
from prunesearch.units import noun_for
from prunesearch.widths.layer_widths import described


class StudyMeasuring:
    """Measures the candidates and checkpoints of a study, and stores what is new in it.

    Args:
        study: the study, with a finished trial.
        recipe: its recipe, with the present paths of model and data.
        options: how it is measured.
        held_out: held-out data that the user names.
        stored: measurements that the study has already.
        cache: evaluation cache.
        shared: what other studies of the model have in common with this one.

    Attributes:
        added: number of measurements that were stored.
    """

    def __init__(
        self,
        study: Study,
        recipe: Recipe,
        options: RunOptions,
        held_out: HeldOutOptions,
        stored: Sequence[Measurement],
        cache: EvaluationCache,
        shared: SharedFacts,
    ) -> None:
        self._study, self._recipe, self._options = study, recipe, options
        self._cache, self._shared = cache, shared
        self._stored = {measurement.digest: measurement for measurement in stored}
        self._data = [searched_data(recipe)]
        self._confirming = confirming_documents(study.user_attrs)
        unseen = held_out_data(recipe, held_out, self._confirming)
        if unseen is not None:
            self._data.append(unseen)
        self._outputs: dict[str, DenseOutputs] = {}
        self.added = 0

    def measure_candidates(self, loaded: LoadedModel, keep_outputs: bool) -> None:
        """Measure the dense model, the winner and the baselines.

        Args:
            loaded: the dense model.
            keep_outputs: keep the dense model's outputs, which checkpoints are compared with.
        """
        # 1. Read the data. The search has not seen those that are held out.
        order = put_in_order_of(self._study, self._recipe, loaded, self._options)
        objectives = self._objectives(loaded)
        engines = [self._engine(loaded, objective) for objective in objectives]
        # 2. Choose what is measured.
        space = space_of(self._recipe.search, loaded)
        dense = LayerSubset.of(loaded.n_layers)
        scalarizer = self._scalarizer(loaded, engines[0])
        (scored,) = engines[0].evaluate_now([dense])
        best = winners(self._study, space, scalarizer, scalarizer.values(require(scored)))
        compared = [ComparedCandidate("dense", dense), *best]
        # Studies that differ in the sampler or the seed have the same baselines.
        finished = finished_trials(self._study)
        key = baselines_key(self._recipe, space, best[0].candidate, finished)
        if key not in self._shared.baselines:
            self._shared.baselines[key] = baselines(
                loaded, self._recipe, space, best[0].candidate, order, engines[0], finished
            )
        compared += self._shared.baselines[key]
        # 3. Score all of it on the data of the search and on held-out data.
        found: list[Measurement] = []
        for data, engine in zip(self._data, engines, strict=True):
            found += self._scored(loaded, engine, data, compared)
        # 4. Measure latencies and generate texts where they are missing.
        self._add(self._completed(loaded, compared, self._missing(found)))
        if keep_outputs:
            self._keep_outputs(loaded, objectives)

    def _objectives(self, loaded: LoadedModel) -> list[Objective]:
        """Build the objectives on the data of the search and on held-out data.

        Raises:
            StudyError: the data of the search are not those that were searched on.
            InputError: the search has seen the held-out data.
        """
        searched = self._objective(loaded, self._data[0])
        check_searched_data(self._study, self._recipe, searched)
        if len(self._data) == 1:
            return [searched]
        unseen = self._data[1]
        try:
            held_out = self._objective(loaded, unseen)
        except DataError as error:
            # The search and its confirmation may have read all documents of a task.
            if not unseen.first:
                raise
            events.tell(events.Message(f"{error}: give others with `held_out_data`"))
            self._data.pop()
            return [searched]
        seen = searched
        if self._confirming:
            seen = self._objective(loaded, seen_data(self._recipe, self._confirming))
        refuse_overlap(seen, held_out, unseen.name(self._recipe.objective, 0))
        return [searched, held_out]

    def measure_export(self, loaded: LoadedModel, export: ExportFolder) -> None:
        """Measure a checkpoint on the same data.

        Args:
            loaded: the model of the checkpoint.
            export: what its manifest says.
        """
        # What is known of the dense model's speed is not true of the checkpoint's.
        self._shared = SharedFacts()
        dense = LayerSubset.of(loaded.n_layers)
        whole = ComparedCandidate(export.role, dense, export.dropped)
        found: list[Measurement] = []
        for data in self._data:
            outputs = self._outputs.get(data.badge)
            try:
                objective = self._objective(loaded, data, outputs)
            except DataError as error:
                events.tell(events.Message(f"{export.folder} is not measured: {error}"))
                continue
            engine = self._engine(loaded, objective)
            for measurement in self._scored(loaded, engine, data, [whole], export.digest):
                # Without the dense model's outputs the checkpoint is compared with itself.
                if outputs is not None or measurement.metric not in (*zero_metrics(), "mix"):
                    found.append(measurement)
        self._add(self._completed(loaded, [whole], self._missing(found)))

    def _objective(
        self, loaded: LoadedModel, data: MeasuredData, outputs: DenseOutputs | None = None
    ) -> Objective:
        """Build the study's objective on some data."""
        return objective_for(
            self._recipe.objective,
            data.data,
            loaded,
            self._options,
            first=data.first,
            compared_with=outputs,
        )

    def _engine(self, loaded: LoadedModel, objective: Objective) -> LocalEngine:
        streamed = loaded.layers.streamed_once
        return LocalEngine(
            loaded,
            objective,
            self._cache,
            None,
            self._options.state_bytes,
            streamed,
            BlockCode(self._options.compile),
        )

    def _scalarizer(self, loaded: LoadedModel, engine: LocalEngine) -> TrialScalarizer:
        """Return the values of the study's trials."""
        stored = self._study.user_attrs.get(LATENCY_ATTR)
        if stored is None:
            latency = engine.latency_model()
        else:
            latency = LatencyModel.from_json(json.loads(stored))
        return TrialScalarizer(
            engine.objective.metric,
            engine.objective.maximize,
            self._recipe.objective.score_weights,
            loaded.sizes,
            latency,
            self._recipe.search.second_objective,
        )

    def _scored(
        self,
        loaded: LoadedModel,
        engine: LocalEngine,
        data: MeasuredData,
        compared: Sequence[ComparedCandidate],
        checkpoint: str = "",
    ) -> list[Measurement]:
        """Score candidates through the cache. Those that fail are left out, with a message.

        Args:
            loaded: the model.
            engine: what scores them.
            data: the data.
            compared: the candidates.
            checkpoint: see `MeasuredModel.checkpoint`.
        """
        fine: dict[LayerSubset, Evaluation] = {}
        for evaluation in engine.evaluate_now(each.candidate for each in compared):
            if evaluation.failure is None:
                fine[evaluation.candidate] = evaluation
                continue
            what = f"the model {described(evaluation.candidate.text)}"
            events.tell(events.Message(f"{what} is not measured: {evaluation.failure}"))
        losses = losses_of(engine, fine)
        # Beside the searched metric, one tells how much quality is lost.
        names = [engine.objective.metric]
        for entry in self._recipe.objective.entries:
            if entry.relative_metric is not None:
                names.append(entry.relative_metric)
        found = []
        for each in compared:
            if each.candidate in fine:
                own = losses.get(each.candidate, ())
                text = data.name(self._recipe.objective, len(own))
                measured = MeasuredModel(each.dropped, each.role, text, data.badge, checkpoint)
                evaluation = fine[each.candidate]
                found += measurements_of(loaded, engine, measured, evaluation, own, names)
        return found

    def _missing(self, found: Sequence[Measurement]) -> list[Measurement]:
        """Return the measurements that the study does not have yet."""
        missing = []
        for measurement in found:
            if not measurement.repeats(self._stored.get(measurement.digest)):
                missing.append(measurement)
        return missing

    def _completed(
        self,
        loaded: LoadedModel,
        compared: Sequence[ComparedCandidate],
        missing: Sequence[Measurement],
    ) -> list[Measurement]:
        """Return measurements with latencies and generated texts.

        They are left out if weights are streamed.

        Args:
            loaded: the model.
            compared: candidates that were scored.
            missing: measurements that are to be stored.
        """
        if loaded.layers.streamed_once or not missing:
            return list(missing)
        wanted: dict[tuple[str, str], ComparedCandidate] = {}
        names = {(measurement.role, measurement.candidate) for measurement in missing}
        for each in compared:
            if (each.role, each.dropped) in names:
                wanted[each.role, each.dropped] = each
        speeds = self._speeds(loaded, list(wanted.values()))
        completed = []
        for measurement in missing:
            each = wanted[measurement.role, measurement.candidate]
            texts: tuple[tuple[str, str], ...] = ()
            if each.writes:
                events.tell(events.StageProgress("generating texts"))
                texts = greedy_texts(loaded, each.candidate, self._cache)
            completed.append(with_speed(measurement, speeds.get(each.candidate), texts))
        return completed

    def _speeds(
        self, loaded: LoadedModel, compared: Sequence[ComparedCandidate]
    ) -> dict[LayerSubset, MeasuredSpeed]:
        """Measure the latencies of candidates side by side.

        Random candidates are as large as the others, so they are not measured. A candidate that was
        timed for an earlier study is not timed again.
        """
        dense = LayerSubset.of(loaded.n_layers)
        known = self._shared.speeds
        new = [dense]
        for each in compared:
            if not each.is_random and each.candidate not in (*new, *known):
                new.append(each.candidate)
        if len(new) > 1 or dense not in known:
            models = noun_for(len(new), "model", "models side by side")
            events.tell(events.StageProgress(f"timing {len(new)} {models}"))
            known |= measure_speeds(loaded.model, new)
        return known

    def _add(self, found: Sequence[Measurement]) -> None:
        """Store measurements in the study."""
        for measurement in found:
            stopping.check()
            measurements.add(self._study, measurement)
            self._stored[measurement.digest] = measurement
            self.added += 1

    def _keep_outputs(self, loaded: LoadedModel, objectives: Sequence[Objective]) -> None:
        """Store the dense model's outputs on all data, if they are not stored."""
        dense = LayerSubset.of(loaded.n_layers)
        for data, objective in zip(self._data, objectives, strict=True):
            if not isinstance(objective, CalibrationObjective):
                continue
            work = [ChunkWork(chunk, (dense,)) for chunk in objective.missing_outputs()]
            scorer = LocalScorer(
                loaded, objective, self._options.state_bytes, BlockCode(self._options.compile)
            )
            for _ in scorer.score(work, stopping.requested):
                stopping.check()
            self._outputs[data.badge] = objective.outputs
