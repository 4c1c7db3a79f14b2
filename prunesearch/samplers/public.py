"""`PSOSampler` and `WOASampler` for users of Optuna, with or without a space of subsets."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from optuna.distributions import BaseDistribution, CategoricalChoiceType
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.algorithms.planner import Preselection
from prunesearch.algorithms.registry import REGISTRY, check_encoding
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.runtime.json_values import Json
from prunesearch.samplers.base import Proposal
from prunesearch.samplers.coefficients import (
    Coefficients,
    checked_topology,
    given,
    with_coefficients,
    without_defaults,
)
from prunesearch.samplers.continuous import PlainSwarm
from prunesearch.samplers.population import SwarmSampler, algorithm_of
from prunesearch.samplers.settings import renamed_encoding
from prunesearch.space import SearchSpace, Space
from prunesearch.studies.optuna_internals.access import store_constraints
from prunesearch.widths.space import WidthSpace

Constraints = Callable[[FrozenTrial], Sequence[float]]
"""Function that returns the constraints of a finished trial, as Optuna's own samplers take it."""


@dataclass(frozen=True)
class Options:
    """Options of `SwarmSampler`, with its defaults."""

    preselect: bool | Preselection = True
    ranking: Sequence[float] | Literal["single"] | None = None
    novelty: bool = True
    asynchronous: bool = False
    first: tuple[LayerSubset, ...] = ()


def candidates(first: Sequence[LayerSubset]) -> tuple[LayerSubset, ...]:
    """Check the first candidates of a sampler.

    Raises:
        InputError: one of them is something else.
    """
    if isinstance(first, Sequence) and all(isinstance(one, LayerSubset) for one in first):
        return tuple(first)
    raise InputError(f"first = {first!r:.60}: give a list of prunesearch.LayerSubset")


@dataclass(frozen=True)
class Motion:
    """How a swarm moves, where it differs from the textbook's values."""

    coefficients: Coefficients
    topology: str = "global"


class _Swarm(BaseSampler):
    """Common base of the two samplers, which delegates to another sampler.

    With a space it delegates to a `SwarmSampler`, without one to a `PlainSwarm`. Each of
    the two samplers has a constructor of its own, so that Python's message about a wrong argument
    names that sampler.
    """

    algorithm: ClassVar[str]
    """Name of the algorithm in the registry."""

    def __init__(
        self,
        space: Space | None,
        encoding: str,
        seed: int | None,
        population: int | None,
        constraints_func: Constraints | None,
        options: Options,
        motion: Motion,
    ) -> None:
        if space is not None and not isinstance(space, SearchSpace | WidthSpace):
            raise InputError(
                f"{type(self).__name__} takes a prunesearch.SearchSpace of layers, not "
                f"{type(space).__name__} "
                f"{space!r:.60}; for ordinary parameters leave it out: they are those that the "
                f"objective suggests"
            )
        if constraints_func is not None and not callable(constraints_func):
            raise InputError(f"constraints_func = {constraints_func!r}: give a function of a trial")
        self._constraints_func = constraints_func
        self.inner = swarm(
            self.algorithm, space, encoding, seed, population, options, motion, type(self).__name__
        )

    @property
    def subsets(self) -> SwarmSampler:
        """The underlying sampler of subsets.

        Raises:
            InputError: the sampler was made without a space.
        """
        if isinstance(self.inner, PlainSwarm):
            raise InputError(
                f"{type(self).__name__} was made without a SearchSpace: it proposes no subsets"
            )
        return self.inner

    def ask(
        self,
        study: Study,
        describe: Callable[[LayerSubset], Mapping[str, Json]] = lambda candidate: {},
    ) -> Proposal:
        """Create the study's next trial in one transaction (see `SubsetSampler.ask`)."""
        return self.subsets.ask(study, describe)

    def reproduce(self, study: Study, number: int) -> LayerSubset:
        """Derive the candidate of a trial again (see `SwarmSampler.reproduce`)."""
        return self.subsets.reproduce(study, number)

    def rederive(self, study: Study, number: int) -> LayerSubset:
        """Call `reproduce`, by its old name."""
        warnings.warn("rederive is called reproduce now", DeprecationWarning, stacklevel=2)
        return self.reproduce(study, number)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Delegate to the underlying sampler."""
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Store the trial's constraints, if the user gave a function for them."""
        if self._constraints_func is not None:
            store_constraints(self._constraints_func, study, trial, state)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Delegate to the underlying sampler."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int] | dict[str, CategoricalChoiceType]:
        """Delegate to the underlying sampler."""
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> CategoricalChoiceType:
        """Delegate to the underlying sampler."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Do nothing: the random numbers depend on the trial's number only."""


class PSOSampler(_Swarm):
    """Particle swarm optimization of subsets, or of ordinary Optuna parameters.

    The law of motion is that of J. Kennedy and R. Eberhart, "Particle swarm optimization", ICNN
    1995, with the coefficients of M. Clerc and J. Kennedy, IEEE TEVC 6(1), 2002. Each particle
    makes many moves, and a surrogate chooses among them.

    The sampler respects constraints from `constraints_func` or ``trial.set_constraint``: every
    feasible trial ranks before every infeasible one.

    A study keeps all settings but `constraints_func`, and can only be resumed with the same ones.

    Args:
        space: search space of the subsets, or of widths; None for ordinary parameters (float, int,
            log, step, categorical).
        encoding: encoding of a subset: ``set`` (`algorithms.pso`, the best in our measurements), or
            ``keys``, ``slots`` or ``binary`` from the literature (`algorithms.vector_swarms`).
        seed: seed of the random generator; None to draw one when the study is new.
        population: number of particles, which is the number of trials per generation; default 6
            with a space, 10 without (20 without a surrogate).
        preselect: whether a surrogate chooses among many moves of each particle; False for the
            textbook's algorithm. With a space also the settings of that choice.
        ranking, novelty, first: only with a space, see `SwarmSampler`.
        asynchronous: never wait for a generation.
        constraints_func: function that returns the constraints of a finished trial. The trial is
            feasible if no constraint is above 0.
        form: old name of `encoding`.
        inertia: share of its velocity that a particle keeps, from 0 to 1; default 0.729.
        cognitive: pull of the particle's own best trial, from 0 to 4; default 1.496.
        social: pull of the leader, from 0 to 4; default 1.496.
        topology: ``global``, where the best trial leads all particles, or ``ring``, where the best
            of a particle's and its two neighbours' best trials leads it (J. Kennedy, "Small worlds
            and mega-minds", CEC 1999); ``ring`` only without a space.

    Raises:
        InputError: an unknown encoding, a wrong value, or an option that the search does not have.
    """

    algorithm = "pso"

    def __init__(
        self,
        space: Space | None = None,
        *,
        encoding: str = "set",
        seed: int | None = None,
        population: int | None = None,
        preselect: bool | Preselection = True,
        ranking: Sequence[float] | Literal["single"] | None = None,
        novelty: bool = True,
        asynchronous: bool = False,
        constraints_func: Constraints | None = None,
        form: str | None = None,
        first: Sequence[LayerSubset] = (),
        inertia: float | None = None,
        cognitive: float | None = None,
        social: float | None = None,
        topology: str = "global",
    ) -> None:
        options = Options(preselect, ranking, novelty, asynchronous, candidates(first))
        encoding = renamed_encoding(encoding, form)
        coefficients = given({"inertia": inertia, "cognitive": cognitive, "social": social})
        motion = Motion(coefficients, checked_topology(topology))
        super().__init__(space, encoding, seed, population, constraints_func, options, motion)


class WOASampler(_Swarm):
    """Whale optimization of subsets, or of ordinary Optuna parameters.

    The law of motion is that of S. Mirjalili and A. Lewis, "The whale optimization algorithm", Adv.
    Eng. Softw. 95, 2016. Each particle makes many moves, and a surrogate chooses among them.

    Args:
        space, encoding, seed, population, preselect, ranking, novelty, asynchronous,
            constraints_func, form, first: as `PSOSampler` takes them.
        iterations: number of generations in which the paper's *a* falls from 2 to 0. It starts
            again after them, so that a study can be prolonged; default 10.
        spiral: constant *b* of the logarithmic spiral (eq. 2.5), from 0 to 10; default 1. The moves
            of sets have none.
        probability: probability *p* of the spiral (eq. 2.6), from 0 to 1; default 0.5.

    Raises:
        InputError: an unknown encoding, a wrong value, or an option that the search does not have.
    """

    algorithm = "woa"

    def __init__(
        self,
        space: Space | None = None,
        *,
        encoding: str = "set",
        seed: int | None = None,
        population: int | None = None,
        preselect: bool | Preselection = True,
        ranking: Sequence[float] | Literal["single"] | None = None,
        novelty: bool = True,
        asynchronous: bool = False,
        constraints_func: Constraints | None = None,
        form: str | None = None,
        first: Sequence[LayerSubset] = (),
        iterations: int | None = None,
        spiral: float | None = None,
        probability: float | None = None,
    ) -> None:
        options = Options(preselect, ranking, novelty, asynchronous, candidates(first))
        encoding = renamed_encoding(encoding, form)
        motion = Motion(
            given({"iterations": iterations, "spiral": spiral, "probability": probability})
        )
        super().__init__(space, encoding, seed, population, constraints_func, options, motion)


def swarm(
    name: str,
    space: Space | None,
    encoding: str,
    seed: int | None,
    population: int | None,
    options: Options,
    motion: Motion,
    owner: str,
) -> SwarmSampler | PlainSwarm:
    """Build the sampler that `PSOSampler` or `WOASampler` delegates to.

    Args:
        name: name of an algorithm that moves particles.
        space, encoding, seed, population: as `PSOSampler` takes them.
        options: the other options of `SwarmSampler`.
        motion: coefficients and topology.
        owner: name of the class that the user called, for error messages.
    """
    check_encoding(encoding)
    entry = REGISTRY.get(name)
    if space is None:
        # Ordinary parameters: refuse the options that only subsets have.
        default = Options()
        asked = []
        for option in ("ranking", "novelty", "first"):
            if getattr(options, option) != getattr(default, option):
                asked.append(option)
        if encoding != "set":
            asked.append("encoding")
        if isinstance(options.preselect, Preselection):
            raise InputError(
                f"{owner}: preselect = Preselection(...) is for subsets of layers: give a "
                f"SearchSpace, or preselect=True or False"
            )
        if asked:
            raise InputError(
                f"{owner}: {asked[0]} is for subsets of layers: give a SearchSpace, or leave "
                f"{asked[0]} out"
            )
        return PlainSwarm(
            name,
            seed=seed,
            population=population,
            preselect=bool(options.preselect),
            coefficients=motion.coefficients,
            topology=motion.topology,
            asynchronous=options.asynchronous,
        )
    if motion.topology != "global":
        raise InputError(
            f"{owner}: topology = {motion.topology!r} is for ordinary parameters: a swarm over "
            f"layers has the topology 'global'"
        )
    # Subsets and widths: the encoding determines the algorithm.
    if isinstance(space, WidthSpace):
        entry.check_widths(encoding)
    size = entry.population if population is None else population
    algorithm = algorithm_of(entry, encoding)
    return SwarmSampler(
        space,
        with_coefficients(algorithm, motion.coefficients),
        coefficients=without_defaults(algorithm, motion.coefficients),
        seed=seed,
        population=size,
        several_objectives=entry.several_objectives,
        **vars(options),
    )
