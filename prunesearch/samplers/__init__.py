"""Samplers of layer subsets.

Each sampler derives a proposal from the trial's number and the study's finished trials. Only this
folder and `studies.rdb` use Optuna's private API.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from prunesearch.algorithms.base import Algorithm
from prunesearch.algorithms.baselines import (
    Annealing,
    Evolution,
    Genetic,
    RandomSearch,
)
from prunesearch.config.recipe import SAMPLERS
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.samplers.base import (
    STATE_ATTR,
    GenerationPendingError,
    Proposal,
    SubsetSampler,
)
from prunesearch.samplers.baselines import GreedySampler, OneShotSampler, OptunaSampler
from prunesearch.samplers.population import DEFAULT_POPULATION, SwarmSampler
from prunesearch.samplers.public import (
    Options,
    PSOSampler,
    WOASampler,
    swarm,
)
from prunesearch.space import SearchSpace
from prunesearch.studies.trial_log import annotate, report

__all__ = [
    "SAMPLERS",
    "STATE_ATTR",
    "GenerationPendingError",
    "GreedySampler",
    "OneShotSampler",
    "OptunaSampler",
    "PSOSampler",
    "Proposal",
    "SubsetSampler",
    "SwarmSampler",
    "WOASampler",
    "annotate",
    "build",
    "report",
    "trials_needed",
]

_BASELINES: Mapping[str, Callable[[], Algorithm]] = {
    "evolution": Evolution,
    "ga": Genetic,
    "annealing": Annealing,
    "random": RandomSearch,
}
_OPTUNA: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, population: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed, population: optuna.samplers.NSGAIISampler(
        seed=seed, population_size=population
    ),
    "cmaes": lambda seed, population: optuna.samplers.CmaEsSampler(
        seed=seed, popsize=max(population, 4)
    ),
}
_POPULATIONS = {"pso": DEFAULT_POPULATION, "woa": DEFAULT_POPULATION}
"""Default number of trials per generation. All other samplers use 16."""


def build(
    name: str,
    space: SearchSpace,
    *,
    seed: int = 0,
    population: int | None = None,
    form: str = "set",
    preselect: bool = True,
    ranking: Sequence[float] | Literal["single"] | None = None,
    asynchronous: bool = False,
) -> SubsetSampler:
    """Build a sampler of subsets by its command-line name.

    Args:
        name: sampler name, as ``--sampler`` takes it.
        space: search space of the subsets.
        seed: seed of the random generator.
        population: trials per generation; None for the sampler's default.
        form: encoding of a subset; only for ``pso`` and ``woa`` (see `SwarmSampler`).
        preselect: use a surrogate to choose among moves; only for ``pso`` and ``woa``.
        ranking: warm start of the swarms (see `SwarmSampler`), or the order of ``one-shot``. Greedy
            and Optuna's samplers do not take one.
        asynchronous: never wait for a generation; only for ``pso`` and ``woa``.

    Raises:
        UnknownNameError: no such sampler or form.
        InputError: an option that the sampler does not have.
    """
    size = population or _POPULATIONS.get(name, 16)
    # The proposed algorithms: they alone have an encoding, a surrogate and an asynchronous mode.
    if name not in ("pso", "woa") and (form != "set" or asynchronous):
        option = "asynchronous" if asynchronous else "form"
        raise InputError(f"{option} goes with --sampler pso or woa, not {name}")
    if name in ("pso", "woa"):
        options = Options(preselect, ranking, asynchronous=asynchronous)
        law: Literal["pso", "woa"] = "pso" if name == "pso" else "woa"
        made = swarm(law, space, form, seed, size, options, name)
        assert isinstance(made, SwarmSampler)
        return made
    # Baselines that start from a ranking.
    if name in _BASELINES:
        algorithm = _BASELINES[name]()
        return SwarmSampler(
            space, algorithm, seed=seed, population=size, preselect=False, ranking=ranking
        )
    if name == "one-shot":
        order = "single" if ranking is None else ranking
        return OneShotSampler(space, seed=seed, population=size, ranking=order)
    # Baselines that cannot start from a ranking.
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS)
    if ranking is not None:
        raise InputError(f"a ranking cannot start --sampler {name}: leave it out")
    if name == "greedy":
        return GreedySampler(space, seed=seed, population=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return OptunaSampler(space, _OPTUNA[name](seed, size), name, seed=seed, population=size)


def trials_needed(name: str, ranking: str, space: SearchSpace) -> tuple[int, int]:
    """Return how many trials a sampler needs that evaluates partial subsets first.

    Args:
        name: sampler name, as `build` takes it.
        ranking: ranking of the recipe; ``single`` measures every unit alone first.
        space: search space of the subsets.

    Returns:
        The number of trials until the first result, and until the plan is complete. Both are 1 for
        a sampler without a plan.
    """
    free = len(space.droppable)
    # If a single unit may be a result, then the first trial is one.
    partial = space.k_min > 1
    if name == "greedy":
        # Round j tries each of the remaining units: free, free - 1, ...
        whole = sum(free - dropped for dropped in range(space.k))
        last_round = free - space.k + 1
        first = whole - last_round + 1 if partial else 1
        return first, whole
    if ranking == "single" or (name == "one-shot" and ranking == "none"):
        # One trial for each unit alone, then the first result.
        first = free + 1 if partial else 1
        return first, free + 1
    return 1, 1
