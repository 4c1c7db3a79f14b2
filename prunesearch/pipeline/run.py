"""The complete pipeline, from a recipe to a verified checkpoint. Read `run` first."""

import asyncio
import logging
import math
import statistics
import time
import warnings
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, Self, TypeVar

import numpy as np
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch import events
from prunesearch.cache import maintenance
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import minor
from prunesearch.cache.location import CacheLocation, check_writable
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.data import DataSection
from prunesearch.config.identity import study_name
from prunesearch.config.model import ModelSection
from prunesearch.config.names import slug
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import (
    InputError,
    RunError,
    StudyBusyError,
)
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.scalarization import TrialScalarizer, objectives
from prunesearch.execution.latency import LatencyModel, compare_latency
from prunesearch.export import Exported, check_destination, export
from prunesearch.export.companions import companions
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.structure import Sizes, most_positions
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.identity import numerics_of
from prunesearch.objectives.importance import rank_units
from prunesearch.objectives.registry import names_with, zero_metrics
from prunesearch.pipeline.search_loop import SearchResult, search
from prunesearch.pipeline.session import (
    Session,
    load_for,
    objective_for,
    open_session,
    require,
    space_of,
)
from prunesearch.report.notes import Noter
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers import SubsetSampler, build, trials_needed
from prunesearch.space import SearchSpace
from prunesearch.studies import persistence, selection
from prunesearch.studies.summary import TrialSummary, summarise_trial

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of a search.

    Attributes:
        study: name of the study.
        sampler: name of the sampler.
        trials: number of trials in the study.
        dense, best: evaluations of the dense model and of the study's best candidate. For a Pareto
            study, the best is the knee of its front, which saves most for the quality it loses.
        value: first value of the best trial.
        front: a Pareto study's non-dominated trials, best quality first; empty for
            other studies.
        dense_ms, best_ms: latency of one prefill in milliseconds.
        latency_measured: True if the latencies were measured. They are predicted if weights are
            streamed.
        lost: share of the dense model's quality that the best candidate lost (see
            `selection.quality_lost`).
        paired: difference between both models on the same documents of a task; None for other
            objectives.
        result: counts of this run.
        damaged: number of damaged cache entries that were computed again.
        sizes: parameters and bytes of the model's parts.
        seconds: wall time of the whole run.
    """

    study: str
    sampler: str
    trials: int
    dense: Evaluation
    best: Evaluation
    value: float
    front: tuple[TrialSummary, ...]
    dense_ms: float
    best_ms: float
    latency_measured: bool
    lost: float
    paired: dict[str, Any] | None
    result: SearchResult
    damaged: int
    sizes: Sizes
    seconds: float

    def document(self, options: RunOptions) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "study": self.study,
            "sampler": self.sampler,
            "storage": persistence.shown(options.storage),
            "trials": self.trials,
            "value": self.value,
            "front": list(self.front),
            "dense": self._evaluation(self.dense, self.dense_ms),
            "best": self._evaluation(self.best, self.best_ms),
            "latency_measured": self.latency_measured,
            "lost": self.lost,
            "paired": self.paired,
            **asdict(self.result),
            "damaged": self.damaged,
            "seconds": round(self.seconds, 3),
        }

    def _evaluation(self, evaluation: Evaluation, latency_ms: float) -> dict[str, Any]:
        return {
            "dropped": evaluation.candidate.text,
            "metrics": dict(evaluation.metrics),
            "stderr": dict(evaluation.stderr),
            "cost": {
                "params": self.sizes.params(evaluation.candidate),
                "bytes": self.sizes.bytes(evaluation.candidate),
                "latency_ms": round(latency_ms, 3),
            },
        }


def run(
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008 (frozen)
    out: str | Path | None = None,
    on_event: events.EventHandler | None = None,
    *,
    listener: "SearchListener | None" = None,
) -> tuple[Outcome, Exported]:
    """Search, then export and verify the best candidate.

    Args:
        recipe: description of the search.
        options: how the recipe is run.
        out: folder for the checkpoint; default: ``storage/exports/`` and the study's name.
        on_event: function that receives the events of the run (see `events`).
        listener: object whose method ``progress`` receives the progress of the search. Deprecated:
            use `on_event`.

    Raises:
        PruneSearchError: see `errors`. Finished evaluations are kept.
    """
    given: object = recipe
    if not isinstance(given, Recipe):
        raise InputError(
            f"run takes a Recipe, not {type(given).__name__}: write run(Recipe(model=..., "
            f"drop=...)); the command "
            "prunesearch run takes a recipe file"
        )
    folder = None if out is None else Path(out)
    if listener is not None:
        on_event = _as_handler(listener)
    with ExitStack() as stack:
        if on_event is not None:
            stack.enter_context(events.subscribed(on_event))
        (outcome,), (exported,) = search_and_export([recipe], options, folder)
    return outcome, exported


class SearchListener(Protocol):
    """Receives the progress of a search. Deprecated: use a `prunesearch.events.EventHandler`."""

    def progress(self, progress: events.SearchProgress) -> None:
        """Handle the news that a study was opened or a trial was told."""


def _as_handler(listener: SearchListener) -> events.EventHandler:
    """Return an event handler that calls a listener, and warn that listeners are deprecated."""
    warnings.warn(
        "listener is deprecated and will be removed in the next release: give on_event, a function "
        "that receives the events of prunesearch.events",
        DeprecationWarning,
        stacklevel=3,
    )

    def handle(event: events.Event) -> None:
        if isinstance(event, events.SearchProgress):
            listener.progress(event)

    return handle


def search_and_export(
    recipes: Sequence[Recipe],
    options: RunOptions,
    out: Path | None,
) -> tuple[list[Outcome], list[Exported]]:
    """Run several searches, and export the best result for each number of dropped layers.

    Args:
        recipes: recipes that differ in the sampler or the number of dropped layers only.
        options: how the recipes are run.
        out: folder for the checkpoint. With several numbers, each gets a folder inside it. Default:
            ``storage/exports/`` and the name of the study.

    Returns:
        The outcome of each search, and one export for each number.

    Raises:
        PruneSearchError: see `errors`.
    """
    # Refuse bad requests before the model is loaded.
    numbers = list(dict.fromkeys(recipe.search.drop for recipe in recipes))
    folders = {
        recipe: _folder(recipe, options, out, several=len(numbers) > 1) for recipe in recipes
    }
    for recipe, folder in folders.items():
        _check_exportable(recipe)
        check_destination(folder)
    check_grid(recipes, options)
    with open_session(recipes[0], options) as session:
        # Find out what an export would refuse before any candidate is scored.
        companions(session.loaded)
        outcomes = run_searches(session, recipes, options)
        # Export the best sampler's candidate for each number.
        exports = []
        for number in numbers:
            found = [
                pair
                for pair in zip(recipes, outcomes, strict=True)
                if pair[0].search.drop == number
            ]
            objective = session.objective
            _, (maximize, *_) = objectives(
                objective.metric, objective.maximize, recipes[0].objective.score_weights, None
            )
            choose = max if maximize else min
            recipe, best = choose(found, key=lambda pair: pair[1].value)
            facts = facts_of(recipe, best)
            exports.append(export(session.loaded, best.best.candidate, folders[recipe], facts))
    return outcomes, exports


def _folder(recipe: Recipe, options: RunOptions, out: Path | None, *, several: bool) -> Path:
    """Return the folder that a recipe's checkpoint is written to."""
    if out is None:
        return Path("storage/exports") / (options.study or study_name(recipe))
    if several:
        return out / f"drop{slug(recipe.search.drop)}"
    return out


def _check_exportable(recipe: Recipe) -> None:
    """Refuse a recipe whose result cannot be exported without a choice by the user."""
    if recipe.search.is_pareto:
        raise InputError(
            f"drop: {recipe.search.drop} gives a front, not one best: use prunesearch search, then export "
            f"STUDY --max-loss 2%"
        )
    if recipe.search.units != "blocks":
        raise InputError(
            "units: sublayers leaves a choice of how to write the result: use prunesearch search, "
            "then export STUDY "
            "--as zeroed, deci or remote-code"
        )


def run_search(session: Session, recipe: Recipe, options: RunOptions) -> Outcome:
    """Create or resume the recipe's study and bring it to the requested number of trials.

    Raises:
        StudyError: the study belongs to another recipe, model or data, or another process is
            writing it.
        RunError: the dense model or every candidate could not be scored, or the database failed.
    """
    (outcome,) = run_searches(session, [recipe], options)
    return outcome


def run_searches(
    session: Session,
    recipes: Sequence[Recipe],
    options: RunOptions,
) -> list[Outcome]:
    """Search several recipes at once with one engine, which scores their candidates together.

    Args:
        session: loaded model, objective and engine.
        recipes: recipes with the model and objective of `session`.
        options: how the recipes are run.

    Raises:
        StudyError, RunError: see `run_search`.
    """
    start = time.perf_counter()
    check_grid(recipes, options)
    # How many trials each study shall have.
    totals = [
        trials_of(recipe, space_of(recipe.search, session.loaded), options) for recipe in recipes
    ]
    for recipe, total in zip(recipes, totals, strict=True):
        if total > options.trials:
            events.tell(
                events.StageProgress(
                    f"{recipe.search.sampler} needs {total} trials here, so it gets them"
                )
            )
    storage = persistence.open_storage(options.storage, create=True)
    names = [options.study or study_name(recipe) for recipe in recipes]
    # Complete studies that another process is writing are only reported.
    complete: set[str] = set()
    with ExitStack() as held:
        # Become the only writer of each study.
        for name, total in zip(names, totals, strict=True):
            held.enter_context(persistence.database_failures(name, storage))
            try:
                held.enter_context(persistence.sole_writer(storage, name))
            except StudyBusyError:
                if not persistence.is_complete(storage, name, total):
                    raise
                complete.add(name)
        # All studies are opened before any work, so that a refusal costs nothing.
        opened = []
        for recipe, name in zip(recipes, names, strict=True):
            opened.append(_open_study(session, recipe, storage, name))
        # The dense model is what every candidate is compared with.
        events.tell(events.StageProgress("scoring the dense model"))
        dense = require(*session.engine.evaluate_now([LayerSubset.of(session.loaded.n_layers)]))
        prepared, left = [], []
        for recipe, study, total in zip(recipes, opened, totals, strict=True):
            ready = _Prepared.of(session, recipe, study, dense, options)
            prepared.append(ready)
            if study.study_name not in complete:
                left.append((ready, total))
        for ready, total in left:
            persistence.remember_places(ready.study, ready.recipe)
            ready.study.set_user_attr(persistence.TRIALS_ATTR, total)
        # Search, then collect the outcomes in the order of the recipes.
        searched = iter(_run_to_end(_search_all(session, left)))
        for ready, _ in left:
            ready.write_notes()
        nothing = SearchResult(0, 0, 0, 0)
        outcomes = []
        for ready in prepared:
            result = nothing if ready.study.study_name in complete else next(searched)
            outcomes.append(ready.outcome(session, dense, result, start))
        return outcomes


def check_grid(recipes: Sequence[Recipe], options: RunOptions) -> None:
    """Refuse recipes whose studies cannot be written, before anything is loaded.

    Raises:
        InputError: `study` names one study for several recipes, or a recipe occurs twice.
        StudyBusyError: another process is searching a study that is not complete.
        StudyError: a study was made with another recipe.
    """
    if options.study is not None and len(recipes) > 1:
        raise InputError(f"`study` names one study, and {len(recipes)} are searched: leave it out")
    names = [study_name(recipe) for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"study {name!r} would be searched twice at once: name each sampler and number once"
            )
    asked = [(options.study or study_name(recipe), recipe) for recipe in recipes]
    persistence.refuse_busy(options.storage, [name for name, _ in asked], options.trials)
    persistence.refuse_others(options.storage, asked)


def resume(
    name: str,
    options: RunOptions,
    *,
    trust_remote_code: bool = False,
    **location: str | None,
) -> Outcome:
    """Resume a study, from any folder or machine.

    Args:
        name: name of the study.
        options: how it is run. Without trials, the study gets as many as were requested last.
        trust_remote_code: run the checkpoint's own code. The setting of the study's creator does
            not count.
        location: present locations of model and data, by the recipe's names. Their content must not
            have changed.

    Raises:
        StudyError: the study does not exist, or its model or data cannot be found.
    """
    study = persistence.load(persistence.open_storage(options.storage, create=False), name)
    recipe = persistence.located(study, location).with_changes(trust_remote_code=trust_remote_code)
    changed: dict[str, Any] = {"study": name}
    if "trials" not in options.model_fields_set and persistence.TRIALS_ATTR in study.user_attrs:
        changed["trials"] = study.user_attrs[persistence.TRIALS_ATTR]
    options = options.model_copy(update=changed)
    check_grid([recipe], options)
    with open_session(recipe, options) as session:
        return run_search(session, recipe, options)


async def _search_all(
    session: Session, prepared: Sequence[tuple["_Prepared", int]]
) -> list[SearchResult]:
    """Search all prepared studies concurrently."""
    searches = []
    for ready, total in prepared:
        searches.append(
            search(
                ready.study,
                ready.sampler,
                session.engine,
                ready.scalarizer,
                total,
                ready.recipe.objective.race,
                ready.noter.now_and_then,
            )
        )
    return await asyncio.gather(*searches)


def trials_of(recipe: Recipe, space: SearchSpace, options: RunOptions) -> int:
    """Return the number of trials that a search shall have.

    It is the requested number. Without a request it is the default, or what the sampler needs if
    that is more.

    Raises:
        InputError: the requested number is too small for a result.
    """
    needed = trials_needed(recipe.search.sampler, recipe.search.start, space)
    if "trials" not in options.model_fields_set:
        return max(options.trials, needed.whole)
    if options.trials < needed.first:
        chosen = f"`sampler` {recipe.search.sampler}"
        if recipe.search.start != "none":
            chosen += f" `ranking` {recipe.search.start}"
        raise InputError(
            f"`trials` {options.trials} would give no result: {chosen} {needed.reason}, which takes "
            f"{needed.first} trials here until the first result and {needed.whole} in all: give "
            f"`trials` {needed.whole}, or leave `trials` out"
        )
    return options.trials


@dataclass(frozen=True)
class _Prepared:
    """A study that is ready to be searched."""

    recipe: Recipe
    study: Study
    space: SearchSpace
    sampler: SubsetSampler
    scalarizer: TrialScalarizer
    noter: Noter

    @classmethod
    def of(
        cls, session: Session, recipe: Recipe, study: Study, dense: Evaluation, options: RunOptions
    ) -> Self:
        """Prepare a study: its fitness, its sampler, and the notes that a dashboard shows."""
        scalarizer = _scalarizer(session, recipe, study)
        # Selection and notes compare trials with the dense model.
        baseline: JsonObject = {"metric": session.objective.metric, "metrics": dict(dense.metrics)}
        persistence.get_or_set_attr(study, selection.DENSE_ATTR, lambda: baseline)
        space = space_of(recipe.search, session.loaded)
        figures = {**dense.metrics, **scalarizer.costs(dense.candidate)}
        noter = Noter(study, recipe, options, figures)
        return cls(recipe, study, space, _sampler(session, recipe, study, space), scalarizer, noter)

    def write_notes(self) -> None:
        """Update the study's notes.

        A failure is only logged, because the search itself is complete.
        """
        name = self.study.study_name
        try:
            with persistence.database_failures(name):
                self.noter.write()
        except RunError as error:
            _log.warning("the notes of study %r were not written: %s", name, error)

    def outcome(
        self, session: Session, dense: Evaluation, result: SearchResult, start: float
    ) -> Outcome:
        """Return the outcome of the finished search.

        Raises:
            RunError: the study has no result.
        """
        name = self.study.study_name
        ranked = selection.best_trials(self.study, None)
        if not ranked:
            self._refuse(result)
        # The best trial, or the knee and the whole front of a Pareto study.
        chosen, front = ranked[0], list[TrialSummary]()
        if self.space.budget == "pareto":
            chosen = knee(ranked, self.scalarizer.values(dense))
            front = [summarise_trial(trial) for trial in ranked]
        best = require(*session.engine.evaluate_now([self.space.from_params(chosen.params)]))
        # Measure its latency against the dense model's.
        measured = not session.loaded.layers.streamed_once
        if measured:
            events.tell(events.StageProgress("timing the winner beside the dense model"))
        dense_ms, best_ms = _latencies(session, self.scalarizer, best.candidate)
        on_documents = self.recipe.objective.name in names_with("needs_task")
        return Outcome(
            study=name,
            sampler=self.recipe.search.sampler,
            trials=len(self.study.get_trials(deepcopy=False)),
            dense=dense,
            best=best,
            value=float(chosen.values[0]),
            front=tuple(front),
            dense_ms=dense_ms,
            best_ms=best_ms,
            latency_measured=measured,
            lost=selection.quality_lost(self.study, chosen, relative=True),
            paired=_paired(session, dense, best) if on_documents else None,
            result=result,
            damaged=session.cache.damaged,
            sizes=session.loaded.sizes,
            seconds=time.perf_counter() - start,
        )

    def _refuse(self, result: SearchResult) -> NoReturn:
        """Raise the error of a search without a result."""
        name = self.study.study_name
        if not result.failed:
            count = len(self.study.get_trials(deepcopy=False))
            raise RunError(
                f"study {name!r} has {count} trials and no result yet: run it again with more "
                f"`trials`"
            )
        reason = persistence.last_failure(self.study)
        raise RunError(
            f"none of the {result.failed} candidates could be scored ({reason}); the study "
            f"{name!r} is kept"
        )


def _latencies(
    session: Session, scalarizer: TrialScalarizer, best: LayerSubset
) -> tuple[float, float]:
    """Return the latencies of the dense and the best model in milliseconds.

    They are measured if the weights are in memory, else predicted.
    """
    if session.loaded.layers.streamed_once:
        return scalarizer.latency.predict(), scalarizer.latency.predict(best)
    return compare_latency(session.loaded.model, best)


def _paired(session: Session, dense: Evaluation, best: Evaluation) -> dict[str, Any] | None:
    """Return the metric's mean difference, best - dense, over the same documents of a task.

    Returns:
        The difference with its standard error; None if the metric has no value per document.
    """
    try:
        before, after = session.engine.losses([dense.candidate, best.candidate])
    except InputError:
        return None
    # Losses are minimised; the difference is that of the metric.
    sign = -1.0 if session.objective.maximize else 1.0
    differences = [sign * (b - a) for a, b in zip(before, after, strict=True)]
    if len(differences) < 2:
        return None
    return {
        "metric": session.objective.metric,
        "documents": len(differences),
        "difference": statistics.fmean(differences),
        "stderr": statistics.stdev(differences) / math.sqrt(len(differences)),
    }


def _open_study(session: Session, recipe: Recipe, storage: RDBStorage, name: str) -> Study:
    """Create or resume a study. An old study must have the same identity."""
    identity = {
        **recipe.identity(),
        **session.objective.settings,
        "data content": session.objective.digest,
        "model content": session.loaded.fingerprint,
        "numerics": numerics_of(session.loaded.model),
        "numpy version": minor(np.__version__),  # the proposals depend on its random numbers
    }
    metrics, maximize = objectives(
        session.objective.metric,
        session.objective.maximize,
        recipe.objective.score_weights,
        recipe.search.second_objective,
    )
    return persistence.create_or_resume(
        storage, name, recipe, identity, metrics=metrics, maximize=maximize
    )


def _sampler(session: Session, recipe: Recipe, study: Study, space: SearchSpace) -> SubsetSampler:
    """Build the recipe's sampler. A resumed study keeps the ranking that it began with."""
    ranking: list[float] | Literal["single"] | None = None
    if recipe.search.start == "single":
        ranking = "single"
    elif recipe.search.start != "none":
        ranking = persistence.get_or_set_attr(
            study, "ranking", lambda: _short(_ranking(session, recipe, space))
        )
    section = recipe.search
    return build(
        section.sampler,
        space,
        seed=section.seed,
        population=section.population,
        encoding=section.encoding,
        preselect=section.preselect,
        ranking=ranking,
        asynchronous=section.asynchronous,
    )


def _short(numbers: Any) -> Any:  # noqa: ANN401 (JSON values)
    """Round the numbers in JSON values to six digits, so that a dashboard can show them."""
    if isinstance(numbers, dict):
        return {name: _short(value) for name, value in numbers.items()}
    if isinstance(numbers, list | tuple):
        return [_short(value) for value in numbers]
    return float(f"{numbers:.6g}")


def _ranking(session: Session, recipe: Recipe, space: SearchSpace) -> list[float]:
    """Rank the units on the recipe's calibration text. A task uses the built-in text."""
    events.tell(events.StageProgress(f"ranking the layers by {recipe.search.start}"))
    loaded, data = session.loaded, recipe.data
    window = min(data.window, most_positions(loaded.model) or data.window)
    windows = token_windows(data.calibration, loaded.tokenizer, data.tokens, window)
    with wide_products():
        harm = rank_units(
            session.loaded.model,
            session.loaded.layers,
            windows,
            recipe.search.start,
            recipe.search.units,
        )
    if recipe.search.units == "sublayers":
        return harm
    # The harm of a period is the sum of its blocks' harm.
    harm_of_unit = []
    for unit in range(space.n_units):
        harm_of_unit.append(sum(harm[block] for block in space.blocks_of(unit)))
    return harm_of_unit


def knee(front: Sequence[FrozenTrial], dense: Sequence[float]) -> FrozenTrial:
    """Return the member of a front that is farthest from the line between the dense and the
    smallest model.

    Values are scaled by the distance of these two.
    I. Das, "On characterizing the 'knee' of the Pareto curve", Struct. Optim. 18, 1999.
    """
    spans = [abs(a - b) or 1.0 for a, b in zip(dense, front[-1].values, strict=True)]

    def gain(trial: FrozenTrial) -> float:
        lost, saved = (
            abs(v - a) / span for v, a, span in zip(trial.values, dense, spans, strict=True)
        )
        return float(saved - lost)

    return max(front, key=gain)


def _scalarizer(session: Session, recipe: Recipe, study: Study) -> TrialScalarizer:
    """Build the fitness of a study. A resumed study keeps the latency model that it began with."""
    latency = persistence.get_or_set_attr(
        study, "latency_model", lambda: _short(session.engine.latency_model().as_json())
    )
    return TrialScalarizer(
        session.objective.metric,
        session.objective.maximize,
        recipe.objective.score_weights,
        session.loaded.sizes,
        LatencyModel.from_json(latency),
        recipe.search.second_objective,
    )


def _run_to_end(searching: Coroutine[Any, Any, Result]) -> Result:
    """Run searches in a new event loop.

    If this thread has a running loop already, as in a notebook, the new loop runs in another
    thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_until_stopped(searching))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, searching).result()


async def _until_stopped(searching: Coroutine[Any, Any, Result]) -> Result:
    """Run searches until they are done or a signal cancels them.

    Raises:
        StopRequested: a signal cancelled them.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(searching)

    def wake() -> None:
        loop.call_soon_threadsafe(task.cancel)

    with stopping.waking(wake):
        try:
            return await task
        except asyncio.CancelledError:
            stopping.check()
            raise


def facts_of(recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """Return the facts about a search that an export's manifest contains."""
    return {
        "study": outcome.study,
        "trials": outcome.trials,
        "recipe": recipe.portable().document(),
        "metrics": dict(outcome.best.metrics),
        "stderr": dict(outcome.best.stderr),
        "dense_metrics": dict(outcome.dense.metrics),
    }


def evaluate_model(
    model: ModelSection,
    objective: ObjectiveSection,
    data: DataSection,
    options: RunOptions,
    dropped: str,
) -> dict[str, Any]:
    """Evaluate a model without some layers.

    Args:
        model: names the model.
        objective: names the metric or the task.
        data: names the data that the objective reads.
        options: how it is run.
        dropped: layers to leave out, as ``3,7,12``, or ``none``.

    Returns:
        Metrics, standard errors and sizes, as JSON values.

    Raises:
        RunError: the model could not be scored.
    """
    check_writable(CacheLocation.parse(options.cache).folder)
    loaded = load_for(model, options, quantised=True)
    candidate = LayerSubset.parse(dropped, loaded.n_layers)
    scored = objective_for(objective, data, loaded, options, generate=True)
    with EvaluationCache(options.cache) as cache:
        engine = LocalEngine(loaded, scored, cache, state_memory=options.state_bytes)
        with stopping.deferred():
            evaluation = require(*engine.evaluate_now([candidate]))
    maintenance.remember_name(
        CacheLocation.parse(options.cache).folder, loaded.fingerprint, model.path
    )
    metrics, stderr = dict(evaluation.metrics), dict(evaluation.stderr)
    # The comparison of the dense model with itself carries no information.
    if candidate.text == "none":
        for name in zero_metrics():
            metrics.pop(name, None)
            stderr.pop(name, None)
    return {
        "model": model.path,
        "dropped": candidate.text,
        "metrics": metrics,
        "stderr": stderr,
        "params": loaded.sizes.params(candidate),
        "bytes": loaded.sizes.bytes(candidate),
        "cached": evaluation.cached,
    }
