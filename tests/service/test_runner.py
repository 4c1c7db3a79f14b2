"""Jobs from the queue to their end, with processes that start at once."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesearch.errors import ConflictError, NotFoundError
from prunesearch.service import event_writer, runner
from prunesearch.service.job import Job
from prunesearch.service.jobs import Jobs
from prunesearch.service.runner import Runner
from tests.support.jobs import (
    STAND_IN,
    ended,
    in_state,
    let_go,
    log_of,
    request,
    settings_in,
    start_runner,
    told_trial,
    until,
)
from tests.support.stand_in_job import FOLDER, PASSWORD


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Look often, and tell the processes where their signs are."""
    monkeypatch.setattr(runner, "LOOK", 0.03)
    monkeypatch.setattr(runner, "POLL", 0.05)
    monkeypatch.setattr(runner, "PULSE", 0.1)
    monkeypatch.setattr(event_writer, "INTERVAL", 0.02)
    monkeypatch.setenv(FOLDER, str(tmp_path / "signs"))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Jobs of a service with two slots."""
    opened = Jobs(settings_in(tmp_path, jobs_per_device=2))
    yield opened
    opened.close()


@pytest.fixture
def running(jobs: Jobs) -> Iterator[Runner]:
    """A runner of these jobs."""
    with Runner(jobs.settings, STAND_IN) as started:
        yield started


def submit(jobs: Jobs, study: str) -> Job:
    return jobs.submit(request(study), "ann")[0]


def states(jobs: Jobs, job: Job) -> list[object]:
    return [event.data["state"] for event in jobs.events(job.id, kinds=("state",))]


def test_a_job_goes_from_the_queue_to_its_report(jobs: Jobs, running: Runner) -> None:
    job, _ = jobs.submit(request("quick", command="run"), "ann")
    done = ended(jobs, job)
    assert done.state == "finished"
    assert states(jobs, job) == ["queued", "running", "finished"]
    assert [stage.state for stage in done.stages] == ["finished", *7 * ["skipped"], "finished"]
    assert done.progress is not None
    assert (done.progress.done, done.progress.best_dropped) == (3, "1,2")
    assert done.started is not None
    assert done.ended is not None
    assert done.created <= done.started <= done.ended
    # The report has no folder of the server.
    assert jobs.result(job.id) == {"study": "quick", "trials": 3, "export": {"folder": job.id}}
    events = jobs.events(job.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].data == {"state": "finished"}
    assert done.last_event == len(events)
    assert [event.data["done"] for event in events if event.kind == "search"] == [1, 2, 3]


def test_a_failure_is_one_line_without_folders(jobs: Jobs, running: Runner) -> None:
    failed = ended(jobs, submit(jobs, "fail"))
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error.endswith("models/fake is too large")
    assert jobs.events(failed.id)[-1].data == {"state": "failed", "error": failed.error}
    assert jobs.result(failed.id) is None
    assert Counter(words[0] for words in log_of(jobs.settings.exports.parent)) == {"start": 1}


def test_a_process_that_dies_is_started_again_a_few_times(jobs: Jobs, running: Runner) -> None:
    dead, alive = submit(jobs, "die"), submit(jobs, "die2")
    failed, finished = ended(jobs, dead), ended(jobs, alive)
    assert finished.state == "finished"
    assert failed.state == "failed"
    assert failed.error is not None
    assert "SIGKILL" in failed.error
    assert "memory" in failed.error
    assert "\n" not in failed.error
    starts = Counter(
        words[1] for words in log_of(jobs.settings.exports.parent) if words[0] == "start"
    )
    assert starts == {"die": 3, "die2": 3}
    messages = [event.data["text"] for event in jobs.events(alive.id, kinds=("message",))]
    assert ["attempt 2 of 3" in str(text) for text in messages] == [True, False]


def test_a_failure_while_the_database_is_away_is_none_of_the_job(
    jobs: Jobs, running: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_failed_at", time.monotonic())
    job = submit(jobs, "fail1")
    assert ended(jobs, job).state == "finished"
    (message,) = [event.data["text"] for event in jobs.events(job.id, kinds=("message",))]
    assert "because the database did not answer" in str(message)
    assert str(message).endswith("it is started again (attempt 2 of 3)")


def test_a_recipe_that_is_refused_only_when_it_runs_fails_with_the_line(
    jobs: Jobs, tmp_path: Path
) -> None:
    job = submit(jobs, "quick")
    (tmp_path / "models" / "fake" / "config.json").unlink()
    (tmp_path / "models" / "fake").rmdir()
    with Runner(jobs.settings, STAND_IN):
        failed = ended(jobs, job)
    assert failed.error is not None
    assert failed.error.startswith("unknown model 'fake'")
    assert log_of(tmp_path) == []


def test_a_job_is_paused_and_resumed_many_times(
    jobs: Jobs, running: Runner, tmp_path: Path
) -> None:
    job = submit(jobs, "hold")
    for _ in range(4):
        in_state(jobs, job, "running")
        assert jobs.pause(job.id).state == "paused"
        assert jobs.pause(job.id).state == "paused"
        assert jobs.resume(job.id).state in ("queued", "running")
        jobs.resume(job.id)
    in_state(jobs, job, "running")
    let_go(tmp_path, job)
    assert ended(jobs, job).state == "finished"
    # Its processes did not overlap.
    lines = [words[0] for words in log_of(tmp_path)]
    assert lines == ["start", "end"] * (len(lines) // 2)
    told = states(jobs, job)
    assert told.count("paused") == 4
    assert told[-1] == "finished"


def test_a_paused_job_frees_its_slot_and_ends_its_process(
    jobs: Jobs, running: Runner, tmp_path: Path
) -> None:
    held = [submit(jobs, f"hold-{number}") for number in range(3)]
    for job in held[:2]:
        told_trial(jobs, job)
    assert jobs.get(held[2].id).state == "queued"
    assert jobs.counts()["running"] == 2
    jobs.pause(held[0].id)
    told_trial(jobs, held[2])
    (info,) = jobs.runners()
    assert (info.alive, info.slots) == (True, 2)
    for job in held:
        let_go(tmp_path, job)
    jobs.resume(held[0].id)
    assert {ended(jobs, job).state for job in held} == {"finished"}


def test_a_search_is_stopped_early_and_the_job_finishes(jobs: Jobs, running: Runner) -> None:
    job = submit(jobs, "hold")
    told_trial(jobs, job)
    jobs.stop(job.id)
    jobs.stop(job.id)
    assert ended(jobs, job).state == "finished"
    assert jobs.stop(job.id).state == "finished"
    with pytest.raises(ConflictError, match="it is finished"):
        jobs.pause(job.id)


def test_a_stop_is_not_forgotten_before_the_process_starts(jobs: Jobs) -> None:
    job = submit(jobs, "hold")
    jobs.stop(job.id)
    with Runner(jobs.settings, STAND_IN):
        assert ended(jobs, job).state == "finished"


def test_a_running_job_is_cancelled_and_deleted(
    jobs: Jobs, running: Runner, tmp_path: Path
) -> None:
    job = submit(jobs, "hold")
    told_trial(jobs, job)
    with pytest.raises(ConflictError, match="cancel it first"):
        jobs.delete(job.id)
    assert jobs.cancel(job.id).state == "cancelled"
    assert states(jobs, job)[-1] == "cancelled"
    until(lambda: log_of(tmp_path)[-1][0] == "end")
    last = jobs.events(job.id)[-1]
    assert last.data == {"state": "cancelled"}
    folder = jobs.settings.exports / job.id
    folder.mkdir(parents=True)
    jobs.delete(job.id, export=True)
    assert not folder.exists()
    assert jobs.events(job.id) == []
    with pytest.raises(NotFoundError):
        jobs.get(job.id)


def test_a_process_that_does_not_listen_is_killed(
    jobs: Jobs, running: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.1)
    monkeypatch.setattr("prunesearch.service.child.PATIENCE", 0.1)
    job = submit(jobs, "deaf")
    told_trial(jobs, job)
    jobs.cancel(job.id)
    until(lambda: jobs.runners()[0].running == 0)
    assert jobs.get(job.id).state == "cancelled"
    # The runner counts a cancelled job no more. It ends the process a moment later.
    (started,) = log_of(jobs.settings.exports.parent)
    until(lambda: not Path(f"/proc/{started[2]}").exists())


def test_no_secret_and_no_control_character_is_in_a_log(jobs: Jobs, running: Runner) -> None:
    job = submit(jobs, "secret")
    assert ended(jobs, job).state == "finished"
    (line,) = [event.data["line"] for event in jobs.events(job.id, kinds=("log",))]
    assert PASSWORD not in str(jobs.events(job.id))
    assert line == "cannot reach postgresql://me:***@host/db\\x1b[31m"


def test_a_job_goes_on_in_the_next_runner_when_one_is_stopped(jobs: Jobs, tmp_path: Path) -> None:
    job = submit(jobs, "hold")
    with Runner(jobs.settings, STAND_IN):
        told_trial(jobs, job)
    assert jobs.get(job.id).state == "running"
    assert jobs.runners() == []
    assert [words[0] for words in log_of(tmp_path)] == ["start", "end"]
    let_go(tmp_path, job)
    with Runner(jobs.settings, STAND_IN):
        assert ended(jobs, job).state == "finished"
    messages = [event.data["text"] for event in jobs.events(job.id, kinds=("message",))]
    assert messages == ["the job goes on where it was interrupted"]
    # No thread is left that would keep a process from ending.
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("dbos-executor", "runner", "events"))]


def test_a_killed_runner_has_its_jobs_taken_over(jobs: Jobs, tmp_path: Path) -> None:
    killed = start_runner(jobs.settings, "--jobs-per-device=2", program="stand-in")
    held = [submit(jobs, f"hold-{number}") for number in range(2)]
    for job in held:
        told_trial(jobs, job)
    other = start_runner(jobs.settings, "--jobs-per-device=2", program="stand-in")
    try:
        until(lambda: len(jobs.runners()) == 2)
        killed.kill()
        killed.wait()
        # The processes of the killed runner end by themselves, and the other runner starts new ones.
        until(lambda: Counter(words[0] for words in log_of(tmp_path)) == {"start": 4, "end": 2})
        for job in held:
            let_go(tmp_path, job)
        assert {ended(jobs, job).state for job in held} == {"finished"}
        for job in held:
            seqs = [event.seq for event in jobs.events(job.id)]
            assert seqs == list(range(1, len(seqs) + 1))
    finally:
        for process in (killed, other):
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_two_runners_run_no_job_twice(jobs: Jobs, running: Runner, tmp_path: Path) -> None:
    other = start_runner(jobs.settings, "--jobs-per-device=2", program="stand-in")
    try:
        until(lambda: len(jobs.runners()) == 2)
        many = [submit(jobs, f"quick-{number}") for number in range(12)]
        assert {ended(jobs, job).state for job in many} == {"finished"}
    finally:
        other.send_signal(signal.SIGTERM)
        other.wait(60)
    starts = Counter(words[1] for words in log_of(tmp_path) if words[0] == "start")
    assert starts == {job.study: 1 for job in many}


def test_a_job_that_no_thread_runs_goes_back_into_the_queue(
    jobs: Jobs, running: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the database had crashed just after the job was taken from the queue."""
    monkeypatch.setattr(runner, "ORPHANED", 0.2)
    job = submit(jobs, "hold")
    told_trial(jobs, job)
    with running._guard:
        (lost,) = running._running.values()
    # The thread ends without a result, and the queue still counts the job as ours.
    lost.interrupt()
    until(lambda: [words[0] for words in log_of(tmp_path)][-3:] == ["start", "end", "start"])
    let_go(tmp_path, job)
    assert ended(jobs, job).state == "finished"
