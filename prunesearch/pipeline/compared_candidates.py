"""The candidates that a report compares: the dense model, the winner, and baselines at its budget.

The baseline `last` is the simple rule of A. Gromov et al., "The Unreasonable Ineffectiveness of the
Deeper Layers", arXiv:2403.17887: the deepest blocks before the last one. The others are the
rankings of `objectives.importance`, the ranking by the loss without a single unit, and subsets that
are drawn at random.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunesearch import events
from prunesearch.candidate import LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.config.search import RANKINGS
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.execution.speed import MeasuredSpeed
from prunesearch.importance.allocations.registry import fixed_allocations
from prunesearch.importance.orders import MeasuredOrder
from prunesearch.models.loading import LoadedModel
from prunesearch.pipeline.outcome import knee_of
from prunesearch.pipeline.prepared_study import rank
from prunesearch.space import SearchSpace, Space
from prunesearch.studies.measurements import BASELINE
from prunesearch.studies.selection import recommended_trials, searched_metric
from prunesearch.widths.space import WidthSpace

RANDOM = 5
"""Number of random baselines."""
_ATTEMPTS = 100  # draws of a random candidate, of which those that are equal count once
_RANDOM_ROLE = f"{BASELINE}random"
_SINGLE = "single"


@dataclass(frozen=True)
class ComparedCandidate:
    """A candidate, and why it is measured.

    Attributes:
        role: see `studies.measurements.Measurement`.
        candidate: the candidate.
        made_of: what was dropped, if the candidate is a whole checkpoint.
    """

    role: str
    candidate: LayerSubset
    made_of: str | None = None

    @property
    def dropped(self) -> str:
        """What was dropped from the dense model, as a measurement names it."""
        return self.candidate.text if self.made_of is None else self.made_of

    @property
    def writes(self) -> bool:
        """True if it generates texts. Baselines do not."""
        return not self.role.startswith(BASELINE)

    @property
    def is_random(self) -> bool:
        """True for one of several candidates that stand for random choice."""
        return self.role == _RANDOM_ROLE


@dataclass
class SharedFacts:
    """What several studies of one model have in common, so that it is measured once.

    Attributes:
        baselines: baselines by `baselines_key`.
        speeds: latencies of the candidates that were timed.
    """

    baselines: dict[Hashable, list[ComparedCandidate]] = field(default_factory=dict)
    speeds: dict[LayerSubset, MeasuredSpeed] = field(default_factory=dict)


def baselines_key(recipe: Recipe, space: Space, winner: LayerSubset, finished: int) -> Hashable:
    """Return what decides the baselines of a study of one model.

    Args:
        recipe: recipe of the study.
        space: space that it searches.
        winner: the best candidate of the study.
        finished: number of finished trials.
    """
    data, objective = recipe.data.model_dump_json(), recipe.objective.model_dump_json()
    if isinstance(space, WidthSpace):
        return data, objective, recipe.search.criterion, recipe.search.order_tokens, space.budget
    assert isinstance(space, SearchSpace)
    enough = len(space.droppable) <= finished
    return data, objective, space, space.count(winner), enough


def best_of(study: Study) -> list[FrozenTrial]:
    """Return the trials that a comparison depends on, the best first.

    Returns:
        The best trial, or the front of a Pareto study. Then the trial that is best by the metric
        alone, if size or latency count too and made another trial the best. Empty if no trial has
        finished.
    """
    # The first trial is the best by all that the study searches for.
    ranked = list(recommended_trials(study))
    if len(study.directions) > 1 or not ranked:
        return ranked
    metric, sign = searched_metric(study) or "", 1.0
    if study.directions[0] == StudyDirection.MAXIMIZE:
        sign = -1.0
    # Find the trial with the least metric. Of equal ones the better ranked one stays.
    by_metric = ranked[0]
    for trial in ranked:
        value, least = trial.user_attrs.get(metric), by_metric.user_attrs.get(metric)
        if not isinstance(value, int | float) or not isinstance(least, int | float):
            continue
        if sign * value < sign * least:
            by_metric = trial
    if by_metric.number == ranked[0].number:
        return ranked[:1]
    return [ranked[0], by_metric]


def winners(
    study: Study, space: Space, scalarizer: TrialScalarizer, dense: Sequence[float]
) -> list[ComparedCandidate]:
    """Return the best candidate of a study, and the naive best if it is another one.

    The best of a Pareto study is the knee of its front.

    Args:
        study: the study, with a finished trial.
        space: space that it searches.
        scalarizer: values of its trials.
        dense: values of the dense model.
    """
    best = best_of(study)
    if len(study.directions) > 1:
        chosen = knee_of(best, scalarizer, dense)
        return [ComparedCandidate("winner", space.from_params(chosen.params))]
    found = [ComparedCandidate("winner", space.from_params(best[0].params))]
    for trial in best[1:]:
        found.append(ComparedCandidate("naive-best", space.from_params(trial.params)))
    return found


def baselines(
    loaded: LoadedModel,
    recipe: Recipe,
    space: Space,
    winner: LayerSubset,
    order: MeasuredOrder | None,
    engine: LocalEngine,
    finished: int,
) -> list[ComparedCandidate]:
    """Return the baselines at the winner's budget.

    Args:
        loaded: the dense model.
        recipe: recipe of the study.
        space: space that it searches.
        winner: the best candidate of the study.
        order: order of the channels; None if the search drops layers.
        engine: engine that scores on the data of the search.
        finished: number of finished trials. The ranking by single units scores each unit once,
            which is left out if it would take more evaluations than the search.
    """
    if isinstance(space, WidthSpace):
        assert order is not None, "a search over widths has an order of channels"
        return _of_widths(space, order)
    assert isinstance(space, SearchSpace)
    # 1. Each ranking drops the units that it finds the least harmful.
    count = space.count(winner)
    found = []
    for name in RANKINGS:
        harm = _harm(name, loaded, recipe, space, engine, finished)
        if harm is not None:
            found.append(ComparedCandidate(f"{BASELINE}{name}", _cheapest(space, harm, count)))
    # 2. The simple rules need no model.
    found.append(ComparedCandidate(f"{BASELINE}last", _deepest(space, count)))
    for candidate in _random_subsets(space, count):
        found.append(ComparedCandidate(_RANDOM_ROLE, candidate))
    return found


def _harm(
    name: str,
    loaded: LoadedModel,
    recipe: Recipe,
    space: SearchSpace,
    engine: LocalEngine,
    finished: int,
) -> Sequence[float] | None:
    """Return the estimated harm of each unit by a ranking; None if it cannot be made here."""
    if name == "none" or (name == "taylor" and loaded.layers.streamed_once):
        return None
    # A ranking of the recipe is computed on the data of the search.
    if name != _SINGLE:
        return rank(loaded, recipe, space, name)
    # The ranking by single units scores each of them once, through the cache.
    if len(space.droppable) > finished:
        return None
    events.tell(events.StageProgress("ranking the layers one by one"))
    sign = -1.0 if engine.objective.maximize else 1.0
    singles = [space.candidate([unit]) for unit in space.droppable]
    harm = [0.0] * space.n_units
    for unit, evaluation in zip(space.droppable, engine.evaluate_now(singles), strict=True):
        # A unit without which the model fails is dropped last.
        harm[unit] = float("inf")
        if evaluation.failure is None:
            harm[unit] = sign * evaluation.metrics[engine.objective.metric]
    return harm


def _cheapest(space: SearchSpace, harm: Sequence[float], count: int) -> LayerSubset:
    """Return the candidate without the units of least harm."""
    ranked = sorted(space.droppable, key=lambda unit: (harm[unit], unit))
    return space.candidate(ranked[:count])


def _deepest(space: SearchSpace, count: int) -> LayerSubset:
    """Return the candidate without the deepest units before the last block.

    The units of the last block are taken if no others are left.
    """
    last = space.blocks_of(space.droppable[-1])
    before = [unit for unit in space.droppable if space.blocks_of(unit) != last]
    after = [unit for unit in space.droppable if space.blocks_of(unit) == last]
    return space.candidate([*after, *before][-count:])


def _random_subsets(space: SearchSpace, count: int) -> list[LayerSubset]:
    """Return different random candidates that drop as many units. They are the same every time."""
    rng = np.random.Generator(np.random.Philox(key=count))
    found: dict[LayerSubset, None] = {}
    for _ in range(_ATTEMPTS):
        if len(found) == RANDOM:
            break
        # A dictionary keeps the order of the draws, and each candidate once.
        units = rng.choice(space.droppable, size=count, replace=False)
        found[space.candidate(units.tolist())] = None
    return list(found)


def _of_widths(space: WidthSpace, order: MeasuredOrder) -> list[ComparedCandidate]:
    """Return the fixed allocations and random widths, all at the budget of the search."""
    found = []
    for allocation in fixed_allocations(space, order.layers):
        name = allocation.name.replace(" ", "-")
        found.append(ComparedCandidate(f"{BASELINE}{name}", allocation.candidate))
    rng = np.random.Generator(np.random.Philox(key=RANDOM))
    # Random widths are brought to the budget as a search does it.
    wanted_MG = rng.random((RANDOM, space.n_genes)) * space.most_G
    levels_MG = space.project(wanted_MG, rng)
    assert levels_MG is not None, "a space checks that its budget can be met"
    for levels_G in levels_MG:
        found.append(ComparedCandidate(f"{BASELINE}random", space.candidate(levels_G)))
    return found


def finished_trials(study: Study) -> int:
    """Return the number of complete and pruned trials of a study."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))
