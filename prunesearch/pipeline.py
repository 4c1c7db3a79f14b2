"""The whole story, from a recipe to a verified checkpoint. A newcomer reads `run` first."""

import asyncio
import logging
import math
import statistics
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch import events, stopping
from prunesearch.bench import Bench, load_for, objective_for, open_bench, require, space_of
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.engine.local import LocalEngine
from prunesearch.errors import InputError, PruneSearchError, RunError, StudyBusyError
from prunesearch.export import Exported, check_destination, export
from prunesearch.export.companions import companions
from prunesearch.model.anatomy import Sizes, most_positions
from prunesearch.model.arithmetic import wide_products
from prunesearch.recipe import Recipe, RunOptions, in_arguments, slug, study_name
from prunesearch.report.notes import Noter
from prunesearch.samplers import SubsetSampler, build, trials_needed
from prunesearch.scoring.cost import LatencyModel, compare_latency
from prunesearch.scoring.fitness import Fitness, objectives
from prunesearch.scoring.objectives import numerics_of
from prunesearch.scoring.rankings import rank_units
from prunesearch.scoring.text import token_windows
from prunesearch.search import Listener, SearchResult, search
from prunesearch.space import SearchSpace, split_drop
from prunesearch.store import census, selection, studies
from prunesearch.store.evaluations import EvaluationStore
from prunesearch.store.keys import minor
from prunesearch.store.places import Places, check_writable

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        dense, best: evaluations of the model as it came and of the study's best candidate; of a Pareto study, of the
            member of its front that saves most for what it loses (the knee).
        value: the best trial's first value.
        front: documents of a Pareto study's non-dominated trials, best quality first; empty for others.
        dense_ms, best_ms: latency of one prefill in milliseconds.
        latency_measured: whether these were measured; they are predicted where weights are streamed.
        lost: share of the dense model's quality that the best has lost; see `selection.quality_lost`.
        paired: of a task, the difference between both on the same documents; None for others.
        result: what this run did.
        damaged: stored evaluations that were found damaged and computed again.
        seconds: wall time of the whole run.
    """

    study: str
    sampler: str
    trials: int
    dense: Evaluation
    best: Evaluation
    value: float
    front: tuple[dict[str, Any], ...]
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
        """As JSON values."""
        return {
            "study": self.study,
            "sampler": self.sampler,
            "storage": studies.shown(options.storage),
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
    listener: Listener | None = None,
) -> tuple[Outcome, Exported]:
    """Search, then export and verify the best candidate.

    Args:
        out: folder for the checkpoint; default: ``storage/exports/`` and the study's name.
        listener: hears the progress.

    Raises:
        PruneSearchError: see `errors`; what was evaluated before is kept.
    """
    try:
        (outcome,), (exported,) = search_and_export([recipe], options, None if out is None else Path(out), listener)
    except PruneSearchError as error:
        raise in_arguments(error) from error
    return outcome, exported


def search_and_export(
    recipes: Sequence[Recipe], options: RunOptions, out: Path | None, listener: Listener | None = None
) -> tuple[list[Outcome], list[Exported]]:
    """Search recipes that differ in sampler and number, and for each number export the best that a sampler found.

    Args:
        out: folder for the checkpoint; of several numbers each gets one in it; default: ``storage/exports/`` and the
            name of the study.

    Returns:
        What each search found, and one export for each number.

    Raises:
        PruneSearchError: see `errors`.
    """
    numbers = list(dict.fromkeys(recipe.drop for recipe in recipes))
    folders = {recipe: _folder(recipe, options, out, several=len(numbers) > 1) for recipe in recipes}
    for recipe, folder in folders.items():
        _check_exportable(recipe)
        check_destination(folder)
    check_grid(recipes, options)
    with open_bench(recipes[0], options) as bench:
        companions(bench.loaded)  # what an export would refuse is refused before any work
        outcomes = run_searches(bench, recipes, options, listener)
        exports = []
        for number in numbers:
            found = [pair for pair in zip(recipes, outcomes, strict=True) if pair[0].drop == number]
            _, (maximize, *_) = objectives(bench.objective.metric, bench.objective.maximize, recipes[0].weights, None)
            recipe, best = (max if maximize else min)(found, key=lambda pair: pair[1].value)
            exports.append(export(bench.loaded, best.best.candidate, folders[recipe], facts_of(recipe, best)))
    return outcomes, exports


def _folder(recipe: Recipe, options: RunOptions, out: Path | None, *, several: bool) -> Path:
    if out is None:
        return Path("storage/exports") / (options.study or study_name(recipe))
    return out / f"drop{slug(recipe.drop)}" if several else out


def _check_exportable(recipe: Recipe) -> None:
    if against_of(recipe) is not None:
        raise InputError(
            f"drop: {recipe.drop} gives a front, not one best: use prunesearch search, then export STUDY --max-loss 2%"
        )
    if recipe.units != "blocks":
        raise InputError(
            "units: sublayers leaves a choice of how to write the result: use prunesearch search, then export STUDY "
            "--as zeroed, deci or remote-code"
        )


def run_search(bench: Bench, recipe: Recipe, options: RunOptions, listener: Listener | None = None) -> Outcome:
    """Make or resume the recipe's study and bring it to the asked number of trials.

    Raises:
        StudyError: the study belongs to another recipe, model or data, or another process is writing it.
        RunError: the dense model, or every candidate, could not be scored; or the database failed.
    """
    (outcome,) = run_searches(bench, [recipe], options, listener)
    return outcome


def run_searches(
    bench: Bench, recipes: Sequence[Recipe], options: RunOptions, listener: Listener | None = None
) -> list[Outcome]:
    """Bring several recipes' studies to their trials at once, over one engine: what waits is scored together.

    Args:
        recipes: of the bench's model and objective.

    Raises:
        StudyError, RunError: see `run_search`.
    """
    start = time.perf_counter()
    check_grid(recipes, options)
    totals = [trials_of(recipe, space_of(recipe, bench.loaded), options) for recipe in recipes]
    for recipe, total in zip(recipes, totals, strict=True):
        if total > options.trials:
            events.tell(f"{recipe.sampler} needs {total} trials here, so it gets them")
    storage = studies.open_storage(options.storage, create=True)
    names = [options.study or study_name(recipe) for recipe in recipes]
    complete: set[str] = set()  # of the studies that another process writes: they are only reported
    with ExitStack() as held:
        for name, total in zip(names, totals, strict=True):
            held.enter_context(studies.database_failures(name, storage))
            try:
                held.enter_context(studies.sole_writer(storage, name))
            except StudyBusyError:
                if not studies.is_complete(storage, name, total):
                    raise
                complete.add(name)
        opened = [_open_study(bench, recipe, storage, name) for recipe, name in zip(recipes, names, strict=True)]
        events.tell("scoring the dense model")
        dense = require(*bench.engine.evaluate_now([LayerSubset.of(bench.loaded.n_layers)]))
        prepared = [_Prepared.of(bench, *pair, dense, options) for pair in zip(recipes, opened, strict=True)]
        left = [(p, total) for p, total in zip(prepared, totals, strict=True) if p.study.study_name not in complete]
        for p, total in left:
            studies.remember_places(p.study, p.recipe)
            p.study.set_user_attr(studies.TRIALS_ATTR, total)
        searched = iter(_run_to_end(_search_all(bench, left, listener)))
        for p, _ in left:
            p.write_notes()
        nothing = SearchResult(0, 0, 0, 0)
        results = [nothing if p.study.study_name in complete else next(searched) for p in prepared]
        return [p.outcome(bench, dense, result, start) for p, result in zip(prepared, results, strict=True)]


def check_grid(recipes: Sequence[Recipe], options: RunOptions) -> None:
    """Refuse recipes that would write one study, or one that cannot be written, before anything is loaded.

    Raises:
        InputError: ``--study`` names one study for several recipes, or a recipe is there twice.
        StudyBusyError: another process is searching a study that has more to do.
        StudyError: a study was made with another recipe.
    """
    if options.study is not None and len(recipes) > 1:
        raise InputError(f"--study names one study, and {len(recipes)} are searched: leave it out")
    names = [study_name(recipe) for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"study {twice!r} would be searched twice at once: name each sampler and number once")
    asked = [(options.study or study_name(recipe), recipe) for recipe in recipes]
    studies.refuse_busy(options.storage, [name for name, _ in asked], options.trials)
    studies.refuse_others(options.storage, asked)


def resume(
    name: str,
    options: RunOptions,
    *,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
    **places: str | None,
) -> Outcome:
    """Go on with a study, from whatever folder or machine.

    Args:
        options: without trials, the study gets as many as were asked for last.
        trust_remote_code: run the checkpoint's own code; what the study's maker trusted does not count.
        places: where model and data are now, by the recipe's names; their content must be what was searched.

    Raises:
        StudyError: there is no such study, or its model or data is not here.
    """
    study = studies.load(studies.open_storage(options.storage, create=False), name)
    recipe = studies.located(study, places).model_copy(update={"trust_remote_code": trust_remote_code})
    changed: dict[str, Any] = {"study": name}
    if "trials" not in options.model_fields_set and studies.TRIALS_ATTR in study.user_attrs:
        changed["trials"] = study.user_attrs[studies.TRIALS_ATTR]
    options = options.model_copy(update=changed)
    check_grid([recipe], options)
    with open_bench(recipe, options) as bench:
        return run_search(bench, recipe, options, listener)


async def _search_all(
    bench: Bench, prepared: Sequence[tuple["_Prepared", int]], listener: Listener | None
) -> list[SearchResult]:
    return await asyncio.gather(
        *(
            search(p.study, p.sampler, bench.engine, p.fitness, total, listener, p.recipe.race, p.noter.now_and_then)
            for p, total in prepared
        )
    )


def trials_of(recipe: Recipe, space: SearchSpace, options: RunOptions) -> int:
    """How many trials a search shall have: as asked, or where nothing was asked at least as many as its sampler needs.

    Raises:
        InputError: so few were asked for that there could be no result.
    """
    first, whole = trials_needed(recipe.sampler, recipe.start, space)
    if "trials" not in options.model_fields_set:
        return max(options.trials, whole)
    if options.trials < first:
        why = "--sampler greedy" if recipe.sampler == "greedy" else f"--sampler {recipe.sampler} --ranking single"
        what = "tries one layer after the other" if recipe.sampler == "greedy" else "first drops each layer alone"
        raise InputError(
            f"--trials {options.trials} would give no result: {why} {what}, which takes {first} trials here until the "
            f"first result and {whole} in all: give --trials {whole}, or leave --trials out"
        )
    return options.trials


@dataclass(frozen=True)
class _Prepared:
    """A study that is ready to be searched."""

    recipe: Recipe
    study: Study
    space: SearchSpace
    sampler: SubsetSampler
    fitness: Fitness
    noter: Noter

    @classmethod
    def of(cls, bench: Bench, recipe: Recipe, study: Study, dense: Evaluation, options: RunOptions) -> Self:
        fitness = _fitness(bench, recipe, study)
        studies.remembered(
            study, selection.DENSE_ATTR, lambda: {"metric": bench.objective.metric, "metrics": dict(dense.metrics)}
        )
        space = space_of(recipe, bench.loaded)
        figures = {**dense.metrics, **fitness.costs(dense.candidate)}
        noter = Noter(study, recipe, options, figures)
        return cls(recipe, study, space, _sampler(bench, recipe, study, space), fitness, noter)

    def write_notes(self) -> None:
        """Bring the study's notes up to date. A search that is done does not fail with them."""
        name = self.study.study_name
        try:
            with studies.database_failures(name):
                self.noter.write()
        except RunError as error:
            _log.warning("the notes of study %r were not written: %s", name, error)

    def outcome(self, bench: Bench, dense: Evaluation, result: SearchResult, start: float) -> Outcome:
        """What the finished search came to."""
        name = self.study.study_name
        ranked = selection.best_trials(self.study, None)
        if not ranked:
            if not result.failed:
                count = len(self.study.get_trials(deepcopy=False))
                raise RunError(f"study {name!r} has {count} trials and no result yet: run it again with more --trials")
            reason = studies.last_failure(self.study)
            raise RunError(
                f"none of the {result.failed} candidates could be scored ({reason}); the study {name!r} is kept"
            )
        pareto = self.space.budget == "pareto"
        chosen = knee(ranked, self.fitness.values(dense)) if pareto else ranked[0]
        best = require(*bench.engine.evaluate_now([self.space.from_params(chosen.params)]))
        measured = not bench.loaded.layers.one_pass
        if measured:
            events.tell("timing the winner beside the dense model")
        dense_ms, best_ms = _latencies(bench, self.fitness, best.candidate)
        return Outcome(
            study=name,
            sampler=self.recipe.sampler,
            trials=len(self.study.get_trials(deepcopy=False)),
            dense=dense,
            best=best,
            value=float(chosen.values[0]),
            front=tuple(studies.trial_document(t) for t in ranked) if pareto else (),
            dense_ms=dense_ms,
            best_ms=best_ms,
            latency_measured=measured,
            lost=selection.quality_lost(self.study, chosen, relative=True),
            paired=_paired(bench, dense, best) if self.recipe.objective == "task" else None,
            result=result,
            damaged=bench.store.damaged,
            sizes=bench.loaded.sizes,
            seconds=time.perf_counter() - start,
        )


def _latencies(bench: Bench, fitness: Fitness, best: LayerSubset) -> tuple[float, float]:
    """Measured milliseconds of the dense and the best model; predicted ones where its weights are not in memory."""
    if bench.loaded.layers.one_pass:
        return fitness.latency.predict(), fitness.latency.predict(best)
    return compare_latency(bench.loaded.model, best)


def _paired(bench: Bench, dense: Evaluation, best: Evaluation) -> dict[str, Any] | None:
    """The searched metric's mean difference, best - dense, over the documents of a task, with its standard error."""
    try:
        before, after = bench.engine.losses([dense.candidate, best.candidate])
    except InputError:  # the metric is no number per document
        return None
    sign = -1.0 if bench.objective.maximize else 1.0
    differences = [sign * (b - a) for a, b in zip(before, after, strict=True)]
    if len(differences) < 2:
        return None
    return {
        "metric": bench.objective.metric,
        "documents": len(differences),
        "difference": statistics.fmean(differences),
        "stderr": statistics.stdev(differences) / math.sqrt(len(differences)),
    }


def _open_study(bench: Bench, recipe: Recipe, storage: RDBStorage, name: str) -> Study:
    identity = {
        **recipe.identity(),
        **bench.objective.settings,
        "data content": bench.objective.digest,
        "model content": bench.loaded.fingerprint,
        "numerics": numerics_of(bench.loaded.model),
        "numpy version": minor(np.__version__),  # its random numbers decide what is proposed
    }
    metrics, maximize = objectives(bench.objective.metric, bench.objective.maximize, recipe.weights, against_of(recipe))
    return studies.create_or_resume(storage, name, recipe, identity, metrics=metrics, maximize=maximize)


def against_of(recipe: Recipe) -> str | None:
    """What a Pareto recipe weighs quality against; None for others."""
    return recipe.against if split_drop(recipe.drop)[0] == "pareto" else None


def _sampler(bench: Bench, recipe: Recipe, study: Study, space: SearchSpace) -> SubsetSampler:
    """The recipe's sampler; a ranking of the dense model is the one the study began with."""
    ranking: list[float] | Literal["single"] | None = None
    if recipe.start == "single":
        ranking = "single"
    elif recipe.start != "none":
        ranking = studies.remembered(study, "ranking", lambda: _short(_ranking(bench, recipe, space)))
    return build(
        recipe.sampler,
        space,
        seed=recipe.seed,
        population=recipe.population,
        form=recipe.form,
        preselect=recipe.preselect,
        ranking=ranking,
        asynchronous=recipe.asynchronous,
    )


def _short(numbers: Any) -> Any:  # noqa: ANN401 (JSON values)
    """JSON values with six digits, which is as exact as they were measured, so that a dashboard can show them."""
    if isinstance(numbers, dict):
        return {name: _short(value) for name, value in numbers.items()}
    if isinstance(numbers, list | tuple):
        return [_short(value) for value in numbers]
    return float(f"{numbers:.6g}")


def _ranking(bench: Bench, recipe: Recipe, space: SearchSpace) -> list[float]:
    """Rank the units on the recipe's calibration text; a task has none, and takes the built-in."""
    events.tell(f"ranking the layers by {recipe.start}")
    loaded = bench.loaded
    window = min(recipe.window, most_positions(loaded.model) or recipe.window)
    windows = token_windows(recipe.calibration, loaded.tokenizer, recipe.tokens, window)
    with wide_products():
        harm = rank_units(bench.loaded.model, bench.loaded.layers, windows, recipe.start, recipe.units)
    if recipe.units == "sublayers":
        return harm
    return [sum(harm[block] for block in space.blocks_of(unit)) for unit in range(space.n_units)]


def knee(front: Sequence[FrozenTrial], dense: Sequence[float]) -> FrozenTrial:
    """The member of a front that is farthest from the line between the dense model and the smallest, values scaled.

    I. Das, "On characterizing the 'knee' of the Pareto curve", Struct. Optim. 18, 1999.
    """
    spans = [abs(a - b) or 1.0 for a, b in zip(dense, front[-1].values, strict=True)]

    def gain(trial: FrozenTrial) -> float:
        lost, saved = (abs(v - a) / span for v, a, span in zip(trial.values, dense, spans, strict=True))
        return float(saved - lost)

    return max(front, key=gain)


def _fitness(bench: Bench, recipe: Recipe, study: Study) -> Fitness:
    """The study's ranking; its latency model is the one it began with, whatever machine it is resumed on."""
    latency = studies.remembered(study, "latency_model", lambda: _short(bench.engine.latency_model().as_json()))
    return Fitness(
        bench.objective.metric,
        bench.objective.maximize,
        recipe.weights,
        bench.loaded.sizes,
        LatencyModel.from_json(latency),
        against_of(recipe),
    )


def _run_to_end(searching: Coroutine[Any, Any, Result]) -> Result:
    """Run searches in an event loop of its own; in a thread where one is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_until_stopped(searching))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, searching).result()


async def _until_stopped(searching: Coroutine[Any, Any, Result]) -> Result:
    """Run searches until they are done, or a signal cancels them.

    Raises:
        StopRequested: it did.
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
    """What an export's manifest says about the search that chose it."""
    return {
        "study": outcome.study,
        "trials": outcome.trials,
        "recipe": recipe.portable(),
        "metrics": dict(outcome.best.metrics),
        "stderr": dict(outcome.best.stderr),
        "dense_metrics": dict(outcome.dense.metrics),
    }


def evaluate_model(recipe: Recipe, options: RunOptions, dropped: str) -> dict[str, Any]:
    """Evaluate the recipe's model, without the layers that are named, on the recipe's objective.

    Returns:
        Metrics, standard errors and sizes, as JSON values.

    Raises:
        RunError: it could not be scored.
    """
    check_writable(Places.parse(options.cache).folder)
    loaded = load_for(recipe, options, quantised=True)
    candidate = LayerSubset.parse(dropped, loaded.n_layers)
    objective = objective_for(recipe, loaded, options, generate=True)
    with EvaluationStore(options.cache) as store:
        engine = LocalEngine(loaded, objective, store, state_memory=options.state_bytes)
        with stopping.deferred():
            evaluation = require(*engine.evaluate_now([candidate]))
    census.remember_name(Places.parse(options.cache).folder, loaded.fingerprint, recipe.model)
    # A model's KL to itself says nothing.
    hidden = ("kl",) if candidate.text == "none" else ()
    return {
        "model": recipe.model,
        "dropped": candidate.text,
        "metrics": {k: v for k, v in evaluation.metrics.items() if k not in hidden},
        "stderr": {k: v for k, v in evaluation.stderr.items() if k not in hidden},
        "params": loaded.sizes.params(candidate),
        "bytes": loaded.sizes.bytes(candidate),
        "cached": evaluation.cached,
    }
