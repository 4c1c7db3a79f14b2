"""A study that is ready to be searched: its fitness, its sampler and its notes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast
from weakref import WeakKeyDictionary

import numpy as np
from optuna.storages import RDBStorage
from optuna.study import Study
from transformers import PreTrainedModel

from prunesearch import events
from prunesearch.algorithms.registry import REGISTRY, SINGLE
from prunesearch.algorithms.warm_start import WarmStart
from prunesearch.cache.keys import minor
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.identity import study_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import (
    RunError,
)
from prunesearch.evaluation.scalarization import TrialScalarizer, objectives
from prunesearch.execution.latency import LatencyModel
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import most_positions
from prunesearch.objectives.base import HasDocuments
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.identity import numerics_of, tokens_digest
from prunesearch.objectives.importance import rank_units
from prunesearch.pipeline.language_models import (
    language_model_of,
    table_of_layers,
    table_of_units,
)
from prunesearch.pipeline.session import (
    Session,
)
from prunesearch.pipeline.width_search import first_widths, harm_of_units
from prunesearch.report.notes import Noter
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers import SubsetSampler, build
from prunesearch.samplers.llm.settings import LanguageModel
from prunesearch.space import SearchSpace, Space
from prunesearch.studies import persistence, selection, study_recipe, warm_start
from prunesearch.studies.warm_start_source import WARM_START_ATTR
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.space import WidthSpace

FIRST_ATTR = "first candidates"
"""User attribute of a study: the candidates that it begins with."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedStudy:
    """A study that is ready to be searched."""

    recipe: Recipe
    study: Study
    space: Space
    sampler: SubsetSampler
    scalarizer: TrialScalarizer
    noter: Noter

    @classmethod
    def of(
        cls,
        session: Session,
        recipe: Recipe,
        study: Study,
        space: Space,
        dense: Evaluation,
        options: RunOptions,
    ) -> Self:
        """Prepare a study: its fitness, its sampler, and the notes that a dashboard shows."""
        scalarizer = _scalarizer(session, recipe, study)
        # Selection and notes compare trials with the dense model.
        costs = scalarizer.costs(dense.candidate)
        baseline: JsonObject = {
            "metric": session.objective.metric,
            "metrics": dict(dense.metrics),
            "costs": dict(costs),
        }
        persistence.get_or_set_attr(study, selection.DENSE_ATTR, lambda: baseline)
        figures = {**dense.metrics, **costs}
        noter = Noter(study, recipe, options, figures)
        sampler = sampler_of(session, recipe, study, space, options)
        return cls(recipe, study, space, sampler, scalarizer, noter)

    def write_notes(self) -> None:
        """Update the study's notes.

        A failure is only logged, because the search itself is complete.
        """
        name = self.study.study_name
        try:
            with persistence.database_failures(name):
                self.noter.finish()
        except RunError as error:
            _log.warning("the notes of study %r were not written: %s", name, error)


def open_study(session: Session, recipe: Recipe, storage: RDBStorage, name: str) -> Study:
    """Create or resume a study. An old study must have the same identity."""
    identity = {
        **scored_identity(session, recipe),
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


def scored_identity(session: Session, recipe: Recipe) -> JsonObject:
    """Return the part of a study's identity that decides the scores: the recipe, and the digests of
    model and data.
    """
    identity: JsonObject = {
        **recipe.identity(),
        **session.objective.settings,
        "data content": session.objective.digest,
        "model content": session.loaded.fingerprint,
        "numerics": dict(numerics_of(session.loaded.model)),
    }
    if session.measured is not None:
        identity[study_recipe.CHANNEL_ORDER] = session.measured.order.digest
    return identity


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
        isinstance(session.objective, HasDocuments),
    )


_ranked: WeakKeyDictionary[PreTrainedModel, dict[tuple[str, ...], list[float]]] = (
    WeakKeyDictionary()
)
"""The harm of units, by model, and by its content, the ranking, the units and the text."""


def sampler_of(
    session: Session,
    recipe: Recipe,
    study: Study,
    space: Space,
    options: RunOptions | None = None,
) -> SubsetSampler:
    """Build the recipe's sampler. A resumed study keeps the ranking, the prior knowledge and the
    first candidates that it began with.

    Args:
        session: the loaded model.
        recipe: recipe of the study.
        study: the study.
        space: space of the study.
        options: how the recipe is run; None if the study has begun.
    """
    ranking: list[float] | Literal["single"] | None = None
    if recipe.search.start == SINGLE:
        ranking = "single"
    elif recipe.search.start != "none":
        ranking = persistence.get_or_set_attr(
            study, "ranking", lambda: _short(_ranking(session, recipe, space))
        )
    section = recipe.search
    first: list[LayerSubset] = []
    if section.first_allocations:
        assert isinstance(space, WidthSpace)
        layers = session.layers
        texts = persistence.get_or_set_attr(
            study, FIRST_ATTR, lambda: [widths.text for widths in first_widths(space, layers)]
        )
        for text in texts:
            first.append(LayerWidths.read(text, space.shape, space.order, space.biases))
    return build(
        section.sampler,
        space,
        seed=section.seed,
        population=section.population,
        encoding=section.encoding,
        preselect=section.preselect,
        ranking=ranking,
        asynchronous=section.asynchronous,
        llm=_language_model(session, recipe, space, ranking),
        first=first,
        warm_start=_warm_start(session, recipe, study, space, options or RunOptions()),
    )


def refuse_other_model(
    session: Session, recipe: Recipe, space: Space, storage: RDBStorage, options: RunOptions
) -> None:
    """Refuse a warm start from a study of another model, before a new study is made.

    Args:
        session: the loaded model.
        recipe: recipe of the search.
        space: space of the search.
        storage: database of the search's study.
        options: how the recipe is run.

    Raises:
        StudyError: see `studies.warm_start.read_warm_start`.
    """
    name = options.study or study_name(recipe)
    if recipe.search.warm_start is None or persistence.exists(storage, name):
        return
    _read_warm_start(session, recipe, space, options)


def _warm_start(
    session: Session, recipe: Recipe, study: Study, space: Space, options: RunOptions
) -> WarmStart | None:
    """Return the prior knowledge of the recipe's sampler; None without a warm start."""
    if recipe.search.warm_start is None:
        return None
    stored: JsonObject = persistence.get_or_set_attr(
        study,
        WARM_START_ATTR,
        lambda: cast(JsonObject, _read_warm_start(session, recipe, space, options)),
    )
    return warm_start.of_stored(cast(warm_start.StoredWarmStart, stored))


def _read_warm_start(
    session: Session, recipe: Recipe, space: Space, options: RunOptions
) -> warm_start.StoredWarmStart:
    """Read what the study knows that the recipe names."""
    assert isinstance(space, SearchSpace) and recipe.search.warm_start is not None
    url = options.warm_start_storage or options.storage
    content = session.loaded.fingerprint
    return warm_start.read_warm_start(url, recipe.search.warm_start, recipe, space, content)


def _language_model(
    session: Session, recipe: Recipe, space: Space, ranking: Sequence[float] | str | None
) -> LanguageModel | None:
    """Return the language model of the recipe's sampler; None if the sampler asks none."""
    if not REGISTRY.get(recipe.search.sampler).needs_llm:
        return None
    if isinstance(space, SearchSpace):
        known = None if isinstance(ranking, str) else ranking
        table = table_of_units(space, session.loaded.sizes, known, recipe.search.start)
    else:
        table = table_of_layers(session.layers)
    chat = session.language_models.chat_of(recipe.llm, session.cache)
    return language_model_of(chat, recipe.llm, table)


def _ranking(session: Session, recipe: Recipe, space: Space) -> list[float]:
    """Rank the units as the recipe asks for."""
    if isinstance(space, WidthSpace):
        return harm_of_units(space, session.layers)
    assert isinstance(space, SearchSpace)
    return rank(session.loaded, recipe, space, recipe.search.start)


def rank(loaded: LoadedModel, recipe: Recipe, space: SearchSpace, ranking: str) -> list[float]:
    """Rank the units on a recipe's calibration text. A task uses the built-in text.

    Args:
        loaded: the dense model.
        recipe: recipe that names the text.
        space: space of the units.
        ranking: name of the ranking, see `objectives.importance.rank_units`.

    Returns:
        The estimated harm of dropping each unit.
    """
    events.tell(events.StageProgress(f"ranking the layers by {ranking}"))
    data, units = recipe.data, recipe.search.units
    window = min(data.window, most_positions(loaded.model) or data.window)
    windows = token_windows(data.calibration, loaded.tokenizer, data.tokens, window)
    # Searches of one model in one process often need the same ranking.
    known = _ranked.setdefault(loaded.model, {})
    key = (loaded.content, ranking, units, tokens_digest(windows.tolist()))
    if key not in known:
        with wide_products():
            known[key] = rank_units(loaded.model, loaded.layers, windows, ranking, units)
    harm = list(known[key])
    if units == "sublayers":
        return harm
    # The harm of a period is the sum of its blocks' harm.
    harm_of_unit = []
    for unit in range(space.n_units):
        harm_of_unit.append(sum(harm[block] for block in space.blocks_of(unit)))
    return harm_of_unit


def _short(numbers: Any) -> Any:  # noqa: ANN401 (JSON values)
    """Round the numbers in JSON values to six digits, so that a dashboard can show them."""
    if isinstance(numbers, dict):
        return {name: _short(value) for name, value in numbers.items()}
    if isinstance(numbers, list | tuple):
        return [_short(value) for value in numbers]
    return float(f"{numbers:.6g}")
