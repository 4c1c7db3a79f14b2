"""Open a recipe's model, data, cache and engine together, ready to score candidates."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.location import CacheLocation, check_url, check_writable
from prunesearch.candidate import Evaluation
from prunesearch.config.data import DataSection
from prunesearch.config.model import ModelSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.config.search import SearchSection
from prunesearch.errors import RunError
from prunesearch.evaluation import ray_cluster
from prunesearch.evaluation.cached_scorer import Scorer
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.worker import Content
from prunesearch.evaluation.worker_pool import WorkerPool
from prunesearch.execution.block_code import BlockCode
from prunesearch.execution.head_choice import use_compiler
from prunesearch.execution.shared_forward import Forward
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.importance.orders import MeasuredOrder
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.config_edits import period_of
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.model_configs import settings_of
from prunesearch.models.reordering import reorder
from prunesearch.models.streaming import open_streamed
from prunesearch.models.structure import input_device
from prunesearch.objectives.base import Objective
from prunesearch.objectives.calibration import DenseOutputs
from prunesearch.objectives.calibration_data import mention_long_windows, token_windows
from prunesearch.objectives.reference_cache import ReferenceCache
from prunesearch.objectives.registry import REGISTRY, ObjectiveInputs, TaskInputs
from prunesearch.objectives.weighted_sum import build_mix
from prunesearch.pipeline.data_checks import check_data
from prunesearch.pipeline.language_models import LanguageModels
from prunesearch.pipeline.width_search import (
    check_resident,
    check_widths,
    put_in_order,
    width_space_of,
)
from prunesearch.runtime import stopping
from prunesearch.space import SearchSpace, Space
from prunesearch.widths.layer_widths import described

if TYPE_CHECKING:
    from prunesearch.pipeline.ray_workers import RayPlan


@dataclass(frozen=True)
class Session:
    """A loaded model with its objective, the engine that scores candidates, and the cache of
    evaluations.
    """

    loaded: LoadedModel
    objective: Objective
    engine: LocalEngine
    cache: EvaluationCache
    spaces: dict[SearchSection, Space] = field(default_factory=dict, repr=False)
    measured: MeasuredOrder | None = None
    """Order of the model's channels, and the statistics of its layers. None: the search drops
    layers only.
    """
    language_models: LanguageModels = field(default_factory=LanguageModels, repr=False)

    @property
    def layers(self) -> tuple[LayerStatistics, ...]:
        """Statistics of the layers, for a search over widths."""
        assert self.measured is not None, "only a search over widths measures the layers"
        return self.measured.layers

    def space_of(self, section: SearchSection) -> Space:
        """Return the search space of a recipe. It is made once."""
        if section not in self.spaces:
            self.spaces[section] = space_of(section, self.loaded)
        return self.spaces[section]


@contextmanager
def open_session(recipe: Recipe, options: RunOptions) -> Iterator[Session]:
    """Load the recipe's model and data, and open the cache. Nothing is written before both are
    checked.

    Raises:
        InputError: the model, the data, the number of layers, or a location of results cannot be
            used.
    """
    # Check the options and locations before the model is loaded, which takes long.
    check_resident(recipe, options)
    if options.engine == "ray":
        ray_cluster.check(options.ray_address)
    check_url(options.storage)
    check_data(recipe.objective, recipe.data)
    check_writable(CacheLocation.parse(options.cache).folder)
    loaded = load_for(recipe.model, options)
    check_widths(recipe.search, loaded)
    with stopping.interruptible():
        measured = put_in_order(
            recipe.search.criterion, recipe.search.order_tokens, recipe.data, loaded, options
        )
    spaces = {recipe.search: space_of(recipe.search, loaded)}
    objective = objective_for(recipe.objective, recipe.data, loaded, options)
    if recipe.objective.calibrated:
        mention_long_windows(loaded.model, min(recipe.data.window, recipe.data.tokens))
    content = Content.of(loaded.fingerprint, objective)
    with (
        EvaluationCache(options.cache) as cache,
        LanguageModels(options.threads) as language_models,
        _scorer(_pinned(recipe, loaded), options, loaded, content, measured) as scorer,
    ):
        streamed = loaded.layers.streamed_once
        engine = LocalEngine(
            loaded,
            objective,
            cache,
            scorer,
            options.state_bytes,
            streamed,
            block_code(options, objective, loaded.n_layers),
        )
        with stopping.deferred():
            yield Session(loaded, objective, engine, cache, spaces, measured, language_models)


def _pinned(recipe: Recipe, loaded: LoadedModel) -> Recipe:
    """Return the recipe with the commit that was loaded, so that workers load the same one.

    A branch may move.
    """
    commit = loaded.source.commit
    if commit is None:
        return recipe
    return recipe.with_changes(revision=commit)


@contextmanager
def _scorer(
    recipe: Recipe,
    options: RunOptions,
    loaded: LoadedModel,
    content: Content,
    measured: MeasuredOrder | None,
) -> Iterator[Scorer | None]:
    """Start the workers. With one local worker, this process scores itself."""
    order = None if measured is None else measured.order
    if options.engine == "ray":
        with _ray_pool(recipe, options, loaded, content, order) as scorer:
            yield scorer
        return
    if options.workers == 1:
        yield None
        return
    build = functools.partial(_worker, recipe, options, order)
    with WorkerPool(build, options.workers, content) as pool:
        yield pool


@contextmanager
def _ray_pool(
    recipe: Recipe,
    options: RunOptions,
    loaded: LoadedModel,
    content: Content,
    order: ChannelOrder | None,
) -> Iterator[Scorer]:
    """Connect to Ray, and start its workers."""
    # Ray is an extra, so what needs it is imported here.
    from prunesearch.evaluation.ray_pool import RayPool
    from prunesearch.pipeline.ray_workers import RayPlan

    references = _references_of(options)
    plan = RayPlan.of(recipe, options, input_device(loaded.model).type, references)
    build, whole = functools.partial(_ray_worker, plan, order), options.offload == "disk"
    workers, resources = options.workers, plan.resources
    with (
        ray_cluster.connected(options.ray_address, resources.cpus * workers),
        RayPool(build, workers, content, resources, whole) as pool,
    ):
        if options.ray_address is None:
            ray_cluster.check_fits(workers, resources.cpus, resources.gpus)
        yield pool


def _worker(
    recipe: Recipe, options: RunOptions, order: ChannelOrder | None, number: int
) -> tuple[Objective, Forward, str]:
    """Load a worker's own model and objective, and return them with the model's fingerprint."""
    # Each worker uses its own GPU, or its share of the cores.
    gpus = torch.cuda.device_count()
    if gpus and options.device in (None, "cuda"):
        options = options.model_copy(update={"device": f"cuda:{number % gpus}"})
    threads = max(1, (options.threads or os.cpu_count() or 1) // options.workers)
    return _scored_by(recipe, options.model_copy(update={"threads": threads}), order)


def _ray_worker(
    plan: "RayPlan", order: ChannelOrder | None, number: int
) -> tuple[Objective, Forward, str]:
    """Load the model and objective of a worker of Ray, on the devices that Ray gave it."""
    references = ReferenceCache(plan.references_here())
    return _scored_by(plan.recipe_here(), plan.options, order, references)


def _scored_by(
    recipe: Recipe,
    options: RunOptions,
    order: ChannelOrder | None,
    references: ReferenceCache | None = None,
) -> tuple[Objective, Forward, str]:
    """Load the model and objective of a worker. Its channels are put in the session's order."""
    loaded = load_for(recipe.model, options)
    if order is not None:
        reorder(loaded.model, order)
    objective = objective_for(recipe.objective, recipe.data, loaded, options, references=references)
    code = block_code(options, objective, loaded.n_layers)
    forward = Forward(loaded.model, loaded.layers, options.state_bytes, code=code)
    return objective, forward, loaded.fingerprint


def block_code(options: RunOptions, objective: Objective, n_layers: int) -> BlockCode:
    """Return how a search runs blocks. Each of its workers compiles them for its share.

    Candidates that share their first blocks are counted as if they did not.
    """
    tokens = sum(chunk.tokens for chunk in objective.chunks)
    return BlockCode(options.compile, options.trials * tokens * n_layers / options.workers)


def load_for(model: ModelSection, options: RunOptions, quantised: bool = False) -> LoadedModel:
    """Load the model of a recipe.

    Args:
        model: names the model.
        options: device and location of the weights.
        quantised: accept a quantised model, which can be scored but not exported.
    """
    with stopping.interruptible():
        return _load(model, options, quantised)


def _load(model: ModelSection, options: RunOptions, quantised: bool) -> LoadedModel:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    use_compiler(options.compile == "on")
    events.tell(events.StageProgress(f"loading the model {model.path}"))
    if options.offload != "none":
        return open_streamed(
            model.path,
            revision=model.revision,
            dtype=model.dtype,
            device=options.device,
            trust_remote_code=model.trust_remote_code,
            host=options.offload == "cpu",
        )
    return load(
        model.path,
        revision=model.revision,
        dtype=model.dtype,
        device=options.device,
        device_map=options.device_map,
        trust_remote_code=model.trust_remote_code,
        quantised=quantised,
    )


def objective_for(
    section: ObjectiveSection,
    data: DataSection,
    loaded: LoadedModel,
    options: RunOptions,
    generate: bool = False,
    references: ReferenceCache | None = None,
    first: int = 0,
    compared_with: DenseOutputs | None = None,
) -> Objective:
    """Build the objective of a recipe with its data.

    Args:
        section: names the objective.
        data: names the data.
        loaded: model that is scored.
        options: locations of the cache.
        generate: allow tasks that generate text.
        references: the dense model's outputs. Default: those in the cache's folder.
        first: number of documents of a task that are left out before those that are used.
        compared_with: outputs of another dense model, from which `loaded` was made.

    Raises:
        InputError: the data are not those that the objective reads.
    """
    section.check_data(data)

    def read_windows() -> torch.Tensor:
        return token_windows(data.calibration, loaded.tokenizer, data.tokens, data.window)

    inputs = ObjectiveInputs(
        loaded,
        read_windows,
        ReferenceCache(_references_of(options)) if references is None else references,
        kl_top=section.kl_top,
        task=TaskInputs(
            section.task or "",
            metric=section.metric,
            data=data.task_data,
            include_path=data.include_path,
            limit=data.limit,
            first=first,
            num_fewshot=data.num_fewshot,
            batch_tokens=data.batch_tokens,
            generate=generate,
        ),
        compared_with=compared_with,
    )
    # Nothing is left half done while data are read, so a signal ends this at once.
    with stopping.interruptible():
        if section.is_mix:
            return build_mix(section.terms, inputs)
        return REGISTRY.get(section.name).build(inputs)


def _references_of(options: RunOptions) -> Path:
    """Return the folder of the dense model's outputs."""
    return CacheLocation.parse(options.cache).folder / "references"


def space_of(section: SearchSection, loaded: LoadedModel) -> Space:
    """Return the search space of a recipe on a model. For widths its channels must be in order.

    Raises:
        InputError: the model does not allow what the recipe removes.
    """
    if section.narrows:
        return width_space_of(section, loaded)
    period = 1
    if section.keep_pattern:
        period = period_of(settings_of(loaded.model.config), loaded.n_layers)
    return SearchSpace.parse(loaded.n_layers, section.drop, section.protect, section.units, period)


def require(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation if it succeeded.

    Raises:
        RunError: the evaluation failed.
    """
    if evaluation.failure is not None:
        what = described(evaluation.candidate.text)
        raise RunError(f"scoring the model {what} failed: {evaluation.failure}")
    return evaluation
