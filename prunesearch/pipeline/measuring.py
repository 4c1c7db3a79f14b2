"""`report --score`: measures what the reports of studies lack, and stores it in the studies.

Scores come through the engine and the cache, so that a repeated or interrupted command computes
nothing twice. See `studies.measurements` for what is stored.
"""

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from optuna.study import Study

from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import canonical_json
from prunesearch.cache.location import CacheLocation, check_writable
from prunesearch.config.model import ModelSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import StudyError
from prunesearch.models.loading import LoadedModel
from prunesearch.pipeline.compared_candidates import SharedFacts, best_of, finished_trials
from prunesearch.pipeline.data_checks import check_data, check_held_out
from prunesearch.pipeline.held_out_data import HeldOutOptions, held_out_data
from prunesearch.pipeline.measured_exports import ExportFolder, exports_of, read_given
from prunesearch.pipeline.searched_model import check_searched, load_searched
from prunesearch.pipeline.session import load_for
from prunesearch.pipeline.study_measuring import StudyMeasuring
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies import measurements, persistence, places, selection, study_recipe
from prunesearch.studies.optuna_internals.access import set_system_attribute, system_attributes
from prunesearch.studies.recommendation import confirming_documents

SCORED_ATTR = "prunesearch:scored"
"""System attribute of a study: digest of what was measured last, so that it is found to be done."""
_VERSION = 2
"""Version of what is measured. A higher one measures all studies again."""


@dataclass(frozen=True)
class MeasuringRequest:
    """What shall be measured.

    Attributes:
        studies: names of the studies.
        options: how it is measured, with the locations of studies and cache.
        held_out: held-out data.
        location: present paths of the model and the data, by the recipe's names.
        trust_remote_code: whether code of a checkpoint may run.
        exported: folders of checkpoints that were made of the studies.
    """

    studies: tuple[str, ...]
    options: RunOptions = field(default_factory=RunOptions)
    held_out: HeldOutOptions = field(default_factory=HeldOutOptions)
    location: Mapping[str, str | None] = field(default_factory=dict)
    trust_remote_code: bool = False
    exported: tuple[Path, ...] = ()


@dataclass(frozen=True)
class MeasuredStudy:
    """What was measured of one study.

    Attributes:
        study: name of the study.
        measured: number of new measurements.
        kept: number of measurements that the study had already.
    """

    study: str
    measured: int
    kept: int


def measure(request: MeasuringRequest) -> tuple[MeasuredStudy, ...]:
    """Measure what the reports of studies lack.

    These are the dense model, the winner, the baselines at its budget and the checkpoints that were
    made of it: their scores on the data of the search and on held-out data, their latencies, and
    texts that some of them generate.

    Returns:
        For each study, how much was measured.

    Raises:
        UnknownNameError: a study does not exist.
        StudyError: a study has no finished trial, or the model is not the one that was searched.
        DataError: data of a study that are needed cannot be read.
        InputError: the held-out data are those of the search, or a checkpoint is of another study.
        PruneSearchError: see `errors`. What was scored is in the cache.
    """
    options = request.options
    check_writable(CacheLocation.parse(options.cache).folder)
    storage = persistence.open_storage(options.storage, create=False)
    # 1. Refuse bad input before any model is loaded.
    studies, recipes = [], []
    for name in dict.fromkeys(request.studies):
        study = persistence.load(storage, name)
        recipe = places.located(study, request.location, needed=("model",))
        if not selection.best_trials(study, 1):
            raise StudyError(f"study {name!r} has no finished trial yet: run its search first")
        studies.append(study)
        recipes.append(recipe)
    request.held_out.check(tuple(recipes))
    check_held_out(request.held_out)
    given = read_given(request.exported, studies)
    work = []
    for study, recipe in zip(studies, recipes, strict=True):
        with persistence.database_failures(study.study_name, storage):
            exports = exports_of(study, given, request.trust_remote_code)
            piece = _StudyWork(study, recipe, exports, _digest(study, recipe, request, exports))
            # A study that was measured before needs its data no more.
            if not piece.done:
                check_data(recipe.objective, recipe.data)
            work.append(piece)
    # 2. Measure one study after the other. Studies of one model load it once.
    made = []
    with _Models(request) as models:
        for piece in work:
            with persistence.database_failures(piece.study.study_name, storage):
                made.append(_measure_study(piece, request, models))
    return tuple(made)


@dataclass(frozen=True)
class _StudyWork:
    """A study that is to be measured.

    Attributes:
        study: the study.
        recipe: its recipe, with the present paths of model and data.
        exports: the checkpoints that are measured with it.
        digest: digest of everything that decides what is measured.
    """

    study: Study
    recipe: Recipe
    exports: Sequence[ExportFolder]
    digest: str

    @property
    def done(self) -> bool:
        """True if the same was measured before."""
        return system_attributes(self.study).get(SCORED_ATTR) == self.digest


def _measure_study(work: _StudyWork, request: MeasuringRequest, models: "_Models") -> MeasuredStudy:
    """Measure what the report of one study lacks."""
    study, recipe, options = work.study, work.recipe, request.options
    name = study.study_name
    stored = measurements.read(options.storage, name)
    if work.done:
        return MeasuredStudy(name, 0, len(stored))
    if held_out_data(recipe, request.held_out) is None:
        events.tell(
            events.Message(
                f"study {name} was searched on all documents of its task, so nothing is held out: "
                "give other documents with `held_out_data`"
            )
        )
    # Measure the candidates, and then the checkpoints, each with the model alone in memory.
    loaded = models.of_study(study, recipe)
    with EvaluationCache(options.cache) as cache, stopping.deferred():
        measuring = StudyMeasuring(
            study, recipe, options, request.held_out, stored, cache, models.shared
        )
        measuring.measure_candidates(loaded, keep_outputs=bool(work.exports))
        for export in work.exports:
            events.tell(events.Message(f"measuring {export.folder}"))
            with stopping.interruptible():
                checkpoint = models.of_export(export)
            measuring.measure_export(checkpoint, export)
    set_system_attribute(study, SCORED_ATTR, work.digest)
    return MeasuredStudy(name, measuring.added, len(stored))


def _digest(
    study: Study, recipe: Recipe, request: MeasuringRequest, exports: Sequence[ExportFolder]
) -> str:
    """Return the digest of everything that decides what is measured of a study."""
    best = []
    for trial in best_of(study):
        best.append(str(trial.user_attrs.get("dropped", trial.number)))
    held_out = request.held_out
    content: JsonObject = {
        "version": _VERSION,
        "model": str(study_recipe.identity_of(study).get("model content")),
        "best": list(best),
        "trials": finished_trials(study),
        "text": _content_of(held_out.text),
        "tokens": held_out.tokens,
        "documents": _content_of(held_out.documents),
        "limit": held_out.limit,
        "exports": [f"{export.folder} {export.digest}" for export in exports],
        "streamed": request.options.offload,
        "confirming": confirming_documents(study.user_attrs),
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _content_of(name: str | None) -> str | None:
    """Return the digest of a file; the name itself if it is not a file."""
    if name is None or not Path(name).is_file():
        return name
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Models:
    """Loads models, and keeps the last one.

    Args:
        request: what shall be measured.

    Attributes:
        shared: what studies of the last model have in common.
    """

    def __init__(self, request: MeasuringRequest) -> None:
        self._request = request
        self._section: ModelSection | None = None
        self._loaded: LoadedModel | None = None
        self.shared = SharedFacts()

    def of_study(self, study: Study, recipe: Recipe) -> LoadedModel:
        """Return the model of a study; see `searched_model.load_searched` for the errors."""
        request = self._request
        section = recipe.model.model_copy(update={"trust_remote_code": request.trust_remote_code})
        if self._loaded is not None and self._section == section:
            check_searched(study, recipe, self._loaded)
            return self._loaded
        self.release()
        named = request.location.get("model") is not None
        self._loaded = load_searched(study, recipe, section, request.options, named)
        # A search over widths puts the channels of the model in another order.
        self._section = None if recipe.search.narrows else section
        return self._loaded

    def of_export(self, export: ExportFolder) -> LoadedModel:
        """Return the model of a checkpoint. Two models may not fit into memory."""
        self.release()
        section = ModelSection(
            path=str(export.folder), trust_remote_code=self._request.trust_remote_code
        )
        self._loaded = load_for(section, self._request.options)
        return self._loaded

    def release(self) -> None:
        """Free the model."""
        if self._loaded is None:
            return
        self._section = self._loaded = None
        self.shared = SharedFacts()
        # The parts of a model refer to each other, so only the garbage collector frees it.
        gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
