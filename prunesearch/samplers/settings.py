"""Settings of samplers: their checks, and their storage in the study that they belong to."""

import json
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch.cache.keys import minor
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.runtime.json_values import Json, JsonObject, as_int
from prunesearch.studies.optuna_internals.access import set_system_attribute, system_attributes
from prunesearch.studies.trial_log import logger, put_back

if TYPE_CHECKING:
    from prunesearch.algorithms.warm_start import WarmStart
    from prunesearch.samplers.llm.settings import LanguageModel

_CONFIG_ATTR = "ps:config:"
_RULES = "rules"  # setting that may change while a study goes on


@dataclass(frozen=True)
class SamplerSettings:
    """Settings that `build` passes to the adapter of an algorithm.

    Attributes:
        population: number of trials per generation.
        seed: seed of the random generator; None to draw one when the study is new.
        encoding: encoding of a subset.
        preselect: whether a surrogate chooses among moves.
        ranking: cost of dropping each unit alone, ``"single"`` to measure it, or None.
        asynchronous: whether to propose without waiting for a generation.
        llm: language model that proposes, for algorithms that need one.
        first: candidates that are proposed before all others.
        warm_start: prior knowledge from another study, which takes the place of the ranking; or
            None.
    """

    population: int
    seed: int | None = 0
    encoding: str = "set"
    preselect: bool = True
    ranking: Sequence[float] | Literal["single"] | None = None
    asynchronous: bool = False
    llm: "LanguageModel | None" = None
    first: Sequence[LayerSubset] = ()
    warm_start: "WarmStart | None" = None


def renamed_encoding(encoding: str, form: str | None) -> str:
    """Return the encoding, which older versions called `form`.

    Raises:
        InputError: the encoding is not a text, or `form` is another one.
    """
    given = encoding if form is None else form
    if not isinstance(given, str):
        raise InputError(f"encoding = {given!r}: give a text")
    if form is None:
        return encoding
    # The default cannot be told from an encoding that was given.
    if encoding not in ("set", form):
        raise InputError(
            f"form {form} and encoding {encoding} contradict each other: give encoding only"
        )
    warnings.warn(
        "form is called encoding now: give encoding=...", DeprecationWarning, stacklevel=3
    )
    return form


def checked_seed(seed: int | None) -> int | None:
    """Check a seed of the random generator and return it as a plain integer.

    Raises:
        InputError: the seed is not a whole number from 0 to 2**63 - 1.
    """
    if seed is None:
        return None
    if isinstance(seed, int | np.integer) and 0 <= seed < 2**63:
        return int(seed)
    raise InputError(f"seed = {seed!r}: give a whole number from 0 to 2**63 - 1, or None")


def checked_population(population: int, least: int = 1) -> int:
    """Check a number of trials per generation and return it as a plain integer.

    Raises:
        InputError: the population is not a whole number, or is smaller than `least`.
    """
    if isinstance(population, bool) or not isinstance(population, int | np.integer):
        raise InputError(f"population = {population!r}: give a whole number")
    if population < least:
        raise InputError(
            f"population {population} is too small for a swarm: use at least {least} particles"
        )
    return int(population)


def refuse_first(study: Study, trial: FrozenTrial, check: Callable[[], object]) -> None:
    """Run a check before a trial that Optuna has just created gets parameters.

    Raises:
        InputError: the error of the check.
    """
    try:
        check()
    except InputError:
        # A failed trial would take a place in its generation, so the trial waits for a sampler that
        # fits.
        put_back(study, trial)
        raise


def stored_settings(study: Study, name: str) -> JsonObject | None:
    """Return the settings that a study was sampled with; None if it is new to the sampler."""
    stored = system_attributes(study).get(_CONFIG_ATTR + name)
    if stored is None:
        return None
    settings: JsonObject = json.loads(stored)
    return settings


def hold_to(study: Study, name: str, config: Mapping[str, Json]) -> int:
    """Store the sampler's settings in a new study, and refuse an old study with other settings.

    A study that was begun under older rules goes on under the new ones.

    Args:
        study: study that is going to be sampled.
        name: name of the sampler.
        config: settings of the sampler, with its ``seed``.

    Returns:
        The study's seed: the one in `config`, or if that is None the one that was drawn when the
        study was new.

    Raises:
        InputError: the study was sampled with other settings before.
    """
    numpy_now = minor(np.__version__)
    attributes = system_attributes(study)
    key = _CONFIG_ATTR + name
    # A new study: store the settings.
    if key not in attributes:
        new = {**config, "numpy": numpy_now}
        if config["seed"] is None:
            new["seed"] = secrets.randbits(32)
        set_system_attribute(study, key, json.dumps(new, sort_keys=True))
        return as_int(new["seed"], "seed")
    # An old study: compare. Without a seed of its own, the sampler takes the study's.
    stored = json.loads(attributes[key])
    differing = []
    for k, v in config.items():
        if k == _RULES or (k == "seed" and v is None):
            continue
        if stored.get(k) != v:
            differing.append(f"{k} was {stored.get(k)!r}, is {v!r}")
    if differing:
        raise InputError(
            f"study {study.study_name!r} was sampled by {name} with other settings "
            f"({'; '.join(differing)}): "
            "use the same, or a new study"
        )
    # New rules: go on with them, and say so once.
    if stored.get(_RULES) != config.get(_RULES):
        logger.warning(
            f"study {study.study_name!r} was begun by another version of prunesearch. From here on "
            f"{name} proposes by the rules of this one; earlier trials cannot be derived again"
        )
        renewed = {**stored, _RULES: config.get(_RULES)}
        set_system_attribute(study, key, json.dumps(renewed, sort_keys=True))
    if stored.get("numpy", numpy_now) != numpy_now:
        logger.warning(
            f"study {study.study_name!r} was begun with numpy {stored['numpy']}, this is "
            f"{numpy_now}: what is proposed "
            "from here on may differ from what that version would propose"
        )
    return int(stored["seed"])
