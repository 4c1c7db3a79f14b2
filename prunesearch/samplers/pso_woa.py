"""`PSOSampler` and `WOASampler` as a user of Optuna sees them: with a space of subsets, or without one."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.samplers.base import Proposal
from prunesearch.samplers.plain import PlainSwarm
from prunesearch.samplers.swarms import DEFAULT_POPULATION, SwarmSampler
from prunesearch.space import SearchSpace
from prunesearch.swarm.algorithm import Algorithm
from prunesearch.swarm.pso import ParticleSwarm
from prunesearch.swarm.textbook import Form, Textbook
from prunesearch.swarm.woa import Whales

FORMS = ("set", *get_args(Form))


class _Swarm(BaseSampler):
    """Over a `SearchSpace` a `SwarmSampler`; without one a `PlainSwarm` over whatever the objective suggests."""

    law: ClassVar[Literal["pso", "woa"]]

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        form: str = "set",
        seed: int = 0,
        population: int | None = None,
        **options: Any,  # noqa: ANN401 (those of SwarmSampler)
    ) -> None:
        self.inner = swarm(self.law, space, form, seed, population, options)

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

    Args:
        space: the subsets; None for ordinary parameters (float, int, log, step, categorical).
        form: ``set`` (`swarm.pso`, the best measured), or a textbook one of `swarm.textbook`: ``keys``, ``slots``,
            ``binary``.
        seed: of the random numbers.
        population: particles, which is trials per generation; default 6 with a space, 20 without.
        options: of `SwarmSampler`, with a space: ``preselect``, ``ranking``, ``novelty``, ``asynchronous``; without
            one only ``asynchronous``.

    Raises:
        InputError: an unknown form, or an option that does not go with plain parameters.
    """

    law = "pso"


class WOASampler(_Swarm):
    """Whale optimization, of subsets or of plain Optuna parameters; takes what `PSOSampler` takes."""

    law = "woa"


def swarm(
    law: Literal["pso", "woa"],
    space: SearchSpace | None,
    form: str,
    seed: int,
    population: int | None,
    options: dict[str, Any],
) -> SwarmSampler | PlainSwarm:
    """Build the sampler behind `PSOSampler` and `WOASampler`."""
    if form not in FORMS:
        raise UnknownNameError("form", form, FORMS)
    if space is None:
        asked = [name for name in options if name != "asynchronous"] + (["form"] if form != "set" else [])
        if asked:
            raise InputError(f"{asked[0]} is for subsets: give a SearchSpace, or leave it out")
        return PlainSwarm(law, seed=seed, population=20 if population is None else population, **options)
    algorithms: dict[str, Algorithm] = {"set": ParticleSwarm() if law == "pso" else Whales()}
    algorithms |= {name: Textbook(law, name) for name in get_args(Form)}
    size = DEFAULT_POPULATION if population is None else population
    return SwarmSampler(space, algorithms[form], seed=seed, population=size, **options)
