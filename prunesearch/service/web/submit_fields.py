"""The fields of the submit page: what a user entered, the recipe that it stands for, and the field
that an error belongs to.
"""

import math
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Self, get_args

import yaml

from prunesearch.algorithms.registry import REGISTRY
from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError
from prunesearch.objectives import registry as objectives
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.runtime.json_values import JsonObject
from prunesearch.service.job import Job, JobCommand, JobRequest
from prunesearch.space import SearchSpace

_LAYERS_ENOUGH = 10_000  # of a model that is large enough for every `drop` and `protect`
_MOST_TRIALS = 1_000_000
_MOST_SHARE = 0.9
UNITS = (("blocks", "whole layers"), ("sublayers", "attention and MLP, one by one"))
COMMANDS = (("run", "run: search, recover, export, evaluate"), ("search", "search only"))
AFTERS = (
    ("export", "Export the best candidate as a checkpoint"),
    ("compensate", "Compensate it, then export"),
    ("heal", "Compensate and heal it, then export"),
    ("nothing", "Nothing: only search"),
)
LABELS = {
    "model": "Model",
    "calibration": "Calibration text",
    "tokens": "Tokens of text",
    "drop": "Drop",
    "protect": "Keep always",
    "units": "Units",
    "sampler": "Sampler",
    "objective": "Objective",
    "task": "Task",
    "task_data": "Documents of the task",
    "trials": "Trials",
    "confirm": "Share that confirms",
    "seed": "Seed",
    "after": "Then",
    "steps": "Steps of healing",
    "healing_text": "Text for healing",
    "finalists": "Finalists",
    "evaluate": "Evaluate the result on",
    "study": "Name of the study",
    "yaml": "Recipe (YAML)",
    "command": "Command",
}
"""Names of the fields, for the list of problems."""
# Names that messages use, and the fields of the page that they mean.
_SYNONYMS = {
    "path": "model",
    "heal": "steps",
    "recover": "after",
    "against": "drop",
    "recover.heal.data": "healing_text",
    "recover.evaluate.task": "evaluate",
}


class FieldsError(Exception):
    """Entered values that cannot be used.

    Args:
        errors: messages by the names of the fields.
    """

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(errors.values()))
        self.errors = dict(errors)


def _new_key() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Entered:
    """What a user entered, as text. An empty text stands for the default.

    Attributes:
        key: idempotency key of the page. A page that is sent twice makes one job.
    """

    model: str = ""
    calibration: str = BUILTIN_TEXT
    tokens: str = ""
    drop: str = "25%"
    protect: str = ""
    units: str = "blocks"
    sampler: str = "pso"
    objective: str = "kl"
    task: str = ""
    task_data: str = ""
    trials: str = ""
    confirm: str = ""
    seed: str = ""
    after: str = "export"
    steps: str = ""
    healing_text: str = BUILTIN_TEXT
    finalists: str = ""
    evaluate: str = ""
    study: str = ""
    yaml: str = ""
    command: str = "run"
    key: str = field(default_factory=_new_key)

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Self:
        """Return what a browser sent. Unknown names are left out."""
        known = {each.name for each in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        # A key that this page did not make is replaced.
        if not re.fullmatch("[0-9a-f]{32}", given.get("key", "")):
            given["key"] = _new_key()
        for name in given:
            if name != "yaml":
                given[name] = given[name].strip()
        return cls(**given)

    @classmethod
    def like(cls, job: Job) -> Self:
        """Return the fields of the YAML page with the recipe of a job."""
        confirm = "" if job.confirm is None else f"{job.confirm:g}"
        text = recipe_text(job.recipe)
        return cls(yaml=text, trials=str(job.trials), confirm=confirm, command=job.command)


def recipe_text(document: JsonObject) -> str:
    """Return a recipe as YAML, with the settings that differ from their defaults."""
    # A recipe of another version is shown as it is.
    with suppress(InputError):
        document = Recipe.of_stored(document).chosen()
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    if all(line.isprintable() for line in text.split("\n")):
        return text
    # Characters that are invisible, or turn the direction of the text, become escapes.
    return yaml.safe_dump(document, sort_keys=False, width=100)


def samplers() -> list[tuple[str, str]]:
    """Return the names of the samplers that a job may use, and what they are."""
    return [(entry.name, entry.label) for entry in REGISTRY.entries() if not entry.needs_llm]


def objective_choices() -> list[tuple[str, str]]:
    """Return the names of the objectives and what they are."""
    return [(entry.name, entry.label) for entry in objectives.REGISTRY.entries()]


def request_of_fields(entered: Entered) -> JobRequest:
    """Return the job that the fields stand for.

    Raises:
        FieldsError: a value cannot be used.
    """
    errors: dict[str, str] = {}
    if not entered.model:
        errors["model"] = "choose a model"
    if not entered.drop:
        errors["drop"] = "say how many layers to drop: 8, 25%, ..8 or pareto"
    trials = _whole(entered, "trials", errors, most=_MOST_TRIALS)
    confirm = _share(entered, "confirm", errors)
    document = _document(entered, errors)
    if errors:
        raise FieldsError(errors)
    _check_recipe(document)
    command: JobCommand = "search" if entered.after == "nothing" else "run"
    return JobRequest(document, command, trials, entered.study or None, confirm)


def request_of_yaml(entered: Entered, document: JsonObject) -> JobRequest:
    """Return the job that a pasted recipe stands for.

    Args:
        entered: the other fields of the page.
        document: the recipe.

    Raises:
        FieldsError: a value cannot be used.
    """
    errors: dict[str, str] = {}
    trials = _whole(entered, "trials", errors, most=_MOST_TRIALS)
    confirm = _share(entered, "confirm", errors)
    if entered.command not in get_args(JobCommand):
        errors["command"] = f"unknown command {entered.command!r}: use run or search"
    if errors:
        raise FieldsError(errors)
    try:
        Recipe.of_stored(document)
    except InputError as error:
        raise FieldsError({"yaml": str(error)}) from None
    command: JobCommand = "search" if entered.command == "search" else "run"
    return JobRequest(document, command, trials, entered.study or None, confirm)


def _whole(
    entered: Entered, name: str, errors: dict[str, str], most: int = 2**31, least: int = 1
) -> int | None:
    """Return the whole number of a field. None if it is empty or wrong."""
    text = getattr(entered, name)
    if not text:
        return None
    # Separators of thousands are accepted, as the pages show them.
    plain = text.replace(",", "").replace(" ", "")
    if not re.fullmatch("[0-9]{1,12}", plain) or not least <= int(plain) <= most:
        errors[name] = f"{text[:40]!r} is not a whole number from {least} to {most:,}"
        return None
    return int(plain)


def _share(entered: Entered, name: str, errors: dict[str, str]) -> float | None:
    """Return the share of a field. None if it is empty or wrong."""
    text = getattr(entered, name)
    if not text:
        return None
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= _MOST_SHARE:
        errors[name] = f"{text[:40]!r} is not a number from 0 to {_MOST_SHARE}"
        return None
    return share


def _document(entered: Entered, errors: dict[str, str]) -> JsonObject:
    """Return the document of the recipe. What cannot be read is added to `errors`."""
    data: JsonObject = {}
    objective: JsonObject = {}
    search: JsonObject = {"drop": entered.drop, "sampler": entered.sampler}
    # 1. The objective, and the data that it reads.
    if entered.objective == "task":
        objective["task"] = entered.task
        if not entered.task:
            errors["task"] = "name the task, such as hellaswag"
        if entered.task_data:
            data["task_data"] = entered.task_data
    else:
        objective["name"] = entered.objective
        data["calibration"] = entered.calibration or BUILTIN_TEXT
        if entered.task:
            errors["task"] = "is read by the objective task only: choose it, or leave this empty"
    tokens = _whole(entered, "tokens", errors, least=16)
    if tokens is not None:
        data["tokens"] = tokens
    # 2. The search.
    if entered.protect:
        search["protect"] = entered.protect
    if entered.units != "blocks":
        search["units"] = entered.units
    seed = _whole(entered, "seed", errors, least=0)
    if seed is not None:
        search["seed"] = seed
    if entered.drop.startswith("pareto") and entered.after != "nothing":
        errors["after"] = "a Pareto search gives a front, not one best: choose only search"
    elif entered.units == "sublayers" and entered.after != "nothing":
        errors["after"] = "single sublayers leave a choice of how to export: choose only search"
    # 3. The recovery.
    document: JsonObject = {
        "model": {"path": entered.model},
        "data": data,
        "objective": objective,
        "search": search,
    }
    recover = _recovery(entered, errors)
    if recover is not None:
        document["recover"] = recover
    return document


def _recovery(entered: Entered, errors: dict[str, str]) -> JsonObject | None:
    """Return the section `recover` of the recipe. None if nothing is recovered."""
    # Numbers are checked even if the choice does not read them.
    steps = _whole(entered, "steps", errors)
    finalists = _whole(entered, "finalists", errors, most=64)
    if entered.after not in dict(AFTERS):
        errors["after"] = f"unknown choice {entered.after[:40]!r}"
    if entered.after not in ("compensate", "heal"):
        return None
    heal: JsonObject | None = None
    recover: JsonObject = {"compensate": True}
    if entered.after == "heal":
        heal = {"data": entered.healing_text or BUILTIN_TEXT, "loss": "distill"}
        if steps is not None:
            heal["steps"] = steps
    recover["heal"] = heal
    if finalists is not None:
        recover["finalists"] = finalists
    if entered.evaluate == "perplexity":
        recover["evaluate"] = {}
    elif entered.evaluate:
        recover["evaluate"] = {"task": entered.evaluate}
    return recover


def _check_recipe(document: JsonObject) -> None:
    """Check the recipe, and the amounts that can be checked without the model.

    Raises:
        FieldsError: something is wrong. It is placed at its field.
    """
    try:
        search = Recipe.of_stored(document).search
        SearchSpace.parse(_LAYERS_ENOUGH, search.drop, search.protect, search.units)
    except InputError as error:
        raise FieldsError({field_of(str(error)): str(error)}) from None


def field_of(message: str) -> str:
    """Return the field of the page that a message of a recipe is about.

    Messages name settings in backticks, at their beginning, or as an unknown value of a setting.
    """
    first = re.match(r"(?:unknown )?([\w.]+)\b", message)
    named = [first[1]] if first is not None else []
    named += re.findall(r"`(\w+)`", message)
    named += re.findall(r"\b[a-z]+\.[a-z_.]*[a-z]\b", message)
    for name in named:
        # A name with its sections, such as search.drop, and its last part.
        for known in (name, name.rpartition(".")[2]):
            field_name = _SYNONYMS.get(known, known)
            if field_name in LABELS:
                return field_name
    return "model" if "model" in message else "drop"
