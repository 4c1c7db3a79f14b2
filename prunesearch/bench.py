"""A recipe's model, data, store and engine, put together and ready to score."""

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from prunesearch import events, stopping
from prunesearch.candidate import Evaluation
from prunesearch.engine.local import LocalEngine
from prunesearch.engine.pool import Content, WorkerPool
from prunesearch.errors import RunError
from prunesearch.model.anatomy import settings_of
from prunesearch.model.fields import period_of
from prunesearch.model.loading import LoadedModel, load
from prunesearch.model.streaming import open_streamed
from prunesearch.recipe import CALIBRATED, Recipe, RunOptions
from prunesearch.scoring.forward import Forward
from prunesearch.scoring.mix import MixObjective
from prunesearch.scoring.objectives import CalibrationObjective, Objective
from prunesearch.scoring.reference import ReferenceStore
from prunesearch.scoring.text import token_windows
from prunesearch.space import SearchSpace
from prunesearch.store import studies
from prunesearch.store.evaluations import EvaluationStore
from prunesearch.store.places import Places, check_writable


@dataclass(frozen=True)
class Bench:
    """A model on the bench: loaded, with an objective to score it by and a store for what was scored."""

    loaded: LoadedModel
    objective: Objective
    engine: LocalEngine
    store: EvaluationStore


@contextmanager
def open_bench(recipe: Recipe, options: RunOptions) -> Iterator[Bench]:
    """Load the recipe's model and data; nothing is written before both are known to be good.

    Raises:
        InputError: the model, the data, the number of layers, or where results shall go.
    """
    studies.check_url(options.storage)
    check_writable(Places.parse(options.cache).folder)
    loaded = load_for(recipe, options)
    space_of(recipe, loaded)
    objective = objective_for(recipe, loaded, options)
    content = Content.of(loaded.fingerprint, objective)
    with (
        EvaluationStore(options.cache) as store,
        _scorer(_pinned(recipe, loaded), options, content) as scorer,
    ):
        engine = LocalEngine(loaded, objective, store, scorer, options.state_bytes)
        with stopping.deferred():
            yield Bench(loaded, objective, engine, store)


def _pinned(recipe: Recipe, loaded: LoadedModel) -> Recipe:
    """The recipe with the very commit that was loaded, for others to load: a branch may move."""
    commit = loaded.source.commit
    return recipe if commit is None else recipe.model_copy(update={"revision": commit})


@contextmanager
def _scorer(recipe: Recipe, options: RunOptions, content: Content) -> Iterator[WorkerPool | None]:
    """Worker processes, where more than one is asked for."""
    if options.workers == 1:
        yield None
        return
    with WorkerPool(functools.partial(_worker, recipe, options), options.workers, content) as pool:
        yield pool


def _worker(recipe: Recipe, options: RunOptions, number: int) -> tuple[Objective, Forward, str]:
    """A worker's own model and objective, with the model's fingerprint.

    It has a GPU of its own, or its share of the cores.
    """
    gpus = torch.cuda.device_count()
    if gpus and options.device in (None, "cuda"):
        options = options.model_copy(update={"device": f"cuda:{number % gpus}"})
    threads = max(1, (options.threads or os.cpu_count() or 1) // options.workers)
    options = options.model_copy(update={"threads": threads})
    loaded = load_for(recipe, options)
    forward = Forward(loaded.model, loaded.layers, options.state_bytes)
    return objective_for(recipe, loaded, options), forward, loaded.fingerprint


def load_for(recipe: Recipe, options: RunOptions, quantised: bool = False) -> LoadedModel:
    """Load the recipe's model as the options say.

    Args:
        quantised: take a quantised model, which can be scored but not exported.
    """
    with stopping.interruptible():
        return _load(recipe, options, quantised)


def _load(recipe: Recipe, options: RunOptions, quantised: bool) -> LoadedModel:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    events.tell(f"loading the model {recipe.model}")
    if options.weights_in != "memory":
        return open_streamed(
            recipe.model,
            revision=recipe.revision,
            dtype=recipe.dtype,
            device=options.device,
            trust_remote_code=recipe.trust_remote_code,
            host=options.weights_in == "host",
        )
    return load(
        recipe.model,
        revision=recipe.revision,
        dtype=recipe.dtype,
        device=options.device,
        device_map=options.device_map,
        trust_remote_code=recipe.trust_remote_code,
        quantised=quantised,
    )


def objective_for(recipe: Recipe, loaded: LoadedModel, options: RunOptions, generate: bool = False) -> Objective:
    """Build the recipe's objective and its data.

    Args:
        generate: allow tasks that generate text.
    """
    if recipe.objective == "task":
        return _task_objective(recipe, loaded, recipe.task or "", generate)
    if recipe.objective in CALIBRATED:
        return _calibration_objective(recipe, loaded, options, recipe.objective)
    parts: dict[str, Objective] = {
        name: _task_objective(recipe, loaded, name, generate) for name in recipe.terms if name not in CALIBRATED
    }
    calibrated = [name for name in recipe.terms if name in CALIBRATED]
    if calibrated:
        parts["calibration"] = _calibration_objective(recipe, loaded, options, calibrated[0])
    return MixObjective(parts, recipe.terms)


def _calibration_objective(recipe: Recipe, loaded: LoadedModel, options: RunOptions, metric: str) -> Objective:
    windows = token_windows(recipe.calibration, loaded.tokenizer, recipe.tokens, recipe.window)
    references = ReferenceStore(Places.parse(options.cache).folder / "references")
    return CalibrationObjective(loaded, windows, metric, recipe.kl_top, references)


def _task_objective(recipe: Recipe, loaded: LoadedModel, task: str, generate: bool) -> Objective:
    if "lm_eval" not in sys.modules:
        events.tell("loading lm-eval")
    from prunesearch.scoring.harness import TaskObjective  # lm-eval takes seconds to import

    events.tell(f"reading the documents of {task}")
    return TaskObjective(
        loaded,
        task,
        metric=recipe.metric,
        data=recipe.task_data,
        include_path=recipe.include_path,
        limit=recipe.limit,
        num_fewshot=recipe.num_fewshot,
        batch_tokens=recipe.batch_tokens,
        generate=generate,
    )


def space_of(recipe: Recipe, loaded: LoadedModel) -> SearchSpace:
    """The recipe's search space on a model.

    Raises:
        InputError: what the recipe wants dropped cannot be.
    """
    period = 1
    if recipe.keep_pattern:
        period = period_of(settings_of(loaded.model.config), loaded.n_layers)
    return SearchSpace.parse(loaded.n_layers, recipe.drop, recipe.protect, recipe.units, period)


def require(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation that succeeded.

    Raises:
        RunError: it failed.
    """
    if evaluation.failure is not None:
        what = evaluation.candidate.text
        raise RunError(f"scoring the model without layers {what} failed: {evaluation.failure}")
    return evaluation
