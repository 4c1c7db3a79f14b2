"""Events of a running job: what is kept, in which order, and what happens without a database."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from prunesearch.runtime.json_values import JsonObject
from prunesearch.service import event_writer
from prunesearch.service.event_log import EventLog, NewEvent
from prunesearch.service.event_writer import MOST_LINES, EventWriter
from prunesearch.service.job import Job
from prunesearch.service.jobs import Jobs
from tests.support.jobs import request, settings_in


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    opened = Jobs(settings_in(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def job(jobs: Jobs) -> Job:
    return jobs.submit(request("s"), "ann")[0]


def writer_of(jobs: Jobs, job: Job) -> EventWriter:
    return EventWriter(EventLog(jobs._engine), job.id, job.stages, job.progress)


def step(name: str, done: int) -> JsonObject:
    return {"name": name, "done": done, "total": 9, "unit": "pieces"}


def search(done: int) -> JsonObject:
    values: JsonObject = {"hits": 1, "computed": done, "best_value": 0.5, "best_dropped": "1"}
    return {**values, "done": done, "total": 9}


def test_of_the_progress_of_a_step_the_last_one_is_kept_and_every_trial(
    jobs: Jobs, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_writer, "INTERVAL", 5.0)
    writer = writer_of(jobs, job)
    for done in range(5):
        writer.put("progress", step("scoring", done))
    for done in range(3):
        writer.put("search", search(done))
        writer.put("progress", step("scoring", done))
        writer.put("progress", step("scoring", done + 1))
    writer.close()
    found = [(event.kind, event.data["done"]) for event in jobs.events(job.id)[1:]]
    trials = [
        ("search", 0),
        ("progress", 1),
        ("search", 1),
        ("progress", 2),
        ("search", 2),
        ("progress", 3),
    ]
    assert found == [("progress", 4), *trials]
    progress = jobs.get(job.id).progress
    assert progress is not None
    assert (progress.step, progress.done, progress.unit) == ("scoring", 3, "pieces")
    assert (progress.best_value, progress.computed) == (0.5, 2)


def test_a_stage_is_told_once_however_often_its_process_is_started(jobs: Jobs, job: Job) -> None:
    writer = writer_of(jobs, job)
    for _ in range(2):
        writer.put("stage", {"name": "search", "state": "running", "seconds": None})
        writer.put("stage", {"name": "search", "state": "finished", "seconds": 2.0})
        writer.put("stage", {"name": "nosuch", "state": "finished", "seconds": 2.0})
        writer.flush()
    writer.close()
    told = [
        (event.data["name"], event.data["state"]) for event in jobs.events(job.id, kinds=("stage",))
    ]
    assert told == [("search", "running"), ("search", "finished")]
    assert jobs.get(job.id).stages[0].seconds == 2.0


def test_a_flood_of_log_lines_is_cut(jobs: Jobs, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_writer, "INTERVAL", 5.0)
    writer = writer_of(jobs, job)
    for number in range(MOST_LINES + 7):
        writer.put("log", {"line": f"line {number}"})
    writer.close()
    lines = [event.data["line"] for event in jobs.events(job.id, kinds=("log",))]
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == "... 7 more lines were left out"


def test_events_wait_while_the_database_does_not_answer(
    jobs: Jobs, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_writer, "_RETRY", 0.01)
    log, tries = EventLog(jobs._engine), threading.Event()
    real = log.append
    failures = [3]

    def append(*arguments: object, **changes: object) -> bool:
        # The last failure is a connection that was lost after the commit.
        if failures[0] > 0:
            failures[0] -= 1
            if failures[0] == 0:
                real(*arguments, **changes)  # type: ignore[arg-type]
                tries.set()
            raise OperationalError("the server is gone", None, Exception())
        return real(*arguments, **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(log, "append", append)
    writer = EventWriter(log, job.id, job.stages, None)
    writer.put("message", {"text": "one"})
    writer.flush()
    writer.put("message", {"text": "two"})
    writer.close()
    assert tries.is_set()
    assert [event.data["text"] for event in jobs.events(job.id)[1:]] == ["one", "two"]
    assert [event.seq for event in jobs.events(job.id)] == [1, 2, 3]


def test_a_writer_can_be_given_up_while_the_database_is_away(
    jobs: Jobs, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(jobs._engine)

    def append(*_: object, **__: object) -> bool:
        raise OperationalError("the server is gone", None, Exception())

    monkeypatch.setattr(log, "append", append)
    writer = EventWriter(log, job.id, job.stages, None)
    writer.put("message", {"text": "one"})
    writer.close(seconds=0.1)
    assert not writer._thread.is_alive()


def test_nothing_is_written_after_the_final_state(jobs: Jobs, job: Job) -> None:
    jobs.cancel(job.id)
    log = EventLog(jobs._engine)
    assert not log.append(job.id, [NewEvent("message", {"text": "late"}, 0.0)], "a")
    assert not log.append("job-none", [NewEvent("message", {"text": "late"}, 0.0)], "a")
    assert jobs.events(job.id)[-1].data == {"state": "cancelled"}
    log.tell_states()
    assert jobs.last_events([job.id]) == {job.id: 2}


def test_writers_of_several_threads_leave_no_gap(jobs: Jobs, job: Job) -> None:
    """The runner writes events, and a verb writes a state, at the same moment."""
    log = EventLog(jobs._engine)

    def write(name: str) -> None:
        for number in range(10):
            log.append(job.id, [NewEvent("message", {"text": name}, 0.0)] * 2, f"{name}{number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for _ in range(3):
        jobs.pause(job.id)
        jobs.resume(job.id)
    for thread in threads:
        thread.join()
    seqs = [event.seq for event in jobs.events(job.id)]
    assert seqs == list(range(1, 1 + 60 + 6 + 1))


def test_numbers_that_are_not_finite_are_null(jobs: Jobs, job: Job) -> None:
    writer = writer_of(jobs, job)
    writer.put(
        "heal", {"name": "heal", "phase": "training", "done": 1, "total": 2, "loss": float("nan")}
    )
    writer.close()
    assert jobs.events(job.id)[-1].data["loss"] is None
