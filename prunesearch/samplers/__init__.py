"""Samplers of layer subsets.

Each sampler derives a proposal from the trial's number and the study's finished trials. What they
use of Optuna's private parts comes from `studies.optuna_internals`.
"""

import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from optuna.samplers import BaseSampler

from prunesearch.algorithms.registry import REGISTRY, AlgorithmEntry, TrialsNeeded, names_with
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, UnknownNameError, either
from prunesearch.samplers.base import GenerationPendingError, Proposal, SubsetSampler
from prunesearch.samplers.continuous import PlainSwarm
from prunesearch.samplers.population import SwarmSampler
from prunesearch.samplers.public import PSOSampler, WOASampler
from prunesearch.samplers.settings import SamplerSettings, renamed_encoding
from prunesearch.samplers.stored_memory import STATE_ATTR
from prunesearch.space import SearchSpace, Space
from prunesearch.studies.trial_log import annotate, report
from prunesearch.widths.space import WidthSpace

if TYPE_CHECKING:
    from prunesearch.algorithms.warm_start import WarmStart
    from prunesearch.samplers.llm.settings import LanguageModel

__all__ = [
    "STATE_ATTR",
    "GenerationPendingError",
    "PSOSampler",
    "Proposal",
    "SamplerSettings",
    "SubsetSampler",
    "SwarmSampler",
    "WOASampler",
    "annotate",
    "build",
    "build_for_parameters",
    "report",
    "trials_needed",
]


def build(
    name: str,
    space: Space,
    *,
    seed: int = 0,
    population: int | None = None,
    encoding: str = "set",
    preselect: bool = True,
    ranking: Sequence[float] | Literal["single"] | None = None,
    asynchronous: bool = False,
    form: str | None = None,
    llm: "LanguageModel | None" = None,
    first: Sequence[LayerSubset] = (),
    warm_start: "WarmStart | None" = None,
) -> SubsetSampler:
    """Build a sampler of candidates by its command-line name.

    Args:
        name: sampler name, as `sampler` takes it.
        space: search space of the candidates.
        seed: seed of the random generator.
        population: trials per generation; None for the sampler's default.
        encoding: encoding of a subset (see `AlgorithmEntry.encodings`).
        preselect: use a surrogate to choose among moves, if the sampler has one.
        ranking: ranking to start from, or the order of ``one-shot``: the cost of dropping each unit
            alone, or ``"single"`` to measure it.
        asynchronous: never wait for a generation.
        form: old name of `encoding`.
        llm: language model that proposes, for ``llm``.
        first: candidates that are proposed before all others.
        warm_start: prior knowledge from another study of the same layers, in place of a ranking.

    Raises:
        UnknownNameError: no such sampler or encoding.
        InputError: an option that the sampler does not have.
    """
    entry = REGISTRY.get(name)
    encoding = renamed_encoding(encoding, form)
    if encoding not in entry.encodings:
        able = [other.name for other in REGISTRY.entries() if encoding in other.encodings]
        if not able:
            raise UnknownNameError("encoding", encoding, entry.encodings)
        raise InputError(f"encoding {encoding!r} goes with `sampler` {either(able)}, not {name}")
    if asynchronous and not entry.asynchronous:
        able = names_with("asynchronous")
        raise InputError(f"asynchronous goes with `sampler` {either(able)}, not {name}")
    if llm is not None and not entry.needs_llm:
        raise InputError(f"a language model goes with `sampler` llm, not {name}")
    if ranking is not None and not entry.takes_ranking:
        raise InputError(f"a ranking cannot start `sampler` {name}: leave it out")
    if warm_start is not None and not (entry.surrogate and preselect and ranking is None):
        raise InputError(
            f"a warm start goes with `sampler` {either(names_with('surrogate'))}, with "
            f"pre-selection, and without a ranking"
        )
    if isinstance(space, WidthSpace):
        entry.check_widths(encoding)
    settings = SamplerSettings(
        population=population or entry.population,
        seed=seed,
        encoding=encoding,
        preselect=preselect,
        ranking=ranking,
        asynchronous=asynchronous,
        llm=llm,
        first=first,
        warm_start=warm_start,
    )
    adapter: Callable[[AlgorithmEntry, Space, SamplerSettings], SubsetSampler]
    adapter = pkgutil.resolve_name(entry.sampler)
    return adapter(entry, space, settings)


def build_for_parameters(name: str, *, seed: int, population: int) -> BaseSampler:
    """Build a sampler of ordinary Optuna parameters by its command-line name.

    Args:
        name: name of an algorithm with `AlgorithmEntry.ordinary_parameters`.
        seed: seed of the random generator.
        population: trials per generation. Optuna's own samplers do not use it.

    Raises:
        UnknownNameError: no such sampler.
    """
    if name not in names_with("ordinary_parameters"):
        raise UnknownNameError("sampler", name, names_with("ordinary_parameters"))
    entry = REGISTRY.get(name)
    if entry.optuna is not None:
        sampler: BaseSampler = pkgutil.resolve_name(entry.optuna.path)(seed=seed)
        return sampler
    return PlainSwarm(name, seed=seed, population=population)


def trials_needed(name: str, ranking: str, space: Space) -> TrialsNeeded:
    """Return how many trials a sampler needs that evaluates partial subsets first.

    Args:
        name: sampler name, as `build` takes it.
        ranking: ranking of the recipe; ``single`` measures every unit alone first.
        space: search space of the candidates.
    """
    entry = REGISTRY.get(name)
    # A search over widths has no partial subsets.
    if not isinstance(space, SearchSpace):
        return TrialsNeeded()
    if ranking == "none" and entry.needs_ranking:
        ranking = entry.ranking
    return entry.trials_needed(space, ranking)
