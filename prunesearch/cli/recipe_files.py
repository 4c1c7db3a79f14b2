"""Read recipe files."""

import itertools
from collections.abc import Container, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from prunesearch.cli.recipes import options_of
from prunesearch.config.flat import PLACES, SHORTHANDS, is_flat, sectioned
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import OLD_OFFLOADS, RunOptions
from prunesearch.config.settings import contradiction, merge_renamed
from prunesearch.errors import InputError, UnknownNameError, one_line
from prunesearch.runtime.json_values import Json, JsonObject

_LISTED = ("sampler", "drop", "target")
"""Keys of the section ``search`` of a recipe file that may have several values."""
_RUN_NAMES = (*RunOptions.model_fields, "weights_in", "out")
"""Keys of the section ``run`` of a recipe file, with an earlier name."""


@dataclass(frozen=True)
class RecipeFile:
    """Contents of a YAML recipe file: a recipe, and how it is run.

    Attributes:
        recipes: one recipe, or several if the file lists samplers or numbers.
        options: how the recipes are run.
        out: folder for the export, or None.
    """

    recipes: list[Recipe]
    options: RunOptions
    out: str | None


def read_recipe(path: Path, settings: Mapping[str, Json], given: Container[str]) -> RecipeFile:
    """Read a recipe file.

    Its sections are those of `Recipe`, and ``run`` with the fields of `RunOptions` and with
    ``out``. A file without sections, as earlier versions have it, is read with a warning.

    Args:
        path: path of the file.
        settings: options of the command.
        given: names of the options that the user typed. They override the file.

    Raises:
        InputError: the file cannot be read, or is not a recipe.
    """
    values = _mapping_in(path)
    if _is_flat_file(values):
        values = _sectioned_file(values)
        click.echo(
            f"warning: recipe {str(path)!r} has no sections, as in earlier versions: write model, "
            f"data, objective, search and run (see README.md)",
            err=True,
        )
    # An empty section `recover` asks for the default recovery.
    if "recover" in values and values["recover"] is None:
        values["recover"] = {}
    # Run options: the command line goes before the file.
    merged = dict(settings)
    for name, value in _run_section(values).items():
        if name not in given:
            merged[name] = value
    recipes = _grid_in(values)
    # Only the command line can allow a model's own code.
    if settings.get("trust_remote_code"):
        recipes = [recipe.with_changes(trust_remote_code=True) for recipe in recipes]
    elif any(recipe.model.trust_remote_code for recipe in recipes):
        raise InputError(
            f"recipe {str(path)!r} says trust_remote_code: a file may come from somebody else, so "
            f"it cannot allow code to run; read the model's code, then add `trust_remote_code`"
        )
    if len(recipes) > 1 and recipes[0].recover is not None:
        raise InputError("recover: goes with one sampler and one number to drop: give one of each")
    out = merged.get("out")
    if out is not None and not isinstance(out, str):
        raise InputError(f"out = {out!r}: give the name of a folder, in quotes if it is a number")
    return RecipeFile(recipes, options_of(merged), out)


def _is_flat_file(values: Mapping[str, Json]) -> bool:
    """Return whether a recipe file has no sections: its settings, or run options, stand alone."""
    if is_flat(values):
        return True
    sections = {*Recipe.model_fields, "run"} - SHORTHANDS.keys() - {"recover"}
    return not sections & values.keys() and bool(values.keys() & {*RunOptions.model_fields})


def _sectioned_file(values: Mapping[str, Json]) -> JsonObject:
    """Sort the settings of a file without sections into sections.

    Raises:
        InputError: the file has the section `run` too, or contradicts itself.
    """
    if "run" in values:
        raise InputError(
            "the file has the section run and settings outside sections: write model, data, "
            "objective, search and run"
        )
    run, others = {}, {}
    for name, value in values.items():
        if name in _RUN_NAMES:
            run[name] = value
        else:
            others[name] = value
    merge_renamed(run, "weights_in", "offload", OLD_OFFLOADS)
    return {**sectioned(others), "run": run}


def _run_section(values: JsonObject) -> JsonObject:
    """Take the section `run` out of a file, and check its keys.

    Raises:
        InputError: a key belongs to another section, or is not known.
    """
    for section, settings in values.items():
        if section != "run" and isinstance(settings, dict):
            for key in settings.keys() & {*RunOptions.model_fields}:
                raise InputError(f"key {key!r} belongs to section run, not {section}")
        if section in (*RunOptions.model_fields, "weights_in"):
            # No backticks: the command may have a flag of the same name, and this is a key.
            raise InputError(f"key {section!r} belongs to section run: write it below run:")
    run = values.pop("run", None) or {}
    if not isinstance(run, dict):
        raise InputError(
            f"run = {run!r} is not a section: write lines such as 'trials: 200' below it"
        )
    if "out" in values:
        out = values.pop("out")
        if run.setdefault("out", out) != out:
            raise contradiction(f"out {out}", f"run: out {run['out']}", "run: out")
    for key in run:
        if key in PLACES:
            raise InputError(f"`{key}` belongs to section {PLACES[key][0]}, not run")
        if key not in _RUN_NAMES:
            raise UnknownNameError("key of section run", str(key), _RUN_NAMES)
    merge_renamed(run, "weights_in", "offload", OLD_OFFLOADS)
    return run


def _grid_in(values: JsonObject) -> list[Recipe]:
    """Return one recipe for every sampler with every number that a file lists."""
    search = values.get("search")
    lists: dict[str, list[Json]] = {}
    if isinstance(search, dict):
        lists = {name: _several(search[name]) for name in _LISTED if name in search}
    recipes = []
    for chosen in itertools.product(*lists.values()):
        changed = values
        if isinstance(search, dict):
            changed = {**values, "search": {**search, **dict(zip(lists, chosen, strict=True))}}
        recipes.append(Recipe.of(changed))
    return recipes


def _several(value: Json) -> list[Json]:
    """Return the values of a YAML list ``[pso, woa]`` or of a text ``pso,woa``."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",")]
    if isinstance(value, list) and value:
        return list(value)
    return [value]


def _mapping_in(path: Path) -> JsonObject:
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
    if not isinstance(values, dict):
        raise InputError(
            f"recipe {str(path)!r} is not a mapping: write lines such as 'model: NAME' and "
            f"'search: {{drop: 8}}'"
        )
    _check_keys(values, f"recipe {str(path)!r}")
    return values


def _check_keys(values: JsonObject, place: str) -> None:
    """Refuse keys of a file that are not text, such as the number of ``1: 3``.

    Args:
        values: keys and values of the file or of a section.
        place: what an error message calls them.

    Raises:
        InputError: a key is not a text.
    """
    for key, value in values.items():
        if not isinstance(key, str):
            raise InputError(f"unknown key {key!r} in {place}: keys are names")
        if isinstance(value, dict):
            _check_keys(value, f"section {key}")
