"""`RunOptions`: how a recipe is run. They are not part of the recipe."""

import os
import warnings
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prunesearch.config.settings import Settings, merge_renamed
from prunesearch.errors import InputError
from prunesearch.units import parse_size

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""Largest number of threads. More only wait for each other."""
OFFLOADS = ("none", "cpu", "disk")
OLD_OFFLOADS = {"memory": "none", "resident": "none", "host": "cpu", "stream": "disk"}
"""Words of earlier versions for where weights wait, and the present ones."""


class RunOptions(Settings):
    """Settings that run a recipe.

    Only the device changes results, and the cache and the studies keep devices apart.
    """

    title: ClassVar[str] = "RunOptions"

    storage: str = "sqlite:///storage/study.db"
    """Optuna RDB URL."""
    cache: str = "storage/cache"
    """The evaluation cache: a folder, the URL of a shared database, or both as ``DIR,URL``."""
    study: Annotated[str, Field(max_length=512)] | None = None
    """Name of the study; default: made from the recipe. Optuna's tables hold 512 characters."""
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
    offload: Literal["none", "cpu", "disk"] = "none"
    """Where the weights of idle blocks wait: on the device, in host memory, or on the disk."""
    state_memory: str = "2GiB"
    """Memory limit for the hidden states of a generation."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of processes that score. Each loads its own model."""

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: object) -> object:
        """Accept ``weights_in``, the earlier name of `offload`."""
        if not isinstance(values, dict):
            return values
        place = values.get("offload")
        if isinstance(place, str) and place in OLD_OFFLOADS:
            raise InputError(f"`offload` {place}: write `offload` {OLD_OFFLOADS[place]}")
        if "weights_in" in values:
            values = dict(values)
            warnings.warn(
                "weights_in is called offload now: give offload=...",
                DeprecationWarning,
                stacklevel=4,
            )
            merge_renamed(values, "weights_in", "offload", OLD_OFFLOADS)
        return values

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ValueError(
                f"`threads` {self.threads} is more than this machine can use: it has "
                f"{os.cpu_count()} cores; give at most {MOST_THREADS}"
            )
        parse_size(self.state_memory, "`state_memory`")
        if self.offload != "none" and self.device_map is not None:
            raise ValueError(
                f"`offload` {self.offload} places the weights itself: leave `device_map` out"
            )
        return self

    @property
    def state_bytes(self) -> int:
        """`state_memory` in bytes."""
        return parse_size(self.state_memory, "`state_memory`")
