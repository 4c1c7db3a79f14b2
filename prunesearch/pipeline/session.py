"""Open a recipe's model, data, cache and engine together, ready to score candidates."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.location import CacheLocation, check_writable
from prunesearch.candidate import Evaluation
from prunesearch.config.recipe import Recipe, RunOptions
from prunesearch.errors import RunError
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.worker_pool import Content, WorkerPool
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.config_edits import period_of
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.streaming import open_streamed
from prunesearch.models.structure import settings_of
from prunesearch.objectives.base import Objective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.reference_cache import ReferenceCache
from prunesearch.objectives.registry import REGISTRY, ObjectiveInputs, TaskInputs
from prunesearch.objectives.weighted_sum import build_mix
from prunesearch.runtime import stopping
from prunesearch.space import SearchSpace
from prunesearch.studies import persistence


@dataclass(frozen=True)
class Session:
    """A loaded model with its objective, the engine that scores candidates, and the cache of
    evaluations.
    """

    loaded: LoadedModel
    objective: Objective
    engine: LocalEngine
    store: EvaluationCache


@contextmanager
def open_session(recipe: Recipe, options: RunOptions) -> Iterator[Session]:
    """Load the recipe's model and data, and open the cache. Nothing is written before both are
    checked.

    Raises:
        InputError: the model, the data, the number of layers, or a location of results cannot be
            used.
    """
    # Check the locations before the model is loaded, which takes long.
    persistence.check_url(options.storage)
    check_writable(CacheLocation.parse(options.cache).folder)
    loaded = load_for(recipe, options)
    space_of(recipe, loaded)
    objective = objective_for(recipe, loaded, options)
    content = Content.of(loaded.fingerprint, objective)
    with (
        EvaluationCache(options.cache) as store,
        _scorer(_pinned(recipe, loaded), options, content) as scorer,
    ):
        engine = LocalEngine(loaded, objective, store, scorer, options.state_bytes)
        with stopping.deferred():
            yield Session(loaded, objective, engine, store)


def _pinned(recipe: Recipe, loaded: LoadedModel) -> Recipe:
    """Return the recipe with the commit that was loaded, so that workers load the same one.

    A branch may move.
    """
    commit = loaded.source.commit
    if commit is None:
        return recipe
    return recipe.model_copy(update={"revision": commit})


@contextmanager
def _scorer(recipe: Recipe, options: RunOptions, content: Content) -> Iterator[WorkerPool | None]:
    """Start worker processes, if more than one is requested."""
    if options.workers == 1:
        yield None
        return
    with WorkerPool(functools.partial(_worker, recipe, options), options.workers, content) as pool:
        yield pool


def _worker(recipe: Recipe, options: RunOptions, number: int) -> tuple[Objective, Forward, str]:
    """Load a worker's own model and objective, and return them with the model's fingerprint."""
    # Each worker uses its own GPU, or its share of the cores.
    gpus = torch.cuda.device_count()
    if gpus and options.device in (None, "cuda"):
        options = options.model_copy(update={"device": f"cuda:{number % gpus}"})
    threads = max(1, (options.threads or os.cpu_count() or 1) // options.workers)
    options = options.model_copy(update={"threads": threads})
    loaded = load_for(recipe, options)
    forward = Forward(loaded.model, loaded.layers, options.state_bytes)
    return objective_for(recipe, loaded, options), forward, loaded.fingerprint


def load_for(recipe: Recipe, options: RunOptions, quantised: bool = False) -> LoadedModel:
    """Load the recipe's model.

    Args:
        recipe: names the model.
        options: device and location of the weights.
        quantised: accept a quantised model, which can be scored but not exported.
    """
    with stopping.interruptible():
        return _load(recipe, options, quantised)


def _load(recipe: Recipe, options: RunOptions, quantised: bool) -> LoadedModel:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    events.tell(events.StageProgress(f"loading the model {recipe.model}"))
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


def objective_for(
    recipe: Recipe, loaded: LoadedModel, options: RunOptions, generate: bool = False
) -> Objective:
    """Build the recipe's objective with its data.

    Args:
        recipe: names the objective and the data.
        loaded: model that is scored.
        options: locations of the cache.
        generate: allow tasks that generate text.
    """

    def read_windows() -> torch.Tensor:
        return token_windows(recipe.calibration, loaded.tokenizer, recipe.tokens, recipe.window)

    inputs = ObjectiveInputs(
        loaded,
        read_windows,
        ReferenceCache(CacheLocation.parse(options.cache).folder / "references"),
        kl_top=recipe.kl_top,
        task=TaskInputs(
            recipe.task or "",
            metric=recipe.metric,
            data=recipe.task_data,
            include_path=recipe.include_path,
            limit=recipe.limit,
            num_fewshot=recipe.num_fewshot,
            batch_tokens=recipe.batch_tokens,
            generate=generate,
        ),
    )
    if "=" in recipe.objective:
        return build_mix(recipe.terms, inputs)
    return REGISTRY.get(recipe.objective).build(inputs)


def space_of(recipe: Recipe, loaded: LoadedModel) -> SearchSpace:
    """Return the recipe's search space on a model.

    Raises:
        InputError: the model does not allow what the recipe drops.
    """
    period = 1
    if recipe.keep_pattern:
        period = period_of(settings_of(loaded.model.config), loaded.n_layers)
    return SearchSpace.parse(loaded.n_layers, recipe.drop, recipe.protect, recipe.units, period)


def require(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation if it succeeded.

    Raises:
        RunError: the evaluation failed.
    """
    if evaluation.failure is not None:
        what = evaluation.candidate.text
        raise RunError(f"scoring the model without layers {what} failed: {evaluation.failure}")
    return evaluation
