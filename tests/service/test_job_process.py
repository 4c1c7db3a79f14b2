"""The process of a job, with a real model."""

import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from prunesearch.runtime import early_end
from prunesearch.runtime.json_values import JsonObject
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE
from prunesearch.service import job_process
from prunesearch.service.job import JobRequest
from prunesearch.service.job_process import JobOrder, Reporter
from prunesearch.service.jobs import Jobs
from prunesearch.studies import persistence
from tests.support.jobs import ended, settings_in, start_runner, told_trial

Lines = list[tuple[str, JsonObject]]


@pytest.fixture
def order(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> JobOrder:
    """An order for a search of a tiny model."""
    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{tmp_path}/own.db")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own-cache"))
    monkeypatch.chdir(tmp_path)
    recipe: JsonObject = {
        "model": str(tiny_folder),
        "search": {"drop": "2", "population": 4},
        "data": {"tokens": 64, "window": 32},
    }
    return JobOrder("search", recipe, "s", 12, str(tmp_path / "out"), "cpu", {"threads": 1})


def carried_out(
    order: JobOrder, at_event: Callable[[str], None] = lambda kind: None
) -> tuple[int, Lines]:
    """Run an order in this process; its exit status and its lines."""

    class Output(io.StringIO):
        def write(self, text: str) -> int:
            at_event(json.loads(text)["kind"])
            return super().write(text)

    output = Output()
    with early_end.accepted():
        status = job_process._status_of(order, Reporter(output))
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    return status, [(line["kind"], line["data"]) for line in lines]


def sequence(storage: str, name: str) -> list[object]:
    """Everything of a study's trials that must not depend on interruptions."""
    study = optuna.load_study(
        study_name=name, storage=persistence.open_storage(storage, create=False)
    )
    return [(trial.number, trial.params, trial.values, trial.state) for trial in study.trials]


def test_an_order_says_what_confirms(order: JobOrder) -> None:
    assert job_process._options(order).confirm is None
    assert job_process._options(replace(order, confirm=0.0)).confirm == 0


def test_a_search_reports_stages_trials_and_a_report(order: JobOrder) -> None:
    status, lines = carried_out(order)
    assert status == 0
    stages = [(data["name"], data["state"]) for kind, data in lines if kind == "stage"]
    assert stages == [
        ("search", "running"), ("search", "finished"), ("report", "running"), ("report", "finished"),
    ]  # fmt: skip
    trials = [data for kind, data in lines if kind == "search" and data["value"] is not None]
    assert [data["done"] for data in trials] == list(range(1, 13))
    best = min(float(str(data["value"])) for data in trials)
    assert trials[-1]["best_value"] == best
    assert {str(data["dropped"]).count(",") for data in trials} == {1}
    kind, report = lines[-1]
    assert kind == "report"
    assert (report["study"], report["trials"], report["value"]) == ("s", 12, best)


def test_a_search_that_shall_end_early_goes_on_with_the_best_so_far(
    order: JobOrder, tmp_path: Path
) -> None:
    def at_event(kind: str) -> None:
        if kind == "search":
            early_end.request()

    status, lines = carried_out(replace(order, command="run"), at_event)
    assert status == 0
    kind, report = lines[-1]
    # The first generation was finished, and the rest of the stages ran.
    assert (kind, report["trials"]) == ("report", 4)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    # A search that is asked again has a result already, so it asks for no more trials.
    status, lines = carried_out(order, at_event)
    assert lines[-1][1]["trials"] == 4
    status, lines = carried_out(order)
    assert lines[-1][1]["trials"] == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "."}, "config.json"),
        ({"search": {"drop": "6"}}, "drop"),
        ({"data": {"calibration": "no-text.txt"}}, "no-text.txt"),
        ({"data": {"tokens": 10**9}}, "token"),
    ],
)
def test_what_is_refused_only_when_it_runs_is_one_line(
    order: JobOrder, change: JsonObject, words: str
) -> None:
    status, lines = carried_out(replace(order, recipe={**order.recipe, **change}))
    assert status == 2
    kind, data = lines[-1]
    assert kind == "failed"
    assert words in str(data["error"])
    assert "\n" not in str(data["error"])
    assert "Traceback" not in str(lines)


def test_a_bug_is_one_line_too(order: JobOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in\nthe middle of postgresql://me:hunter2@host/db")

    monkeypatch.setattr("prunesearch.pipeline.run.run_stages", broken)
    status, lines = carried_out(order)
    assert status == 1
    error = lines[-1][1]["error"]
    assert error == "ZeroDivisionError: in the middle of postgresql://me:***@host/db"


def test_a_busy_study_is_waited_for(order: JobOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_process, "RETRY", 0.05)
    storage = persistence.open_storage(os.environ[STORAGE_VARIABLE], create=True)
    held, released = threading.Event(), threading.Event()

    def at_event(kind: str) -> None:
        if kind == "message":
            released.set()

    def colleague() -> None:
        with persistence.sole_writer(storage, "s"):
            held.set()
            released.wait(30)

    thread = threading.Thread(target=colleague)
    thread.start()
    held.wait(30)
    status, lines = carried_out(order, at_event)
    thread.join()
    assert status == 0
    messages = [data["text"] for kind, data in lines if kind == "message"]
    assert len(messages) == 1
    assert str(messages[0]).startswith("waiting: study 's' is being searched by")


def test_a_killed_runner_goes_on_at_the_same_trial_sequence(
    order: JobOrder, tmp_path: Path, tiny_folder: Path
) -> None:
    # 1. The search without interruption.
    assert carried_out(replace(order, trials=15))[0] == 0
    # 2. The same one as a job, whose runner is killed in the middle.
    settings = settings_in(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "models" / "tiny")
    jobs = Jobs(settings)
    request = JobRequest({**order.recipe, "model": "tiny"}, "search", 15, "job")
    killed = start_runner(settings, "--threads=1")
    job, _ = jobs.submit(request, "ann")
    told_trial(jobs, job, 5)
    killed.kill()
    killed.wait()
    again = start_runner(settings, "--threads=1")
    try:
        done = ended(jobs, job, 120)
        assert (done.state, done.error) == ("finished", None)
    finally:
        again.send_signal(signal.SIGTERM)
        again.wait(30)
    assert sequence(settings.storage, "job") == sequence(os.environ[STORAGE_VARIABLE], "s")
    seqs = [event.seq for event in jobs.events(job.id)]
    assert seqs == list(range(1, len(seqs) + 1))
    # Trials that were told before were not evaluated again.
    result = jobs.result(job.id)
    assert result is not None
    assert int(str(result["computed"])) + int(str(result["hits"])) <= 10
    assert again.returncode == 143
    jobs.close()
