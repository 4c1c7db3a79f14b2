"""Settings of a search. `Recipe` determines the result and is stored with the study; `RunOptions`
only run it.

A recipe's identity (`Recipe.identity`) contains every choice that changes the sequence of trials or
their values. It does not contain paths: the pipeline adds digests of the model and the data.
"""

import math
import re
import reprlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunesearch.algorithms.registry import REGISTRY, names_with
from prunesearch.errors import InputError, PruneSearchError, UnknownNameError, either
from prunesearch.objectives import registry as objective_registry
from prunesearch.objectives.base import BUILTIN_TEXT as BUILTIN_TEXT
from prunesearch.space import split_drop
from prunesearch.units import parse_size

RANKINGS = ("none", "influence", "magnitude", "taylor", "single")
OBJECTIVES = tuple(objective_registry.REGISTRY.names())
CALIBRATED = tuple(objective_registry.names_with("needs_calibration"))
"""Objectives that are computed on calibration text."""
WEIGHT_PLACES = ("memory", "resident", "stream", "host")
"""Locations of a model's weights; ``resident`` is another word for ``memory``."""

VERSION = " version"
"""Suffix of the identity's fields that hold a library's version."""
ADDED_LATER = ("numpy version", "lm-eval version", "task truncation", "task scoring")
"""Fields of a study's identity that older studies lack.

A mixed objective puts the task's name before them.
"""

# Settings that only locate model and data. The identity has digests of their content instead.
_TASK_ONLY = ("task_data", "include_path", "metric", "limit", "num_fewshot", "batch_tokens")
PATHS = ("model", "calibration", "task_data", "include_path")
_LOCAL_ONLY = ("task_data", "include_path")
_LOCATIONS = (*PATHS, "revision", "trust_remote_code")


def is_text(value: str) -> bool:
    """Return whether a text can be stored: it has neither NUL nor bytes that could not be
    decoded.
    """
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


class Settings(BaseModel):
    """Base class of validated settings.

    In Python, a bad value raises an `InputError` that names the argument.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 (pydantic checks them)
        for name, value in values.items():
            if isinstance(value, str) and not is_text(value):
                raise InputError(
                    f"{name} {value!r} holds a character that no database or file takes: leave it "
                    f"out"
                )
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise in_arguments(complaint(type(self), error)) from error


class Weights(Settings):
    """Weights of the sum that ranks the trials (Ratsapa et al.

    2025: accuracy, size, inference time).
    """

    quality: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    size: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    latency: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``quality=1,size=0.2,latency=0``. Weights that are not named keep their defaults.

        Raises:
            InputError: an unknown weight name or a value that is not a number >= 0.
        """
        values: dict[str, float] = {}
        for part in map(str.strip, text.split(",")):
            if not part:
                continue
            name, _, number = part.partition("=")
            if name not in cls.model_fields:
                raise UnknownNameError("weight", name, cls.model_fields)
            try:
                values[name] = float(number)
            except ValueError:
                raise InputError(
                    f"weight {name} needs a number, got {number!r}; write {name}=0.5"
                ) from None
        return validated(cls, values)


class Recipe(Settings):
    """Complete description of a search.

    An unknown key is refused, and the nearest known one is suggested.
    """

    model: str
    """Hugging Face id, local folder or ``.gguf`` file."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    trust_remote_code: bool = False
    """Run modelling code that ships with the checkpoint."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision that the weights are loaded in and scored with; ``auto``: as stored."""

    drop: str
    """Number of units to drop: ``8``, ``25%`` (rounded to the nearest whole number), at most 8
    (``..8``), or ``pareto`` for the best of every number, optionally with a limit
    (``pareto:25%``)."""
    protect: str = ""
    """Blocks that are kept: ``first:1,last:1``, single indices and ranges (``0,5-8``), or a mix."""
    units: Literal["blocks", "sublayers"] = "blocks"
    """Units that are dropped: whole blocks, or single attention and MLP sublayers."""
    keep_pattern: bool = False
    """Drop whole periods of the pattern in which the kinds of blocks repeat (see
    `models.config_edits.period_of`).
    """
    against: Literal["size", "latency"] = "size"
    """Second objective when `drop` is ``pareto``."""

    sampler: str = "pso"
    """An algorithm of `algorithms.registry`."""
    form: Literal["set", "keys", "slots", "binary"] = "set"
    """Encoding of a subset in PSO and WOA: a set, or one of the papers' encodings (see
    `algorithms.vector_swarms`).
    """
    preselect: bool = True
    """Let a surrogate choose among the moves of PSO and WOA."""
    ranking: Literal["none", "influence", "magnitude", "taylor", "single"] | None = None
    """Ranking of the units that the search starts from (see `objectives.importance`). With
    ``single``, the first trials drop each unit alone. Default: ``influence`` for PSO and WOA,
    ``single`` for one-shot, ``none`` for the others."""
    asynchronous: bool = False
    """PSO and WOA: propose from the finished trials instead of waiting for a generation."""
    population: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Trials per generation; default: 6 for PSO and WOA, 16 for the others."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    objective: str = "kl"
    """``kl``, ``perplexity``, ``task``, or a weighted mix of these and of lm-eval tasks:
    ``kl=1,hellaswag=2``.
    """
    kl_top: Annotated[int, Field(ge=1)] | None = None
    """Top-k KL: over the dense model's k likeliest tokens and one bucket with the rest.

    Default: over all tokens.
    """
    race: bool = False
    """Stop scoring a candidate once part of the data shows that it is worse than the best so
    far.
    """
    weights: Weights = Weights()
    calibration: str = BUILTIN_TEXT
    """Text for ``kl`` and ``perplexity``: a file (see `objectives.text_files`), a dataset
    (``id[:config[:split]]``) or ``builtin``."""
    tokens: Annotated[int, Field(ge=16)] = 1024
    """Number of calibration tokens that are scored."""
    window: Annotated[int, Field(ge=16)] = 256
    """Length of one calibration sequence, in tokens."""

    task: str | None = None
    """An lm-eval task or group, for the objective ``task``."""
    task_data: str | None = None
    """A local .jsonl[.gz|.bz2] file that replaces the task's own data."""
    include_path: str | None = None
    """A folder with additional task YAML files."""
    metric: str | None = None
    """The task's metric; default: acc_norm if the task has it, else its first metric."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of documents of the task that are used; default: all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    batch_tokens: Annotated[int, Field(ge=16)] | None = None
    """Tokens per forward pass of a task;

    default: 2,048 on a CPU, 16,384 on a GPU. It changes bfloat16 sums.
    """

    @model_validator(mode="before")
    @classmethod
    def _as_the_command_takes_it(cls, values: Any) -> Any:  # noqa: ANN401 (whatever was given)
        """Accept numbers for text, ``quality=1,size=2`` for weights, and a task as the
        objective.
        """
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name in ("drop", "protect"):
            if isinstance(values.get(name), int) and not isinstance(values[name], bool):
                values[name] = str(values[name])
        if isinstance(values.get("protect"), list | tuple):
            values["protect"] = ",".join(map(str, values["protect"]))
        if isinstance(values.get("weights"), str):
            values["weights"] = Weights.parse(values["weights"])
        if values.get("task") and "objective" not in values:
            values["objective"] = "task"
        return values

    @model_validator(mode="after")
    def _objective_has_its_data(self) -> Self:
        """Check that the objective and the options on its data go together."""
        # The metrics and tasks that the objective consists of.
        if "=" in self.objective:
            terms = set(self.terms)
        elif self.objective in OBJECTIVES:
            terms = {self.objective}
        else:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)
        tasks = terms - set(CALIBRATED)
        if self.objective == "task" and not self.task:
            raise ValueError("objective 'task' needs --task NAME, e.g. --task hellaswag")
        if self.objective != "task" and self.task:
            raise ValueError(f"--task {self.task} goes with --objective task, not {self.objective}")
        for name in _TASK_ONLY:
            if not tasks and getattr(self, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} goes with --task NAME, and no task is given"
                )
        if self.task_data is not None and len(tasks) > 1:
            raise ValueError(
                f"--task-data replaces the data of one task, and {self.objective!r} has "
                f"{len(tasks)}"
            )
        if not terms & set(CALIBRATED) and self.calibration != BUILTIN_TEXT:
            raise ValueError(
                f"--calibration goes with the objectives {either(CALIBRATED)}, not with --task"
            )
        if "kl" not in terms and self.kl_top is not None:
            raise ValueError("--kl-top goes with --objective kl")
        if self.race and len(terms) > 1:
            raise ValueError(
                "--race compares item by item, and a mix has items of several kinds: race one "
                "objective"
            )
        return self

    @property
    def terms(self) -> dict[str, float]:
        """Weights of a mixed objective, by ``kl``, ``perplexity`` or task."""
        found: dict[str, float] = {}
        for part in self.objective.split(","):
            name, _, number = part.partition("=")
            name, number = name.strip(), number.strip()
            try:
                found[name] = float(number)
            except ValueError:
                raise ValueError(
                    f"objective {self.objective!r}: write name=weight, as in kl=1,hellaswag=2"
                ) from None
            if not math.isfinite(found[name]) or found[name] <= 0:
                raise ValueError(
                    f"objective {self.objective!r}: the weight of {name} must be above 0"
                )
        return found

    @model_validator(mode="after")
    def _sampler_has_what_is_asked(self) -> Self:
        """Check that the sampler supports the budget and the options."""
        algorithm = REGISTRY.get(self.sampler)
        # The budget: exactly, up to, or pareto.
        budget, _ = split_drop(self.drop)
        if self.keep_pattern and self.units != "blocks":
            raise ValueError("--keep-pattern drops whole blocks: leave out --units sublayers")
        if budget == "pareto" and not algorithm.several_objectives:
            raise ValueError(
                f"--sampler {self.sampler} cannot search --drop {self.drop}: use "
                f"{either(names_with('several_objectives'))}"
            )
        if budget == "pareto" and (self.weights.size or self.weights.latency):
            raise ValueError(
                f"--score-weights go with one objective; --drop {self.drop} weighs quality against "
                f"{self.against}"
            )
        if budget != "pareto" and self.against != "size":
            raise ValueError(f"--against goes with --drop pareto, not --drop {self.drop}")
        if (
            budget == "up to"
            and set(CALIBRATED) >= {self.objective}
            and not (self.weights.size or self.weights.latency)
        ):
            raise ValueError(
                f"--drop {self.drop} would drop a single layer, which harms least: say what a "
                f"saving is worth with "
                "--score-weights quality=1,size=2, or use --drop pareto"
            )
        # Options that only some algorithms have.
        able: list[str] = []
        option = ""
        if self.form not in algorithm.encodings:
            able = [entry.name for entry in REGISTRY.entries() if self.form in entry.encodings]
            option = "encoding"
        elif self.asynchronous and not algorithm.asynchronous:
            able, option = names_with("asynchronous"), "asynchronous"
        elif not self.preselect and not algorithm.surrogate:
            able, option = names_with("surrogate"), "no-preselect"
        if option:
            raise ValueError(f"--{option} goes with --sampler {either(able)}, not {self.sampler}")
        # The ranking.
        if self.ranking not in (None, "none") and not algorithm.takes_ranking:
            raise ValueError(f"--ranking cannot start --sampler {self.sampler}: leave it out")
        if self.ranking == "none" and algorithm.needs_ranking:
            raise ValueError(f"--sampler {self.sampler} is its ranking: use {either(RANKINGS[1:])}")
        return self

    @property
    def start(self) -> str:
        """Ranking that the search starts from, with the sampler's default filled in."""
        if self.ranking is not None:
            return self.ranking
        return REGISTRY.get(self.sampler).ranking

    def identity(self) -> dict[str, Any]:
        """Return every choice that determines the trials, except locations of model and data, as
        JSON values.
        """
        return self.model_dump(mode="json", exclude=set(_LOCATIONS))

    def portable(self) -> dict[str, Any]:
        """Return the recipe as JSON values without the folders of this machine, to be stored with a
        model.
        """
        values = self.model_dump(mode="json")
        for name in PATHS:
            if values[name] is not None:
                values[name] = portable_name(values[name], always=name in _LOCAL_ONLY)
        return values


class RunOptions(Settings):
    """Settings that run a recipe.

    Only the device changes results, and the cache and the studies keep devices apart.
    """

    storage: str = "sqlite:///storage/study.db"
    """Optuna RDB URL."""
    cache: str = "storage/cache"
    """The evaluation cache: a folder, the URL of a shared database, or both as ``DIR,URL``."""
    study: Annotated[str, Field(max_length=512)] | None = None
    """Name of the study, which Optuna's tables have 512 characters for;

    default: made from the recipe.
    """
    trials: Annotated[int, Field(ge=1)] = 200
    """Total number of trials in the study.

    If it is not given, the study gets more if the sampler needs them.
    """
    device: str | None = None
    """Torch device; default: cuda if there is one, else cpu."""
    device_map: str | None = None
    """Passed to accelerate, e.g. ``auto``, for models larger than one device."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Torch CPU threads; default: torch's own choice."""
    weights_in: Literal["memory", "stream", "host"] = "memory"
    """Location of the weights of idle blocks: the device's memory, the disk, or host memory."""
    state_memory: str = "2GiB"
    """Memory limit for the hidden states of a generation."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of processes that score. Each loads its own model."""

    @property
    def state_bytes(self) -> int:
        """`state_memory` in bytes."""
        return parse_size(self.state_memory, "--state-memory")

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        parse_size(self.state_memory, "--state-memory")
        if self.weights_in != "memory" and self.device_map is not None:
            raise ValueError(
                f"--offload {self.weights_in} places the weights itself: leave --device-map out"
            )
        return self


_FILE = re.compile(
    r"\.(txt|jsonl?|csv|tsv|parquet|arrow|md|ya?ml|gguf|gz|bz2|xz|zst)$", re.IGNORECASE
)


def portable_name(text: str, *, always: bool = False) -> str:
    """Return the last part of a path, of this or another machine. Ids of hub models and datasets
    are unchanged.

    Args:
        text: path or id.
        always: treat `text` as a path, whatever it looks like.

    >>> portable_name("/home/me/customer-x/mails.txt"), portable_name("Qwen/Qwen2.5-0.5B"),
    portable_name("wiki:en") ('mails.txt', 'Qwen/Qwen2.5-0.5B', 'wiki:en')
    """
    path: PurePosixPath | PureWindowsPath = PurePosixPath(text)
    if "\\" in text or re.match(r"[A-Za-z]:/", text):
        path = PureWindowsPath(text)
    # Signs of a path: an absolute or relative beginning, several folders, a file suffix, or an
    # existing file.
    begins = text.startswith(("/", "\\", ".", "~")) or bool(path.drive)
    several = text.partition(":")[0].count("/") > 1 or "\\" in text or "://" in text
    if not (always or begins or several or _FILE.search(text) or Path(text).exists()):
        return text
    if path.name in ("", ".."):
        return Path(text).resolve().name
    return path.name


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """Build a pydantic model. A validation error becomes one line that names the option.

    Raises:
        UnknownNameError: the model does not have a key.
        InputError: the model does not accept a value.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise complaint(model, error) from None
    except InputError as error:
        # The message was written for Python; name the options instead.
        if isinstance(error.__cause__, ValidationError):
            raise complaint(model, error.__cause__) from None
        raise


def complaint(model: type[BaseModel], error: ValidationError) -> InputError:
    """Turn the first error of a pydantic validation into one line that names the option."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        if (
            model is Recipe and key in RunOptions.model_fields
        ):  # in Python; a recipe file may hold both
            return InputError(
                f"{key!r} is not part of a Recipe: give it as run(recipe, RunOptions({key}=...))"
            )
        return UnknownNameError(f"{model.__name__.lower()} key", key, model.model_fields)
    if first["type"] == "missing":
        return InputError(f"{name} is missing: every {model.__name__.lower()} needs it")
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        choices = re.findall(r"'([^']+)'", first.get("ctx", {}).get("expected", ""))
        return UnknownNameError(name, first["input"], choices)
    message = first["msg"].removeprefix("Value error, ")
    for theirs, ours in _PLAINER.items():
        message = message.replace(theirs, ours)
    return InputError(f"{name} = {reprlib.repr(first['input'])}: {message}" if name else message)


_PLAINER = {
    "Input should be greater than or equal to": "it must be at least",
    "Input should be less than or equal to": "it must be at most",
    "Input should be greater than": "it must be more than",
    "Input should be less than": "it must be less than",
    "Input should be": "it must be",
}
"""Pydantic's words and ours, the longer ones first."""

Complaint = TypeVar("Complaint", bound=PruneSearchError)


def in_arguments(error: Complaint) -> Complaint:
    """Return the same error for Python, where ``--task-data`` is the argument ``task_data``."""
    text = re.sub(r"(?<![\w-])--no-([a-z][a-z-]*)", r"\1=False", str(error))
    text = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), text)
    return type(error).__new__(type(error), text)  # without __init__, because the text is complete


def advice(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return the options that would resume a study, such as ``--tokens 1024 and no --race``;

    empty if no option can.
    """
    words: list[str] = []
    left_out: list[str] = []
    for name, was in sorted(stored.items()):
        if name not in Recipe.model_fields or was == asked.get(name):
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(was, bool):
            (words if was else left_out).append(option)
        elif isinstance(was, dict):
            words.append(f"{option} {','.join(f'{key}={value:g}' for key, value in was.items())}")
        elif was in (None, ""):
            left_out.append(option)
        else:
            words.append(f"{option} {was}")
    parts = [f"no {option}" for option in left_out]
    if words:
        parts.insert(0, " ".join(words))
    return " and ".join(parts)


def differences(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
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
            found.append(f"{name}: {show(before)} in the study, {show(now)} now")
    return found


def slug(text: str, limit: int = 60) -> str:
    """Return a short name that is safe in file names, URLs and shells."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:limit] or "model"


def study_name(recipe: Recipe) -> str:
    """Return the default name of the recipe's study."""
    model = "model"
    if recipe.model:
        model = re.sub(r"\.gguf$", "", Path(recipe.model).name, flags=re.IGNORECASE)
    drop = "drop" + recipe.drop.replace("%", "pct").replace("..", "upto").replace(":", "")
    if recipe.units == "sublayers":
        drop += "-sublayers"
    elif recipe.keep_pattern:
        drop += "-pattern"
    objective = recipe.objective
    if objective == "task" and recipe.task:
        objective = recipe.task
    parts = [slug(model), drop, slug(objective), recipe.sampler]
    # Settings that differ from the default.
    if recipe.form != "set":
        parts.append(recipe.form)
    if recipe.seed:
        parts.append(f"s{recipe.seed}")
    return "-".join(parts)
