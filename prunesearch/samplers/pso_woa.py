"""`PSOSampler` and `WOASampler` as a user of Optuna sees them: with a space of subsets, or without one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.samplers._base import _process_constraints_after_trial
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.samplers.base import Proposal
from prunesearch.samplers.plain import PlainSwarm
from prunesearch.samplers.swarms import DEFAULT_POPULATION, SwarmSampler
from prunesearch.space import SearchSpace
from prunesearch.swarm.algorithm import Algorithm
from prunesearch.swarm.plan import Preselection
from prunesearch.swarm.pso import ParticleSwarm
from prunesearch.swarm.textbook import Form, Textbook
from prunesearch.swarm.woa import Whales

FORMS = ("set", *get_args(Form))


Constraints = Callable[[FrozenTrial], Sequence[float]]
"""Gives the constraints of a finished trial, as for Optuna's own samplers."""


@dataclass(frozen=True)
class Options:
    """Those of `SwarmSampler`, with its defaults."""

    preselect: bool | Preselection = True
    ranking: Sequence[float] | Literal["single"] | None = None
    novelty: bool = True
    asynchronous: bool = False


class _Swarm(BaseSampler):
    """Over a `SearchSpace` a `SwarmSampler`; without one a `PlainSwarm` over whatever the objective suggests."""

    law: ClassVar[Literal["pso", "woa"]]

    def __init__(
        self,
        space: SearchSpace | None,
        form: str,
        seed: int | None,
        population: int | None,
        constraints_func: Constraints | None,
        options: Options,
    ) -> None:
        if space is not None and not isinstance(space, SearchSpace):
            raise InputError(
                f"{type(self).__name__} takes a prunesearch.SearchSpace of layers, not {type(space).__name__} "
                f"{space!r:.60}; for ordinary parameters leave it out: they are those that the objective suggests"
            )
        if constraints_func is not None and not callable(constraints_func):
            raise InputError(f"constraints_func = {constraints_func!r}: give a function of a trial")
        self._constraints_func = constraints_func
        self.inner = swarm(self.law, space, form, seed, population, options, type(self).__name__)

    @property
    def subsets(self) -> SwarmSampler:
        """The sampler of subsets.

        Raises:
            InputError: the sampler was made without a space.
        """
        if isinstance(self.inner, PlainSwarm):
            raise InputError(f"{type(self).__name__} was made without a SearchSpace: it proposes no subsets")
        return self.inner

    def ask(
        self, study: Study, describe: Callable[[LayerSubset], Mapping[str, Any]] = lambda candidate: {}
    ) -> Proposal:
        """Create the study's next trial in one transaction; see `SubsetSampler.ask`."""
        return self.subsets.ask(study, describe)

    def rederive(self, study: Study, number: int) -> LayerSubset:
        """Derive once more what was proposed for a trial; see `SwarmSampler.rederive`."""
        return self.subsets.rederive(study, number)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass on."""
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Store the constraints of the trial, if the user gave a function for them."""
        if self._constraints_func is not None:
            _process_constraints_after_trial(self._constraints_func, study, trial, state)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Pass on."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Pass on."""
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 (the type is Optuna's)
        """Pass on."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Nothing to do: the random numbers are keyed by trial."""


class PSOSampler(_Swarm):
    """Particle swarm optimization, of subsets or of plain Optuna parameters.

    Constraints, of `constraints_func` or ``trial.set_constraint``, are honoured: every feasible trial ranks before
    every infeasible one.

    Args:
        space: the subsets; None for ordinary parameters (float, int, log, step, categorical).
        form: ``set`` (`swarm.pso`, the best measured), or a textbook one of `swarm.textbook`: ``keys``, ``slots``,
            ``binary``.
        seed: of the random numbers; None: the study's own, drawn at random when it is new.
        population: particles, which is trials per generation; default 6 with a space, 20 without.
        preselect, ranking, novelty: with a space, see `SwarmSampler`.
        asynchronous: never wait for a generation.
        constraints_func: gives the constraints of a finished trial; it is feasible where none is above 0.

    Raises:
        InputError: an unknown form, a wrong value, or an option that does not go with plain parameters.
    """

    law = "pso"

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        form: str = "set",
        seed: int | None = None,
        population: int | None = None,
        preselect: bool | Preselection = True,
        ranking: Sequence[float] | Literal["single"] | None = None,
        novelty: bool = True,
        asynchronous: bool = False,
        constraints_func: Constraints | None = None,
    ) -> None:
        options = Options(preselect, ranking, novelty, asynchronous)
        super().__init__(space, form, seed, population, constraints_func, options)


class WOASampler(_Swarm):
    """Whale optimization, of subsets or of plain Optuna parameters; takes what `PSOSampler` takes."""

    law = "woa"

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        form: str = "set",
        seed: int | None = None,
        population: int | None = None,
        preselect: bool | Preselection = True,
        ranking: Sequence[float] | Literal["single"] | None = None,
        novelty: bool = True,
        asynchronous: bool = False,
        constraints_func: Constraints | None = None,
    ) -> None:
        options = Options(preselect, ranking, novelty, asynchronous)
        super().__init__(space, form, seed, population, constraints_func, options)


def swarm(
    law: Literal["pso", "woa"],
    space: SearchSpace | None,
    form: str,
    seed: int | None,
    population: int | None,
    options: Options,
    owner: str,
) -> SwarmSampler | PlainSwarm:
    """Build the sampler that `PSOSampler` and `WOASampler` pass on to.

    Args:
        owner: name of the class that the user called, for messages.
    """
    if form not in FORMS:
        raise UnknownNameError("form", form, FORMS)
    if space is None:
        default = Options()
        asked = [
            name for name in ("preselect", "ranking", "novelty") if getattr(options, name) != getattr(default, name)
        ]
        asked += ["form"] if form != "set" else []
        if asked:
            raise InputError(
                f"{owner}: {asked[0]} is for subsets of layers: give a SearchSpace, or leave {asked[0]} out"
            )
        size = 20 if population is None else population
        return PlainSwarm(law, seed=seed, population=size, asynchronous=options.asynchronous)
    algorithms: dict[str, Algorithm] = {"set": ParticleSwarm() if law == "pso" else Whales()}
    algorithms |= {name: Textbook(law, name) for name in get_args(Form)}
    size = DEFAULT_POPULATION if population is None else population
    return SwarmSampler(space, algorithms[form], seed=seed, population=size, **vars(options))
