"""Conversion of options to a `Recipe`, its sections and `RunOptions`."""

import itertools
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunesearch.cli.output import quiet_optuna
from prunesearch.config.data import DataSection
from prunesearch.config.flat import PLACES
from prunesearch.config.llm import LLMSection
from prunesearch.config.model import ModelSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.config.search import DEFAULT_CRITERION, ORDER_TOKENS, SearchSection
from prunesearch.errors import InputError
from prunesearch.runtime.json_values import Json, JsonObject, as_text

if TYPE_CHECKING:
    from prunesearch.pipeline.named_candidates import NamedOrder
    from prunesearch.pipeline.state import LayersSource, StudySource


def model_of(settings: Mapping[str, Json]) -> ModelSection:
    """Build the section `model` of a command. Options that were not given keep the defaults."""
    return ModelSection.of(_values_of("model", settings))


def objective_of(settings: Mapping[str, Json]) -> ObjectiveSection:
    """Build the section `objective` of a command."""
    return ObjectiveSection.of(_values_of("objective", settings))


def data_of(settings: Mapping[str, Json]) -> DataSection:
    """Build the section `data` of a command."""
    return DataSection.of(_values_of("data", settings))


def recipe_of(settings: Mapping[str, Json]) -> Recipe:
    """Build the recipe of a command. Options that were not given keep the recipe's defaults."""
    return Recipe(
        model=model_of(settings),
        data=data_of(settings),
        objective=objective_of(settings),
        search=SearchSection.of(_values_of("search", settings)),
        llm=LLMSection.of(_values_of("llm", settings)),
    )


def check_protocol(protocol: str | None, data: str | None, typed: Container[str]) -> None:
    """Refuse options that a published protocol decides itself.

    Args:
        protocol: name of the protocol; None if none is asked for.
        data: file with its text.
        typed: names of the options that the user typed.

    Raises:
        InputError: the options do not go together.
    """
    if protocol is None:
        if data is not None:
            raise InputError("`protocol_data` goes with `protocol` NAME")
        return
    for name, (section, _) in PLACES.items():
        if section in ("objective", "data") and name in typed:
            raise InputError(
                f"`{name}` does not go with `protocol` {protocol}, which says what is measured, on "
                "which text and in which windows: leave it out"
            )


def _values_of(section: str, settings: Mapping[str, Json]) -> JsonObject:
    """Return the options of a command that belong to a section, by the names of its fields."""
    values = {}
    for name, (home, field) in PLACES.items():
        if home == section and settings.get(name) is not None:
            values[field] = settings[name]
    return values


def grid_of(settings: Mapping[str, Json]) -> list[Recipe]:
    """Build the recipes of ``--sampler pso,woa --drop 4,8``: every sampler with every number.

    A search over widths lists numbers in ``--target``.
    """
    lists: dict[str, list[str]] = {}
    for name in ("sampler", "drop", "target"):
        if settings.get(name) is not None:
            lists[name] = [word.strip() for word in as_text(settings[name], name).split(",")]
    recipes = []
    for chosen in itertools.product(*lists.values()):
        recipes.append(recipe_of({**settings, **dict(zip(lists, chosen, strict=True))}))
    return recipes


def options_of(settings: Mapping[str, Json]) -> RunOptions:
    """Build the run options of a command."""
    values = {
        name: settings[name] for name in RunOptions.model_fields if settings.get(name) is not None
    }
    return RunOptions.of(values)


def _order_of(removed: str, settings: Mapping[str, Json]) -> "NamedOrder | None":
    """Return what orders the channels of named widths; None for layers to drop.

    Args:
        removed: layers to drop, or widths.
        settings: the options of the command.

    Raises:
        InputError: the options do not go with what is removed.
    """
    from prunesearch.pipeline.named_candidates import NamedOrder

    if ":" not in removed:
        for name in ("criterion", "order_tokens", "calibration"):
            if settings.get(name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} orders the channels of widths, and --layers "
                    f"{removed} drops whole layers: leave it out, or write widths as in 3:1024/2"
                )
        return None
    if "criterion" not in settings:
        raise InputError(
            f"--layers {removed} are widths: export them with prunesearch export, or give a STUDY "
            "that searched widths"
        )
    criterion = settings["criterion"] or DEFAULT_CRITERION
    tokens = settings.get("order_tokens") or ORDER_TOKENS
    return NamedOrder(data_of(settings), as_text(criterion, "criterion"), int(str(tokens)))


def source_of(
    target: str,
    dropped: str | None,
    max_loss: str | None,
    max_size: str | None,
    settings: Mapping[str, Json],
) -> "StudySource | LayersSource":
    """Return where the candidate of an export or recovery command comes from.

    Args:
        target: name of a study, or a model.
        dropped: layers to drop from the model; None if `target` is a study.
        max_loss, max_size: criteria for the study's trial.
        settings: the other options of the command.

    Raises:
        InputError: the options do not go together.
    """
    from prunesearch.pipeline.state import LayersSource, StudySource
    from prunesearch.studies.selection import SelectionCriteria

    options, given = options_of(settings), settings.get("model")
    model = None if given is None else as_text(given, "model")
    if dropped is not None:
        if model is not None:
            raise InputError(f"--model goes with STUDY; with --layers the model is {target!r}")
        if _is_study(target, options.storage):
            raise InputError(
                f"{target!r} is a study, and --layers goes with MODEL: leave --layers out"
            )
        section = model_of({**settings, "model": target})
        return LayersSource(section, dropped, _order_of(dropped, settings))
    # Path.exists raises if a study's name is longer than a file's may be.
    if target and os.path.exists(target):  # noqa: PTH110
        raise InputError(
            f"{target!r} is a model: say which of its layers to leave out with --layers, or give a "
            f"STUDY"
        )
    if settings["revision"] is not None or settings["dtype"] != "auto":
        raise InputError(
            "--revision and --dtype go with MODEL --layers; a study's model is the one it searched"
        )
    for name in ("criterion", "order_tokens", "calibration"):
        if settings.get(name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} goes with MODEL --layers; a study has the one it "
                "searched with: leave it out"
            )
    wanted = SelectionCriteria.parse(max_loss, max_size)
    trusted = bool(settings["trust_remote_code"])
    return StudySource(target, wanted, trusted, model)


def _is_study(target: str, storage: str) -> bool:
    """Return whether a name that is not a path names a study.

    A database that cannot be read has no studies.
    """
    from prunesearch.studies import persistence

    if Path(target).exists():
        return False
    quiet_optuna()
    try:
        persistence.load(persistence.open_storage(storage, create=False), target)
    except InputError:
        return False
    return True
