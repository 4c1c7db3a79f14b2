"""PostgreSQL is stopped for half a minute, and crashes ten times, under three running jobs. Is a job
failed, lost, or different?
"""

import random
import time
from pathlib import Path

from benchmarks.support.job_load import JobLoad
from benchmarks.support.record import Record
from benchmarks.support.running_service import RunningService
from prunesearch.service.jobs import Jobs
from tests.support import postgres

_JOBS = 3
_PATIENCE = 180.0  # seconds in which the jobs must work


def measure(record: Record, scratch: Path) -> None:
    """Add the counts of failed and lost jobs."""
    if not postgres.AVAILABLE:
        record.notes["database"] = "not measured: PostgreSQL's server is not installed"
        return
    trials, tokens = record.by_size(900, 300, 60), record.by_size(4096, 4096, 256)
    crashes, outage = record.by_size(10, 3, 1), record.by_size(30.0, 10.0, 2.0)
    with (
        postgres.Server(fsync=True) as server,
        RunningService(scratch, server.url, f"--jobs-per-device={_JOBS}") as service,
    ):
        jobs = Jobs(service.settings)
        load = JobLoad(service, trials, tokens)
        for _ in range(_JOBS):
            load.submit()
        _wait_until_running(jobs)
        load.start()
        # A stop for maintenance, and crashes.
        _stopped_for(server, "fast", outage)
        generator = random.Random(0)
        for _ in range(crashes):
            time.sleep(generator.uniform(1.0, 4.0))
            _stopped_for(server, "immediate", 0.5)
        found = load.wait(jobs, 900.0)
        load.end(60.0)
        failed = [job for job in found if job.state == "failed"]
        others = [job for job in found if job.state != "finished"]
        missed, doubled = load.missed_and_doubled(jobs)
        record.add("database_crashes", crashes)
        record.add("database_jobs_failed", len(failed), "== 0")
        record.add("database_jobs_lost", len(others) - len(failed), "== 0")
        record.add("database_events_missed", missed, "== 0")
        record.add("database_events_doubled", doubled, "== 0")
        record.add("database_evaluations_lost", load.lost_evaluations(jobs), "== 0")
        differing = load.differing(jobs, scratch, record.by_size(_JOBS, 1, 1))
        record.add("database_studies_differing", differing, "== 0")
        record.notes["database_failures"] = load.failures[:20]
        record.notes["database_errors"] = [job.error for job in others][:20]
        jobs.close()


def _stopped_for(server: postgres.Server, mode: str, seconds: float) -> None:
    """Stop the database for some seconds."""
    server.stop(mode)
    time.sleep(seconds)
    server.start()


def _wait_until_running(jobs: Jobs) -> None:
    """Wait until all jobs have told a trial."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        told = 0
        for job in jobs.list().jobs:
            told += job.progress is not None and job.progress.best_value is not None
        if told == _JOBS:
            return
        time.sleep(0.2)
    raise TimeoutError("the jobs do not tell their trials")
