"""Comparison of a study's identity with what is asked for, and the default name of a study."""

import re
from collections.abc import Mapping
from pathlib import Path

from prunesearch.config.flat import PLACES
from prunesearch.config.names import slug
from prunesearch.config.recipe import Recipe
from prunesearch.runtime.json_values import Json

VERSION = " version"
"""Suffix of the identity's fields that hold a library's version."""
ADDED_LATER = ("numpy version", "lm-eval version", "task truncation", "task scoring")
"""Fields of a study's identity that older studies lack.

A mixed objective puts the task's name before them.
"""


def advice(stored: Mapping[str, Json], asked: Mapping[str, Json]) -> str:
    """Return the settings that would resume a study, such as "`tokens` 1024 and no `race`";

    empty if no setting can.
    """
    words: list[str] = []
    left_out: list[str] = []
    for name, was in sorted(stored.items()):
        if name not in PLACES or was == asked.get(name):
            continue
        setting = f"`{_present_name(name)}`"
        if isinstance(was, bool):
            (words if was else left_out).append(setting)
        elif isinstance(was, dict):
            words.append(f"{setting} {','.join(f'{key}={value:g}' for key, value in was.items())}")
        elif was in (None, ""):
            left_out.append(setting)
        else:
            words.append(f"{setting} {was}")
    parts = [f"no {setting}" for setting in left_out]
    if words:
        parts.insert(0, " ".join(words))
    return " and ".join(parts)


def differences(stored: Mapping[str, Json], asked: Mapping[str, Json]) -> list[str]:
    """List the differences between two identities, such as ``tokens: 1024 in the study, 2048 now``.

    A field that an older study lacks (see `ADDED_LATER`) does not count. Digests are shortened.
    """

    def show(value: object) -> str:
        if isinstance(value, str) and len(value) == 64:
            return f"{value[:12]}..."
        return repr(value)

    found = []
    for name in sorted({*stored, *asked}):
        if name not in stored and name.endswith(ADDED_LATER):
            continue
        before, now = stored.get(name), asked.get(name)
        if before != now:
            found.append(f"{_present_name(name)}: {show(before)} in the study, {show(now)} now")
    return found


def _present_name(name: str) -> str:
    """Return the present name of a field of an identity, such as ``encoding`` for ``form``."""
    if name in PLACES and name not in ("model", "objective"):
        return PLACES[name][1]
    return name


def study_name(recipe: Recipe) -> str:
    """Return the default name of the recipe's study."""
    search, model = recipe.search, "model"
    if recipe.model.path:
        model = re.sub(r"\.gguf$", "", Path(recipe.model.path).name, flags=re.IGNORECASE)
    drop = "drop" + search.drop.replace("%", "pct").replace("..", "upto").replace(":", "")
    if search.narrows:
        drop = f"{search.space}{search.target}-{search.criterion}"
        drop = drop.replace("%", "pct").replace("+", "-")
    elif search.units == "sublayers":
        drop += "-sublayers"
    elif search.keep_pattern:
        drop += "-pattern"
    objective = recipe.objective.task or recipe.objective.name
    parts = [slug(model), drop, slug(objective), search.sampler]
    # Settings that differ from the default.
    if search.encoding != "set":
        parts.append(search.encoding)
    if search.seed:
        parts.append(f"s{search.seed}")
    if search.warm_start is not None:
        parts.append("warm")
    return "-".join(parts)
