"""`RunOptions`: how a recipe is run. They are not part of the recipe."""

import os
import re
import warnings
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from prunesearch.config.names import check_study_name
from prunesearch.config.settings import Settings, merge_renamed
from prunesearch.errors import InputError
from prunesearch.tracking.places import parse_places
from prunesearch.units import noun_for, parse_size

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""Largest number of threads. More only wait for each other."""
CONFIRM = 0.2
"""Share of the scored documents that confirms, unless the user says another."""
OFFLOADS = ("none", "cpu", "disk")
COMPILES = ("auto", "on", "off")
ENGINES = ("local", "ray")
MOST_PROCESSES = 64
"""Largest number of worker processes on one machine."""
OLD_OFFLOADS = {"memory": "none", "resident": "none", "host": "cpu", "stream": "disk"}
"""Words of earlier versions for where weights wait, and the present ones."""
_ADDRESS = re.compile(r"[\w.\-]+:\d{1,5}|\[[0-9a-fA-F:.]+\]:\d{1,5}")
"""A host and a port."""


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
    warm_start_storage: str | None = None
    """Optuna RDB URL of the study that `warm_start` names; default: `storage`."""
    trials: Annotated[int, Field(ge=1)] = 200
    """Total number of trials in the study.

    If it is not given, the study gets more if the sampler needs them.
    """
    confirm: Annotated[float, Field(ge=0, le=0.9)] | None = None
    """Share of all scored documents that confirm the best candidates of a search on a task.

    The trials take the rest: with 200 trials and 0.2, the best are scored on as many further
    documents as 50 trials take. 0: none. Default: 0.2.
    """
    device: str | None = None
    """Torch device; default: cuda if there is one, else cpu."""
    device_map: str | None = None
    """Passed to accelerate, e.g. ``auto``, for models larger than one device."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Torch CPU threads; default: torch's own choice."""
    offload: Literal["none", "cpu", "disk"] = "none"
    """Where the weights of idle blocks wait: on the device, in host memory, or on the disk."""
    state_memory: str = "auto"
    """Memory limit for the hidden states of a generation.

    ``auto``: by what a GPU has free; 2 GiB on a CPU.
    """
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether blocks are compiled: if it pays within the search, always, or never.

    ``off`` runs the model's own code as it is. ``on`` also uses faster attention where it is
    measured to be faster; it rounds its scores to 16 bits. Results of compiled blocks differ in
    their last digits.
    """
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of workers that score. Each loads its own model."""
    engine: Literal["local", "ray"] = "local"
    """Where the workers run: on this machine, or where Ray places them."""
    ray_address: str | None = None
    """Ray cluster to join: ``auto`` for the one of this node, or ``HOST:PORT`` of its head.

    Default: Ray is started on this machine, and ends with the command.
    """
    gpus_per_worker: Annotated[float, Field(ge=0, le=64)] | None = None
    """GPUs of a Ray worker. A part of one is shared; over several, the model is split.

    Default: 1 if this process scores on a GPU, else 0.
    """
    track: tuple[str, ...] = ()
    """Experiment trackers that follow the run, by name: a list, or a text with commas."""
    track_to: str | None = None
    """Where they write: a folder, a URI, or ``NAME=PLACE`` with commas.

    Default: a folder for each tracker in ``storage/tracking``.
    """

    @field_validator("study")
    @classmethod
    def _is_readable(cls, study: str | None) -> str | None:
        """Refuse names that tables and command lines cannot show."""
        if study is not None:
            check_study_name(study)
        return study

    @field_validator("track", mode="before")
    @classmethod
    def _read_trackers(cls, value: object) -> object:
        """Accept a text with commas."""
        if not isinstance(value, str):
            return value
        return tuple(word.strip() for word in value.split(","))

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
            cores = os.cpu_count() or 1
            raise ValueError(
                f"`threads` {self.threads} is more than this machine can use: it has "
                f"{cores} {noun_for(cores, 'core')}; give at most {MOST_THREADS}"
            )
        if self.state_memory != "auto":
            parse_size(self.state_memory, "`state_memory`")
        if self.offload != "none" and self.device_map is not None:
            raise ValueError(
                f"`offload` {self.offload} places the weights itself: leave `device_map` out"
            )
        self._check_workers()
        parse_places(self.track, self.track_to)
        return self

    def _check_workers(self) -> None:
        """Refuse settings of workers that do not go together.

        Raises:
            ValueError: they do not.
        """
        if self.engine == "ray":
            self._check_ray()
            return
        for name in ("ray_address", "gpus_per_worker"):
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` {getattr(self, name)} goes with `engine` ray")
        if self.workers > MOST_PROCESSES:
            raise ValueError(
                f"`workers` {self.workers}: one machine takes at most {MOST_PROCESSES}; a cluster "
                f"takes more, with `engine` ray"
            )

    def _check_ray(self) -> None:
        """Refuse settings that Ray's workers cannot be given.

        Raises:
            ValueError: they cannot.
        """
        address, gpus, device = self.ray_address, self.gpus_per_worker or 0, self.device
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                f"`ray_address` {address}: results are not streamed through Ray's client: run the "
                f"command on a node of the cluster, with `ray_address` auto"
            )
        if address not in (None, "auto") and not _ADDRESS.fullmatch(address or ""):
            raise ValueError(
                f"`ray_address` {address!r} is not an address: give auto, or HOST:PORT of the "
                f"cluster's head"
            )
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"`gpus_per_worker` {gpus:g}: give a part of 1, or a whole number")
        kind = None if device is None else device.partition(":")[0]
        if gpus and kind not in (None, "cuda"):
            raise ValueError(
                f"`gpus_per_worker` {gpus:g} and `device` {device} contradict each other"
            )
        if self.gpus_per_worker == 0 and kind == "cuda":
            raise ValueError(f"`gpus_per_worker` 0 and `device` {device} contradict each other")
        if gpus > 1 and self.offload != "none":
            raise ValueError(
                f"`gpus_per_worker` {gpus:g} splits the model over GPUs, and `offload` "
                f"{self.offload} keeps it off them: leave one out"
            )

    @property
    def state_bytes(self) -> int | None:
        """`state_memory` in bytes; None if it is ``auto``."""
        if self.state_memory == "auto":
            return None
        return parse_size(self.state_memory, "`state_memory`")
