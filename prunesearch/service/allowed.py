"""Checks a request for a job against what the operator allows, and finds its files on this host.

A recipe names a model or a text by its path inside an allowed folder. Links are followed first, and
what they lead to must be inside too. Nothing in a request can make code of a checkpoint run, or
name a database, a cache or a destination.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunesearch.algorithms.registry import REGISTRY
from prunesearch.config.identity import study_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.config.settings import Settings, is_text
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.runtime.masking import printable
from prunesearch.service.event_log import serialized
from prunesearch.service.job import JobRequest
from prunesearch.service.settings import ServiceSettings
from prunesearch.space import SearchSpace, check_drop

MOST_BYTES = 64 * 1024
"""Largest size of a recipe as JSON text."""
MOST_TRIALS = 1_000_000
BUILTIN = (BUILTIN_TEXT, f"{BUILTIN_TEXT}-held-out")
"""Texts that are part of prunesearch."""
_STUDY = re.compile(r"[^\W_][\w .+=%:,@()\[\]-]{0,199}")
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,99}")
_HUB_MODEL = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_HUB_DATASET = re.compile(rf"{_HUB_MODEL.pattern}(?::[\w.-]+){{0,2}}")
_MOST_FILES = 10_000  # of a model's folder


@dataclass(frozen=True)
class AllowedRequest:
    """A request that was checked.

    Attributes:
        recipe: the recipe, with the names that the user gave.
        located: the recipe, with the paths of this host.
        study: name of the study.
        trials: total number of trials.
    """

    recipe: Recipe
    located: Recipe
    study: str
    trials: int


def check(request: JobRequest, settings: ServiceSettings) -> AllowedRequest:
    """Check a request, and find its model and data on this host.

    Raises:
        InputError: the recipe is not one, or it asks for what the operator does not allow.
    """
    # 1. The recipe itself.
    if len(serialized(request.recipe)) > MOST_BYTES:
        raise InputError(f"the recipe is larger than {MOST_BYTES} bytes: a recipe is a short text")
    recipe = Recipe.of(request.recipe)
    if not recipe.search.narrows:
        check_drop(recipe.search.drop)
    _check_sampler(recipe)
    # 2. The number of trials, and what confirms.
    if request.confirm is not None:
        RunOptions(confirm=request.confirm)
    trials = RunOptions().trials
    if request.trials is not None:
        trials = RunOptions(trials=request.trials).trials
    if trials > MOST_TRIALS:
        raise InputError(f"trials = {trials}: give at most {MOST_TRIALS}")
    if request.command == "run":
        _check_one_best(recipe)
    # 3. Model and data.
    located = _located(recipe, settings)
    _check_drop(located)
    # 4. The name of the study, which is shown on pages and in URLs.
    study = request.study
    if study is None:
        # The default name has parts of the recipe in it, which the user wrote.
        study = study_name(located)
    if _STUDY.fullmatch(study) is None:
        raise InputError(
            f"study = {printable(study)[:80]!r}: a name begins with a letter or a digit and has at "
            f"most 200 letters, digits, blanks and . _ + = % : , @ ( ) [ ] -"
        )
    return AllowedRequest(recipe, located, study, trials)


def _check_sampler(recipe: Recipe) -> None:
    """Refuse a sampler that would connect to an address which the user names.

    Raises:
        InputError: the sampler asks a language model.
    """
    sampler = recipe.search.sampler
    if REGISTRY.get(sampler).needs_llm:
        raise InputError(
            f"search.sampler: {sampler} asks a language model, which jobs cannot: run it with "
            f"prunesearch search"
        )


def _check_one_best(recipe: Recipe) -> None:
    """Refuse recipes without one best candidate, as the stage `search` does before an export.

    Raises:
        InputError: the recipe has no candidate that can be exported without a choice.
    """
    if recipe.search.is_pareto:
        raise InputError(
            f"search.drop: {recipe.search.drop} gives a front, not one best: submit the command "
            f"search"
        )
    if recipe.search.units != "blocks":
        raise InputError(
            "search.units: sublayers leaves a choice of how to write the result: submit the "
            "command search"
        )


def _check_drop(located: Recipe) -> None:
    """Refuse to drop more layers than the config of a local model has.

    Raises:
        InputError: no candidate can have this number of layers.
    """
    search = located.search
    layers = _layers_of(Path(located.model.path))
    # Periods and widths of layers are known only when the model is loaded.
    if layers is not None and not search.keep_pattern and not search.narrows:
        SearchSpace.parse(layers, search.drop, search.protect, search.units)


def _layers_of(folder: Path) -> int | None:
    """Return the number of layers in the config of a model. None: the config does not say it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the job says what is wrong with the model
    # The language model of a model of images or speech has a config of its own.
    for part in (config, config.get("text_config") if isinstance(config, dict) else None):
        layers = part.get("num_hidden_layers") if isinstance(part, dict) else None
        if isinstance(layers, int) and layers > 1:
            return layers
    return None


def _located(recipe: Recipe, settings: ServiceSettings) -> Recipe:
    """Return the recipe with the paths of this host.

    Raises:
        InputError: a model, text or task is not allowed.
    """
    if recipe.model.trust_remote_code:
        raise InputError(
            "model.trust_remote_code: the service runs no code of a checkpoint: leave it out"
        )
    if recipe.data.include_path is not None:
        raise InputError(
            "data.include_path: the service knows the built-in tasks only: leave it out"
        )
    # The model and the data of the search.
    changes: dict[str, str | None] = {"model": _model(recipe.model.path, settings)}
    changes["calibration"] = _text("data.calibration", recipe.data.calibration, settings)
    if recipe.data.task_data is not None:
        changes["task_data"] = _file("data.task_data", recipe.data.task_data, settings)
    _check_tasks(recipe.objective.task_names, recipe.data.task_data, settings)
    located = recipe.with_changes(**changes)
    if located.recover is None:
        return located
    # The data of the recovery.
    recovery, changed = located.recover, dict[str, Settings]()
    if recovery.heal is not None:
        texts = {"data": _text("recover.heal.data", recovery.heal.data, settings)}
        if recovery.heal.held_out is not None:
            texts["held_out"] = _text("recover.heal.held_out", recovery.heal.held_out, settings)
        changed["heal"] = recovery.heal.model_copy(update=texts)
    if recovery.evaluate is not None:
        evaluate, files = recovery.evaluate, dict[str, str]()
        if evaluate.calibration is not None:
            name = "recover.evaluate.calibration"
            files["calibration"] = _text(name, evaluate.calibration, settings)
        if evaluate.task_data is not None:
            name = "recover.evaluate.task_data"
            files["task_data"] = _file(name, evaluate.task_data, settings)
        if evaluate.task is not None:
            _check_tasks([evaluate.task], evaluate.task_data, settings)
        changed["evaluate"] = evaluate.model_copy(update=files)
    return located.model_copy(update={"recover": recovery.model_copy(update=changed)})


def _model(name: str, settings: ServiceSettings) -> str:
    """Return the path of a model, or the id of one on the hub."""
    found = _inside("model", name, settings.models)
    if found is not None:
        return str(found)
    if settings.allow_hub and _HUB_MODEL.fullmatch(name) and not os.path.lexists(name):
        return name
    raise UnknownNameError("model", printable(name)[:200], _names_in(settings.models))


def _text(field: str, name: str, settings: ServiceSettings) -> str:
    """Return the path of a text, or the name of a built-in one or of a dataset on the hub."""
    if name in BUILTIN:
        return name
    found = _inside(field, name, settings.data)
    if found is not None and found.is_file():
        return str(found)
    if settings.allow_hub and _HUB_DATASET.fullmatch(name) and not os.path.lexists(name):
        return name
    raise UnknownNameError(
        f"text in {field}", printable(name)[:200], [*BUILTIN, *_names_in(settings.data)]
    )


def _file(field: str, name: str, settings: ServiceSettings) -> str:
    """Return the path of a file with data."""
    found = _inside(field, name, settings.data)
    if found is None or not found.is_file():
        raise UnknownNameError(f"file in {field}", printable(name)[:200], _names_in(settings.data))
    return str(found)


def _check_tasks(tasks: Iterable[str], data: str | None, settings: ServiceSettings) -> None:
    """Refuse tasks that are files, and tasks whose documents would come from the hub."""
    for task in tasks:
        # lm-eval would read a path as a task's own file.
        if _TASK.fullmatch(task) is None or os.path.lexists(task):
            raise InputError(f"task {printable(task)[:80]!r} is not the name of a built-in task")
        if data is None and not settings.allow_hub:
            raise InputError(
                f"task {task} reads its documents from the hub, which this service does not "
                f"allow: give their file as task_data"
            )


def _inside(field: str, name: str, folders: Sequence[Path]) -> Path | None:
    """Return the path of a name inside one of the folders, or None if there is none.

    Raises:
        InputError: the name is not a plain path below a folder, or it leads out of the folders.
    """
    # 1. Refuse what is not a plain path below a folder.
    parts = name.split("/")
    plain = is_text(name) and name.isprintable() and "\\" not in name and len(name) <= 400
    if not plain or name.startswith("~") or any(part in ("", ".", "..") for part in parts):
        raise InputError(
            f"{field} {printable(name)[:80]!r}: give a path below the folders that the operator "
            f"allows, as in SmolLM2 or texts/my.txt; no absolute path and no .."
        )
    # 2. Look into one folder after the other.
    for folder in folders:
        path = folder / name
        try:
            exists = path.exists()
        except OSError:
            continue
        if exists:
            roots = [os.path.realpath(allowed) for allowed in folders]
            _refuse_links_out(field, name, path, roots)
            return Path(os.path.realpath(path))
    return None


def _refuse_links_out(field: str, name: str, path: Path, roots: Sequence[str]) -> None:
    """Refuse a file or folder that is a link out of the allowed folders, or that has one.

    Raises:
        InputError: there is such a link.
    """
    # Collect the file, or everything in the folder.
    inner = [str(path)]
    if path.is_dir():
        for place, folders, files in os.walk(os.path.realpath(path)):
            inner.extend(os.path.join(place, entry) for entry in (*folders, *files))  # noqa: PTH118
            if len(inner) > _MOST_FILES:
                raise InputError(f"{field} {name!r} has more than {_MOST_FILES} files")
    # Follow every link.
    for entry in inner:
        real = os.path.realpath(entry)
        if not any(real.startswith(root + os.sep) for root in roots):
            raise InputError(
                f"{field} {name!r} leads out of the folders that the operator allows: the operator "
                f"can copy it into one, or allow its folder too"
            )


def _names_in(folders: Iterable[Path]) -> list[str]:
    """Return the names of what is in the folders, for suggestions."""
    names: list[str] = []
    for folder in folders:
        if folder.is_dir():
            names.extend(sorted(entry.name for entry in folder.iterdir())[:200])
    return [name for name in names if not name.startswith(".")]
