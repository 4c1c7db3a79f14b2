"""Conversion of options and recipe files to a `Recipe` and `RunOptions`."""

import itertools
import os
from collections.abc import Container, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesearch.cli.output import quiet_optuna
from prunesearch.config.recipe import Recipe, RunOptions, Weights, validated
from prunesearch.errors import InputError, one_line

if TYPE_CHECKING:
    from prunesearch.pipeline.delivery import SelectedCandidate


def recipe_of(settings: dict[str, Any]) -> Recipe:
    """Build the recipe of a command. Options that were not given keep the recipe's defaults."""
    values = {
        name: settings[name] for name in Recipe.model_fields if settings.get(name) is not None
    }
    values["weights"] = Weights.parse(settings.get("score_weights") or "")
    if settings.get("encoding") is not None:
        values["form"] = settings["encoding"]
    return validated(Recipe, values)


def grid_of(settings: dict[str, Any]) -> list[Recipe]:
    """Build the recipes of ``--sampler pso,woa --drop 4,8``: every sampler with every number."""
    recipes = []
    for sampler in settings["sampler"].split(","):
        for drop in settings["drop"].split(","):
            recipes.append(
                recipe_of({**settings, "sampler": sampler.strip(), "drop": drop.strip()})
            )
    return recipes


def options_of(settings: Mapping[str, Any]) -> RunOptions:
    """Build the run options of a command."""
    values = {
        name: settings[name] for name in RunOptions.model_fields if settings.get(name) is not None
    }
    if settings.get("offload") is not None:
        places = {"none": "memory", "cpu": "host", "disk": "stream"}
        values["weights_in"] = places.get(settings["offload"], settings["offload"])
    return validated(RunOptions, values)


def selected_by(
    target: str,
    dropped: str | None,
    max_loss: str | None,
    max_size: str | None,
    settings: dict[str, Any],
) -> "SelectedCandidate":
    """Return the candidate that an export or recovery command names.

    Args:
        target: name of a study, or a model.
        dropped: layers to drop from the model; None if `target` is a study.
        max_loss, max_size: criteria for the study's trial.
        settings: the other options of the command.

    Raises:
        InputError: the options do not go together; see also `delivery`.
    """
    from prunesearch.pipeline import delivery
    from prunesearch.studies.selection import SelectionCriteria

    options, model = options_of(settings), settings.get("model")
    if dropped is not None:
        if model is not None:
            raise InputError(f"--model goes with STUDY; with --layers the model is {target!r}")
        if _is_study(target, options.storage):
            raise InputError(
                f"{target!r} is a study, and --layers goes with MODEL: leave --layers out"
            )
        recipe = recipe_of({**settings, "model": target, "drop": "1"})  # nothing is searched
        return delivery.from_layers(recipe, options, dropped)
    if target and os.path.exists(target):  # noqa: PTH110 (a study's name may be longer than a file's)
        raise InputError(
            f"{target!r} is a model: say which of its layers to leave out with --layers, or give a "
            f"STUDY"
        )
    if settings["revision"] is not None or settings["dtype"] != "auto":
        raise InputError(
            "--revision and --dtype go with MODEL --layers; a study's model is the one it searched"
        )
    wanted = SelectionCriteria.parse(max_loss, max_size)
    return delivery.from_study(target, options, wanted, settings["trust_remote_code"], model)


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


@dataclass(frozen=True)
class RecipeFile:
    """Contents of a YAML recipe file. Its names are those of the options of `search` and `run`.

    Attributes:
        recipes: one recipe, or several if the file lists samplers or numbers.
        options: how the recipes are run.
        out: folder for the export, or None.
        recover: section ``recover``, or None.
    """

    recipes: list[Recipe]
    options: RunOptions
    out: str | None
    recover: dict[str, Any] | None


def read_recipe(path: Path, settings: Mapping[str, Any], given: Container[str]) -> RecipeFile:
    """Read a recipe file.

    Args:
        path: path of the file.
        settings: options of the command.
        given: names of the options that the user typed. They override the file.

    Raises:
        InputError: the file cannot be read, or is not a recipe.
    """
    values = _mapping_in(path)
    # The section of `recover`; an empty one counts as given.
    recover = None
    if "recover" in values:
        recover = values.pop("recover") or {}
    if recover is not None and not isinstance(recover, dict):
        raise InputError(
            f"recover: {recover!r} is not a section: write lines such as 'finalists: 5' below it"
        )
    # Run options: the command line goes before the file.
    merged = dict(settings)
    for name in (*RunOptions.model_fields, "out"):
        if name in values:
            value = values.pop(name)
            if name not in given:
                merged[name] = value
    # One recipe for every sampler with every number.
    lists = {name: _several(values.pop(name)) for name in ("sampler", "drop") if name in values}
    recipes = []
    for chosen in itertools.product(*lists.values()):
        recipes.append(validated(Recipe, {**values, **dict(zip(lists, chosen, strict=True))}))
    # Only the command line can allow a model's own code.
    if settings.get("trust_remote_code"):
        recipes = [recipe.model_copy(update={"trust_remote_code": True}) for recipe in recipes]
    elif any(recipe.trust_remote_code for recipe in recipes):
        raise InputError(
            f"recipe {str(path)!r} says trust_remote_code: a file may come from somebody else, so "
            f"it cannot allow code "
            "to run; read the model's code, then add --trust-remote-code"
        )
    if recover is not None and len(recipes) > 1:
        raise InputError("recover: goes with one sampler and one number to drop: give one of each")
    out = merged.get("out")
    if out is not None and not isinstance(out, str):
        raise InputError(f"out = {out!r}: give the name of a folder, in quotes if it is a number")
    return RecipeFile(recipes, options_of(merged), out, recover)


def _several(value: object) -> list[object]:
    """Return the values of a YAML list ``[pso, woa]`` or of a text ``pso,woa``."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",")]
    if isinstance(value, list) and value:
        return list(value)
    return [value]


def _mapping_in(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file.

    Raises:
        InputError: the file cannot be read, or is not a mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML loader that refuses a repeated key. The standard loader takes the last one."""

        def construct_mapping(
            self, node: yaml.MappingNode, deep: bool = False
        ) -> dict[Hashable, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is given twice", key.start_mark
                    )
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"cannot read recipe {str(path)!r}: {reason}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(
            f"recipe {str(path)!r} is not a mapping: write lines such as 'model: NAME' and 'drop: "
            f"8'"
        )
    return values
