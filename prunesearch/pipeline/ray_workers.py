"""What a session sends to its workers of Ray: settings for another machine, and the paths on it.

A worker gets the recipe, and loads model and data from its own disk. Weights are never sent.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunesearch.config.flat import PLACES
from prunesearch.config.identity import study_name
from prunesearch.config.recipe import PATHS, Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError
from prunesearch.evaluation.ray_handle import WorkerResources
from prunesearch.studies import persistence
from prunesearch.studies.places import PLACES_ATTR

HostPlaces = Mapping[str, Sequence[Mapping[str, str]]]
"""Paths of model and data by the host that they are on, as `studies.places` keeps them."""


@dataclass(frozen=True)
class RayPlan:
    """What the workers of Ray are asked for, and given.

    Attributes:
        recipe: recipe with absolute paths.
        options: run options for a worker. They hold no URL, because URLs can hold passwords.
        resources: what each worker asks Ray for.
        references: folder of the dense model's outputs. A worker uses it if it is there.
        places: other paths of the model and the data.
    """

    recipe: Recipe
    options: RunOptions
    resources: WorkerResources
    references: Path
    places: HostPlaces

    @classmethod
    def of(cls, recipe: Recipe, options: RunOptions, device: str, references: Path) -> "RayPlan":
        """Plan the workers of a session.

        Args:
            recipe: recipe of the search.
            options: run options of this process.
            device: type of the device that this process scores on.
            references: folder of the dense model's outputs.
        """
        own, resources = options_of_worker(options, device)
        return cls(
            _with_absolute_paths(recipe),
            own,
            resources,
            references.absolute(),
            _places_by_host(recipe, options),
        )

    def recipe_here(self) -> Recipe:
        """Return the recipe with the paths of this machine. It is called in a worker."""
        found = {}
        for name, path in _paths_in(self.recipe).items():
            # Take the path of the driver, then those of this host, then those of other hosts.
            known = [path, *_known(self.places, name, here=True)]
            known += _known(self.places, name, here=False)
            there = [each for each in known if Path(each).exists()]
            if there:
                found[name] = there[0]
        return self.recipe.with_changes(**found)

    def references_here(self) -> Path | None:
        """Return the folder of the dense model's outputs; None if this machine has none.

        It is called in a worker.
        """
        parent = self.references.parent
        return self.references if os.access(parent, os.W_OK) else None


def options_of_worker(options: RunOptions, device: str) -> tuple[RunOptions, WorkerResources]:
    """Return the run options of a worker, and what it asks Ray for.

    Args:
        options: run options of this process.
        device: type of the device that this process computes on.
    """
    # A worker computes on the same kind of device as this process.
    gpus = options.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if device == "cuda" else 0.0
    threads = _threads(options)
    # URLs can hold passwords, so a worker gets none.
    changes: dict[str, object] = {
        "storage": RunOptions().storage,
        "cache": RunOptions().cache,
        "study": None,
        "threads": threads,
        "device": _device(device, gpus),
    }
    # A model that one GPU does not hold is split over those of the worker.
    if gpus > 1 and options.device_map is None:
        changes["device_map"] = "auto"
    return options.model_copy(update=changes), WorkerResources(threads, gpus)


def _threads(options: RunOptions) -> int:
    """Return the number of CPU cores of a worker.

    As with processes, `threads` is the number of all workers together. On a cluster whose size is
    not known, a worker takes one by default.
    """
    total = options.threads
    if total is None:
        total = options.workers if options.ray_address else os.cpu_count() or 1
    return max(1, total // options.workers)


def _device(device: str, gpus: float) -> str | None:
    """Return the device of a worker. Ray numbers the GPUs of each worker from 0."""
    if gpus > 1:
        return None
    if device == "cuda" or gpus:
        return "cuda" if gpus else "cpu"
    return device


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths. Names that are not paths here stay."""
    found = {}
    for name, path in _paths_in(recipe).items():
        if Path(path).exists():
            found[name] = str(Path(path).absolute())
    return recipe.with_changes(**found)


def _paths_in(recipe: Recipe) -> dict[str, str]:
    """Return the settings of a recipe that may be paths."""
    paths = {}
    for name in PATHS:
        section, field = PLACES[name]
        value = getattr(getattr(recipe, section), field)
        if value is not None:
            paths[name] = value
    return paths


def _known(places: HostPlaces, name: str, *, here: bool) -> list[str]:
    """Return the paths of the model or data that are known of this host, or of the others."""
    paths = []
    for host, kept in places.items():
        if (host == socket.gethostname()) == here:
            paths += [place[name] for place in kept if name in place]
    return paths


def _places_by_host(recipe: Recipe, options: RunOptions) -> HostPlaces:
    """Return the places that the recipe's study has been searched at. A new study has none."""
    name = options.study or study_name(recipe)
    try:
        study = persistence.load(persistence.open_storage(options.storage, create=False), name)
    except InputError:
        return {}
    places: HostPlaces = json.loads(study.user_attrs.get(PLACES_ATTR, "{}"))
    return places
