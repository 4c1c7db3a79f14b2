"""The samplers: what each proposes is derived from a trial's number and the study's finished trials.

This folder and `store.rdb` alone touch Optuna's private API.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from prunesearch.errors import InputError, UnknownNameError
from prunesearch.recipe import SAMPLERS
from prunesearch.samplers.base import STATE_ATTR, GenerationPendingError, Proposal, SubsetSampler
from prunesearch.samplers.ledger import annotate, report
from prunesearch.samplers.pso_woa import Options, PSOSampler, WOASampler, swarm
from prunesearch.samplers.rivals import GreedySampler, OneShotSampler, OptunaSampler
from prunesearch.samplers.swarms import DEFAULT_POPULATION, SwarmSampler
from prunesearch.space import SearchSpace
from prunesearch.swarm.algorithm import Algorithm
from prunesearch.swarm.rivals import Annealing, Chance, Evolution, Genetic

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

_RIVALS: Mapping[str, Callable[[], Algorithm]] = {
    "evolution": Evolution,
    "ga": Genetic,
    "annealing": Annealing,
    "random": Chance,
}
_OPTUNA: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, population: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed, population: optuna.samplers.NSGAIISampler(seed=seed, population_size=population),
    "cmaes": lambda seed, population: optuna.samplers.CmaEsSampler(seed=seed, popsize=max(population, 4)),
}
_POPULATIONS = {"pso": DEFAULT_POPULATION, "woa": DEFAULT_POPULATION}
"""Trials per generation where none is asked for; 16 for all others."""


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
    """Build a sampler of subsets by the name that ``--sampler`` knows.

    Args:
        form, preselect: of the swarms, see `SwarmSampler`; ``pso`` and ``woa`` alone have them.
        ranking: a warm start, see `SwarmSampler`; the order itself for ``one-shot``. Greedy and Optuna's have none.

    Raises:
        UnknownNameError: no such sampler or form.
        InputError: an option that the sampler does not have.
    """
    size = population or _POPULATIONS.get(name, 16)
    if name not in ("pso", "woa") and (form != "set" or asynchronous):
        raise InputError(f"{'asynchronous' if asynchronous else 'form'} goes with --sampler pso or woa, not {name}")
    if name in ("pso", "woa"):
        options = Options(preselect, ranking, asynchronous=asynchronous)
        made = swarm("pso" if name == "pso" else "woa", space, form, seed, size, options, name)
        assert isinstance(made, SwarmSampler)
        return made
    if name in _RIVALS:
        return SwarmSampler(space, _RIVALS[name](), seed=seed, population=size, preselect=False, ranking=ranking)
    if name == "one-shot":
        return OneShotSampler(space, seed=seed, population=size, ranking="single" if ranking is None else ranking)
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
    """How many trials a search takes that first tries subsets which are no results.

    Args:
        name: as `build` takes it.
        ranking: the recipe's; ``single`` measures every unit alone first.

    Returns:
        Trials until the first result is there, and until the plan is complete; 1 and 1 where there is no plan.
    """
    free, partial = len(space.droppable), space.k_min > 1
    if name == "greedy":  # round j tries each of the units that are left: free, free - 1, ...
        whole = sum(free - dropped for dropped in range(space.k))
        return (whole - (free - space.k + 1) + 1 if partial else 1), whole
    if ranking == "single" or (name == "one-shot" and ranking == "none"):
        return (free + 1 if partial else 1), free + 1
    return 1, 1
