"""The registry of search algorithms.

A file in this folder that calls `register` adds an algorithm to the command line, the recipes, the
samplers and the benchmarks. The entry states all facts that other files need, so that no other file
tests for a name. How to add an algorithm: see ``prunesearch/README.md``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from prunesearch.errors import InputError, UnknownNameError, either
from prunesearch.runtime.registry import Registry
from prunesearch.space import SearchSpace

if TYPE_CHECKING:
    from prunesearch.algorithms.base import Algorithm, VectorLaw

SWARM = "prunesearch.samplers.population:build_swarm"
"""Adapter of the algorithms that move particles (see `algorithms.base.Algorithm`)."""
GREEDY = "prunesearch.samplers.constructive:build_greedy"
ONE_SHOT = "prunesearch.samplers.constructive:build_one_shot"
OPTUNA = "prunesearch.samplers.optuna_sampler:build_optuna"
"""Adapter of Optuna's own samplers (see `OptunaClass`)."""

VECTOR_ENCODINGS = ("keys", "slots", "binary")
"""Encodings of a subset as a real vector (see `algorithms.vector_swarms`)."""
ENCODINGS = ("set", *VECTOR_ENCODINGS)
Origin: TypeAlias = Literal["particle", "own best", "leader", "swarm", "elite", "subset"]
"""Earlier trials that a move starts from.

They are: the particle's latest trial, its best trial, the best trial of all, the latest trials of
all particles, the best distinct candidates, and the best candidate that drops fewer of the units.
"""
WIDTH_ENCODINGS = ("set", "keys")
"""Encodings of widths."""
SWARM_POPULATION = 6
"""Trials per generation of the swarms with a surrogate.

It is the best one measured on recorded landscapes: the surrogate is fitted often.
"""
SINGLE = "single"
"""Name of the ranking that a study measures itself, by dropping each unit alone."""


def check_encoding(name: str) -> None:
    """Refuse a name that is not an encoding.

    Raises:
        UnknownNameError: the encoding does not exist.
    """
    if name not in ENCODINGS:
        raise UnknownNameError("encoding", name, ENCODINGS)


@dataclass(frozen=True)
class TrialsNeeded:
    """Number of trials that a search needs if it evaluates partial subsets first.

    Attributes:
        first: number of trials until the first result.
        whole: number of trials until the plan is complete.
        reason: cause of the number, for an error message: ``"tries one layer after the other"``.
    """

    first: int = 1
    whole: int = 1
    reason: str = ""


def for_ranking(space: SearchSpace, ranking: str) -> TrialsNeeded:
    """Return the trials of an algorithm that needs none, except for a measured ranking."""
    if ranking != SINGLE:
        return TrialsNeeded()
    # One trial for each unit alone, then the first result. If a single unit may be a result, then
    # the first trial is one.
    whole = len(space.droppable) + 1
    first = whole if space.k_min > 1 else 1
    return TrialsNeeded(first, whole, "first drops each layer alone")


@dataclass(frozen=True)
class OptunaClass:
    """One of Optuna's samplers.

    Attributes:
        path: class as ``module:name``.
        options: keyword arguments of the class.
        population_argument: keyword argument that takes the trials per generation; None if there is
            none.
        least_population: smallest value of that argument.
        ordinary_parameters: whether it is offered for ordinary parameters too, as tuning has them.
    """

    path: str
    options: Mapping[str, bool | int | float | str] = field(
        default_factory=lambda: MappingProxyType({})
    )
    population_argument: str | None = None
    least_population: int = 1
    ordinary_parameters: bool = False


@dataclass(frozen=True)
class AlgorithmEntry:
    """Facts about one algorithm.

    Attributes:
        name: name on the command line and in recipes.
        label: one line for help texts and tables.
        order: position in lists.
        sampler: adapter to Optuna as ``module:function``. The function takes this entry, the search
            space and a `samplers.settings.SamplerSettings`.
        algorithm: function that makes the algorithm; None if the adapter needs none.
        vector_law: law of motion on real vectors; None if there is none. With it, the algorithm
            also has the encodings of the literature, and can search ordinary parameters.
        optuna: Optuna's sampler that the entry stands for.
        several_objectives: whether it can search for a front of several objectives.
        surrogate: whether a surrogate may choose among its moves.
        asynchronous: whether it can propose without waiting for a generation.
        population: default number of trials per generation.
        ranking: ranking that it starts from by default.
        takes_ranking: whether it can start from a ranking at all.
        needs_ranking: whether it cannot do without one.
        needs_llm: whether it asks a language model, which the user names.
        origins: trials that its moves start from, for reports on where a candidate came from.
            Empty if a candidate comes from no trial in particular.
        random: whether another seed gives other trials.
        resumable: whether a resumed study continues with the same trials as an unbroken one.
        no_widths: reason why it cannot search over widths; empty if it can.
        trials_needed: function of the space and the name of the ranking that returns how many
            trials a search needs.
    """

    name: str
    label: str
    order: int = 50
    sampler: str = SWARM
    algorithm: "Callable[[], Algorithm] | None" = None
    vector_law: "VectorLaw | None" = None
    optuna: OptunaClass | None = None
    several_objectives: bool = True
    surrogate: bool = False
    asynchronous: bool = False
    population: int = 16
    ranking: str = "none"
    takes_ranking: bool = True
    needs_ranking: bool = False
    needs_llm: bool = False
    origins: tuple[Origin, ...] = ()
    random: bool = True
    resumable: bool = True
    no_widths: str = ""
    trials_needed: Callable[[SearchSpace, str], TrialsNeeded] = for_ranking

    @property
    def encodings(self) -> tuple[str, ...]:
        """Encodings of a subset that the algorithm has."""
        if self.vector_law is None:
            return ("set",)
        return ENCODINGS

    def check_widths(self, encoding: str) -> None:
        """Refuse a search over widths that the algorithm, or an encoding, cannot do.

        Raises:
            InputError: see above.
        """
        if self.no_widths:
            able = [entry.name for entry in REGISTRY.entries() if not entry.no_widths]
            raise InputError(
                f"`sampler` {self.name} cannot search widths: {self.no_widths}; use {either(able)}"
            )
        if encoding not in WIDTH_ENCODINGS:
            raise InputError(
                f"`encoding` {encoding} names layers, and a search over widths narrows them: use "
                f"{either(WIDTH_ENCODINGS)}"
            )

    @property
    def ordinary_parameters(self) -> bool:
        """True if the algorithm can search ordinary parameters instead of subsets."""
        if self.optuna is not None:
            return self.optuna.ordinary_parameters
        return self.vector_law is not None


REGISTRY: Registry[AlgorithmEntry] = Registry(
    "prunesearch.algorithms", lambda name, known: UnknownNameError("sampler", name, known)
)
register = REGISTRY.register


def names_with(fact: str) -> list[str]:
    """Return the names of the algorithms whose entry has a fact.

    Args:
        fact: attribute of `AlgorithmEntry` that must be true or present, such as
            ``several_objectives``.
    """
    return [entry.name for entry in REGISTRY.entries() if getattr(entry, fact)]
