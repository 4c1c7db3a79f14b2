"""Section `objective` of a recipe: what a candidate's score is."""

import math
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from prunesearch.config.data import DataSection
from prunesearch.config.settings import Settings
from prunesearch.errors import InputError, UnknownNameError, either
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.objectives.registry import (
    REGISTRY,
    ObjectiveEntry,
    names_in_mixes,
    names_with,
    task_entry,
)

_OF_TASKS = ("task_data", "include_path", "limit", "num_fewshot", "batch_tokens")
"""Fields of the section `data` that only tasks read."""


class ScoreWeights(Settings):
    """Weights of the sum that ranks the trials (Ratsapa et al. 2025: accuracy, size, inference
    time).
    """

    title: ClassVar[str] = "weights"

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
        return cls(**values)


class ObjectiveSection(Settings):
    """The metric that a search optimises."""

    title: ClassVar[str] = "recipe"

    name: str = "kl"
    """An objective of `objectives.registry`, or a weighted mix of these and of lm-eval tasks:
    ``kl=1,hellaswag=2``.
    """
    task: str | None = None
    """An lm-eval task or group, for the objective ``task``."""
    metric: str | None = None
    """The task's metric; default: acc_norm if the task has it, else its first metric."""
    kl_top: Annotated[int, Field(ge=1)] | None = None
    """Top-k KL: over the dense model's k likeliest tokens and one bucket with the rest.

    Default: over all tokens.
    """
    score_weights: ScoreWeights = ScoreWeights()
    """Weights of quality, size and latency in the value of a trial."""
    race: bool = False
    """Stop scoring a candidate once part of the data shows that it is worse than the best so
    far.
    """

    @model_validator(mode="before")
    @classmethod
    def _read_shorthands(cls, values: object) -> object:
        """Accept a task as the objective, and ``quality=1,size=2`` as weights."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if isinstance(values.get("score_weights"), str):
            values["score_weights"] = ScoreWeights.parse(values["score_weights"])
        if values.get("task") and "name" not in values:
            values["name"] = task_entry().name
        return values

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        entries = self.entries
        task = task_entry()
        if task in entries and not self.task:
            raise ValueError(f"objective {task.name!r} needs `task` NAME, e.g. `task` hellaswag")
        if task not in entries and self.task:
            raise ValueError(
                f"`task` {self.task} goes with `objective` {task.name}, not {self.name}"
            )
        if self.metric is not None and not self.tasks:
            raise ValueError("`metric` goes with `task` NAME, and no task is given")
        # Each option that only some objectives read needs one of these.
        able: dict[str, list[str]] = {}
        for entry in REGISTRY.entries():
            for option in entry.options:
                able.setdefault(option, []).append(entry.name)
        for option, names in able.items():
            if getattr(self, option) is not None and not set(names) & self.terms.keys():
                raise ValueError(f"`{option}` goes with `objective` {either(names)}")
        if self.race and len(self.terms) > 1:
            raise ValueError(
                "`race` compares item by item, and a mix has items of several kinds: race one "
                "objective"
            )
        if self.race and not all(entry.races for entry in entries):
            raise ValueError(f"`race` goes with `objective` {either(names_with('races'))}")
        return self

    @property
    def is_mix(self) -> bool:
        """True if the objective is a weighted sum of metrics."""
        return "=" in self.name

    @property
    def terms(self) -> dict[str, float]:
        """Weights of the metrics, by objective or task. One metric has the weight 1.

        Raises:
            ValueError: a weight cannot be read, or is not above 0.
        """
        if not self.is_mix:
            return {self.name: 1.0}
        found: dict[str, float] = {}
        for part in self.name.split(","):
            name, _, number = part.partition("=")
            name, number = name.strip(), number.strip()
            try:
                found[name] = float(number)
            except ValueError:
                raise ValueError(
                    f"objective {self.name!r}: write name=weight, as in kl=1,hellaswag=2"
                ) from None
            if not math.isfinite(found[name]) or found[name] <= 0:
                raise ValueError(f"objective {self.name!r}: the weight of {name} must be above 0")
        return found

    @property
    def entries(self) -> list[ObjectiveEntry]:
        """Facts about the registered objectives that it consists of. Tasks in a mix have none.

        Raises:
            UnknownNameError: no objective has this name.
        """
        names = names_in_mixes(self.terms) if self.is_mix else [self.name]
        return [REGISTRY.get(name) for name in names]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Metrics that are tasks of lm-eval."""
        others = [entry.name for entry in self.entries if not entry.needs_task]
        return tuple(name for name in self.terms if name not in others)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks of lm-eval: those of a mix, or the one task."""
        return self.tasks if self.task is None else (self.task,)

    @property
    def calibrated(self) -> tuple[str, ...]:
        """Metrics that are computed on calibration text."""
        return tuple(entry.name for entry in self.entries if entry.needs_calibration)

    @property
    def weighs_savings(self) -> bool:
        """True if size or latency count in the value of a trial."""
        return bool(self.score_weights.size or self.score_weights.latency)

    def check_data(self, data: DataSection) -> None:
        """Check that the data are those that the objective reads.

        Raises:
            InputError: a setting of `data` has no effect on this objective.
        """
        for name in _OF_TASKS:
            if not self.tasks and getattr(data, name) is not None:
                raise InputError(f"`{name}` goes with `task` NAME, and no task is given")
        if data.task_data is not None and len(self.tasks) > 1:
            raise InputError(
                f"`task_data` replaces the data of one task, and {self.name!r} has "
                f"{len(self.tasks)}"
            )
        if not self.calibrated and data.calibration != BUILTIN_TEXT:
            raise InputError(
                f"`calibration` goes with the objectives "
                f"{either(names_with('needs_calibration'))}, not with `task`"
            )
