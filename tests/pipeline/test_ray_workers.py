"""What workers of Ray are given: paths that are right on their machine, and no secrets."""

import os
import pickle
import socket
from pathlib import Path

import pytest

from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.evaluation.ray_handle import WorkerResources
from prunesearch.pipeline.ray_workers import HostPlaces, RayPlan, options_of_worker


def on_ray(**changes: object) -> RunOptions:
    return RunOptions.of({"engine": "ray", **changes})  # type: ignore[dict-item]


def plan(recipe: Recipe, places: HostPlaces, references: Path = Path("references")) -> RayPlan:
    return RayPlan(recipe, on_ray(), WorkerResources(), references, places)


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ({"workers": 2, "threads": 8}, "cpu", (4, 0, "cpu", None)),
        ({"workers": 4, "ray_address": "auto"}, "cpu", (1, 0, "cpu", None)),
        ({"workers": 4, "ray_address": "auto"}, "cuda", (1, 1, "cuda", None)),
        ({"workers": 4, "threads": 4, "gpus_per_worker": 0.5}, "cuda", (1, 0.5, "cuda", None)),
        ({"workers": 2, "threads": 2, "gpus_per_worker": 2}, "cuda", (1, 2, None, "auto")),
        ({"workers": 2, "threads": 2}, "mps", (1, 0, "mps", None)),
    ],
)
def test_a_worker_asks_for_what_it_computes_on(
    changes: dict[str, object], device: str, expected: tuple[int, float, str | None, str | None]
) -> None:
    options, resources = options_of_worker(on_ray(**changes), device)
    found = (resources.cpus, resources.gpus, options.device, options.device_map)
    assert found == expected
    assert options.threads == resources.cpus


def test_the_machines_cores_are_shared_among_workers_that_are_started_here() -> None:
    _, resources = options_of_worker(on_ray(workers=2), "cpu")
    assert resources.cpus == max(1, (os.cpu_count() or 1) // 2)


def test_paths_are_absolute_and_urls_stay_here(here: Path) -> None:
    (here / "model").mkdir()
    recipe = Recipe(model="model", drop="2", calibration="builtin")
    options = on_ray(
        storage=f"sqlite:///{here}/study.db", cache="cache,postgresql://me:secret@host/db"
    )
    made = RayPlan.of(recipe, options, "cpu", Path("cache/references"))
    assert made.recipe.model.path == str(here / "model")
    assert made.recipe.data.calibration == "builtin"
    assert made.references == here / "cache" / "references"
    assert b"secret" not in pickle.dumps(made)


def test_a_worker_finds_the_model_where_its_host_has_it(tmp_path: Path) -> None:
    own, theirs, gone = tmp_path / "own", tmp_path / "theirs", str(tmp_path / "gone")
    own.mkdir()
    theirs.mkdir()
    places = {
        "elsewhere": [{"model": str(theirs)}],
        socket.gethostname(): [{"model": gone}, {"model": str(own)}],
    }
    recipe = Recipe(model=gone, drop="2")
    assert plan(recipe, places).recipe_here().model.path == str(own)
    own.rmdir()
    assert plan(recipe, places).recipe_here().model.path == str(theirs), "a disk that is shared"
    assert plan(recipe, {}).recipe_here().model.path == gone, "its error names the path"


def test_the_dense_models_outputs_are_kept_only_where_their_folder_is(tmp_path: Path) -> None:
    recipe = Recipe(model="m", drop="2")
    references = tmp_path / "references"
    assert plan(recipe, {}, references).references_here() == references
    assert plan(recipe, {}, tmp_path / "gone" / "references").references_here() is None
