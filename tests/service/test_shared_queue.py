"""Jobs in PostgreSQL: through PgBouncer, and while the server is away."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesearch.service import event_writer, roll, runner
from prunesearch.service.jobs import Jobs
from prunesearch.service.runner import Runner
from tests.support import postgres
from tests.support.jobs import (
    STAND_IN,
    ended,
    let_go,
    log_of,
    request,
    settings_in,
    start_runner,
    told_trial,
    until,
)
from tests.support.stand_in_job import FOLDER


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "LOOK", 0.05)
    monkeypatch.setattr(runner, "POLL", 0.1)
    monkeypatch.setattr(runner, "PULSE", 0.2)
    monkeypatch.setattr(event_writer, "INTERVAL", 0.05)
    monkeypatch.setenv(FOLDER, str(tmp_path / "signs"))


@pytest.fixture
def pooled(pool: str, tmp_path: Path) -> Iterator[Jobs]:
    """Jobs through PgBouncer in transaction mode."""
    opened = Jobs(settings_in(tmp_path, pool, jobs_per_device=2))
    yield opened
    opened.close()


def test_jobs_run_and_are_taken_over_through_pgbouncer(pooled: Jobs, tmp_path: Path) -> None:
    killed = start_runner(pooled.settings, program="stand-in")
    job, _ = pooled.submit(request("hold"), "ann", "key")
    told_trial(pooled, job)
    killed.kill()
    killed.wait()
    with Runner(pooled.settings, STAND_IN):
        # Statements that are prepared belong to a session, so the same ones are used often.
        many = [pooled.submit(request(f"quick-{number}"), "ann")[0] for number in range(8)]
        until(
            lambda: (
                [words[0] for words in log_of(tmp_path) if words[1] == "hold"]
                == ["start", "end", "start"]
            )
        )
        pooled.pause(job.id)
        pooled.resume(job.id)
        let_go(tmp_path, job)
        assert {ended(pooled, other).state for other in [job, *many]} == {"finished"}
    starts = Counter(words[1] for words in log_of(tmp_path) if words[0] == "start")
    assert {starts[other.study] for other in many} == {1}
    assert pooled.runners() == []


def test_no_job_fails_or_is_lost_while_the_server_crashes(
    server: postgres.Server, database: str, tmp_path: Path
) -> None:
    jobs = Jobs(settings_in(tmp_path, database, jobs_per_device=3))
    held = [jobs.submit(request(f"hold-{number}"), "ann")[0] for number in range(3)]
    queued = [jobs.submit(request(f"quick-{number}"), "ann")[0] for number in range(3)]
    runner_process = start_runner(jobs.settings, "--jobs-per-device=3", program="stand-in")
    try:
        for job in held:
            told_trial(jobs, job)
        for _ in range(3):
            server.stop("immediate")
            server.start()
        server.stop("fast")
        # The jobs go on while the server is away: two of them tell trials that nobody can store yet.
        for job in held[:2]:
            let_go(tmp_path, job)
        until(lambda: sum(words[0] == "end" for words in log_of(tmp_path)) >= 2)
        server.start()
        let_go(tmp_path, held[2])
        assert {ended(jobs, job, 90).state for job in [*held, *queued]} == {"finished"}
        for job in held:
            done = [event.data["done"] for event in jobs.events(job.id, kinds=("search",))]
            assert done == [1, 2, 3]
            seqs = [event.seq for event in jobs.events(job.id)]
            assert seqs == list(range(1, len(seqs) + 1))
        starts = Counter(words[1] for words in log_of(tmp_path) if words[0] == "start")
        assert set(starts.values()) == {1}
        assert runner_process.poll() is None
    finally:
        runner_process.send_signal(signal.SIGTERM)
        runner_process.wait(30)
        jobs.close()


def test_a_runner_of_another_host_is_gone_after_a_long_silence(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(settings_in(tmp_path, database, jobs_per_device=2))
    # A runner whose process this host cannot see.
    monkeypatch.setattr(roll, "this_process", lambda: "")
    other = start_runner(jobs.settings, program="stand-in")
    job, _ = jobs.submit(request("hold"), "ann")
    told_trial(jobs, job)
    with jobs._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE prunesearch_runners SET process = 'another host'")
    monkeypatch.setattr(roll, "SILENCE", 1.0)
    with Runner(jobs.settings, STAND_IN):
        until(lambda: len(jobs.runners()) == 2)
        other.send_signal(signal.SIGSTOP)
        # It is silent, and its job is taken over. Its process ends once it notices.
        until(lambda: sum(words[0] == "start" for words in log_of(tmp_path)) == 2)
        other.send_signal(signal.SIGCONT)
        until(lambda: sum(words[0] == "end" for words in log_of(tmp_path)) == 1)
        let_go(tmp_path, job)
        assert ended(jobs, job).state == "finished"
    other.send_signal(signal.SIGTERM)
    other.wait(30)
    seqs = [event.seq for event in jobs.events(job.id)]
    assert seqs == list(range(1, len(seqs) + 1))
    jobs.close()
