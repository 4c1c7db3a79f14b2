"""What each tracker keeps: read back from its own files, continued, and nothing twice."""

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from prunesearch.tracking import process
from prunesearch.tracking.process import Runs
from prunesearch.tracking.records import (
    DeliveryAnswer,
    Point,
    Record,
    RunDocument,
    RunEnd,
    RunPoints,
    RunStart,
    RunSummary,
)
from prunesearch.tracking.registry import REGISTRY
from prunesearch.tracking.step_file import StepFile
from tests.support.cli import FAST, run_json

START = RunStart(
    "0123456789abcdef", "my study", "search", "my study", {"search.sampler": "pso", "n": 3}
)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Put back the variables that a tracker sets in its process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def points(first: int, last: int) -> RunPoints:
    found = []
    for step in range(first, last):
        found.append(Point(step, 1000.0 + step, {"value": 1 / step, "kl (all)": 2.0}))
    return RunPoints(START.run, tuple(found))


def deliver(tracker: str, folder: Path, *records: Record) -> None:
    runs = Runs(REGISTRY.get(tracker).open(str(folder), False))
    batch = [START, *records, RunEnd(START.run, "finished")]
    assert list(runs.take(batch))[-1] == DeliveryAnswer(len(batch))


RESULTS = (
    RunSummary(START.run, {"best_dropped": "3,7", "best.value": 0.25}),
    RunDocument(START.run, "recipe.yaml", "model: x\n"),
)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = [path for path in folder.iterdir() if path.is_dir()]
    events = EventAccumulator(str(run))
    events.Reload()
    assert (
        "parameters/text_summary" in events.Tags()["tensors"]
        or "parameters" in events.Tags()["tensors"]
    )
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    deliver("tensorboard", tmp_path, points(1, 4), *RESULTS)
    # A resumed study sends its earlier trials again.
    deliver("tensorboard", tmp_path, points(1, 6))
    found = scalars(tmp_path, "value")
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert [value for _, value in found] == pytest.approx([1 / step for step in range(1, 6)])


def test_tensorboard_shortens_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    runs = Runs(REGISTRY.get("tensorboard").open(str(tmp_path), False))
    assert list(runs.take([replace(START, name="\u4e2d" * 300)]))[-1] == DeliveryAnswer(1)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "\u4e2d" * 66 + "-01234567"


def test_mlflow_in_a_sqlite_file(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    deliver("mlflow", tmp_path, points(1, 4), *RESULTS)
    deliver("mlflow", tmp_path, points(1, 6))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("prunesearch")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("my study", "FINISHED")
    assert run.data.params == {"search.sampler": "pso", "n": "3"}
    assert run.data.tags["best_dropped"] == "3,7"
    assert run.data.metrics["best.value"] == 0.25
    history = client.get_metric_history(run.info.run_id, "value")
    assert sorted((metric.step, metric.timestamp) for metric in history) == [
        (step, 1_000_000 + 1000 * step) for step in range(1, 6)
    ]
    assert run.data.metrics["kl _all_"] == 2.0
    (artifact,) = tmp_path.glob("artifacts/*/artifacts/recipe.yaml")
    assert artifact.read_text() == "model: x\n"


def test_mlflow_gets_the_parameters_of_a_request_that_failed(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    def fails(*given: object, **named: object) -> None:
        raise MlflowException("no answer")

    runs = Runs(REGISTRY.get("mlflow").open(str(tmp_path), False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", fails)
        assert list(runs.take([START]))[-1].failure
    deliver("mlflow", tmp_path, points(1, 3))
    # A parameter that has another value now stays as it was.
    other = replace(START, parameters={**START.parameters, "n": 4, "new": 1})
    list(Runs(REGISTRY.get("mlflow").open(str(tmp_path), False)).take([other]))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("prunesearch")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"search.sampler": "pso", "n": "3", "new": "1"}


def test_mlflow_shows_the_results_of_the_last_command(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    deliver("mlflow", tmp_path, RunSummary(START.run, {"best.value": 0.25}))
    deliver("mlflow", tmp_path, RunSummary(START.run, {"best.value": 0.125}))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("prunesearch")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["best.value"] == 0.125


def test_a_batch_that_takes_long_is_answered_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    batch: list[Record] = [START, points(1, 3), *RESULTS]

    def answers() -> list[int]:
        runs = Runs(REGISTRY.get("tensorboard").open(str(tmp_path), False))
        return [answer.done for answer in runs.take(batch)]

    monkeypatch.setattr(process, "_ANSWER_EVERY", 0.0)
    assert answers() == [1, 2, 3, 4]
    monkeypatch.setattr(process, "_ANSWER_EVERY", 1000.0)
    assert answers() == [4]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    deliver("wandb", tmp_path, points(1, 4), *RESULTS)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert folder.name.endswith(START.run)
    data = (folder / f"run-{START.run}.wandb").read_bytes()
    assert b"best_dropped" in data
    assert (folder / "files" / "recipe.yaml").read_text() == "model: x\n"
    assert StepFile(tmp_path / "last-steps" / START.run).read() == 3
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"k" * 40 not in path.read_bytes(), path


def test_trackio(tmp_path: Path) -> None:
    # It is not imported here, because it reads the folder from the environment at its import.
    try:
        version = importlib.metadata.version("trackio")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("trackio 0.43 does not go with constraints.txt (pillow < 13)")
    if tuple(map(int, version.split(".")[:2])) < (0, 43):
        pytest.skip(f"trackio {version} is too old")
    deliver("trackio", tmp_path, points(1, 4), *RESULTS)
    assert StepFile(tmp_path / "last-steps" / START.run).read() == 3
    assert (tmp_path / "prunesearch.db").is_file()


def test_a_damaged_step_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a" / "step"
    assert StepFile(path).read() == -1
    StepFile(path).write(12)
    assert StepFile(path).read() == 12
    path.write_text("x")
    assert StepFile(path).read() == -1


def test_a_search_is_tracked_and_continued_in_the_same_run(
    tiny_folder: Path, prose: Path, here: Path
) -> None:
    pytest.importorskip("tensorboard")
    search = ["search", tiny_folder, "--drop", 2, "--calibration", prose, *FAST]
    # The first trials are searched without a tracker, and are in the run all the same.
    run_json(*search, "--trials", 3)
    track = ["--track", "tensorboard", "--track-to", "tensorboard=runs"]
    run_json(*search, "--trials", 5, *track)
    found: Mapping[str, object] = run_json(*search, "--trials", 8, *track)
    best = scalars(here / "runs", "best_value")
    assert [step for step, _ in best] == list(range(1, 9))
    assert best[-1][1] == pytest.approx(found["value"], rel=1e-5)
    # Trials of a generation end in any order.
    assert sorted(value for _, value in scalars(here / "runs", "trial")) == list(range(8))
    assert sorted(best, key=lambda point: -point[1]) == best
