"""The HTTP process and the runner are killed again and again while clients submit, list and follow
jobs. Is a job or an evaluation lost or doubled, and how soon do the jobs go on?
"""

import random
import time
from pathlib import Path

from benchmarks.support.job_load import JobLoad
from benchmarks.support.record import Record
from benchmarks.support.running_service import RunningService
from prunesearch.service.job import Job
from prunesearch.service.jobs import Jobs

_WORK = ("progress", "search", "stage", "message")
"""Kinds of events that the process of a job reports."""
_RUNNING = 2  # jobs at once
_PATIENCE = 120.0  # seconds in which a killed part must have recovered


def measure(record: Record, scratch: Path) -> None:
    """Add the counts of lost and doubled jobs, events and evaluations, and the time to resume."""
    rounds = record.by_size(20, 3, 1)
    trials, tokens = record.by_size(300, 150, 40), record.by_size(4096, 4096, 256)
    with RunningService(scratch, None, f"--jobs-per-device={_RUNNING}") as service:
        jobs = Jobs(service.settings)
        load = JobLoad(service, trials, tokens)
        load.start()
        resumed, back = [], []
        generator = random.Random(0)
        for _ in range(rounds):
            _keep_busy(load, jobs)
            resumed.append(_kill_runner(service, jobs))
            _keep_busy(load, jobs)
            time.sleep(generator.uniform(0.0, 1.0))
            back.append(_kill_http(service, jobs))
        found = load.wait(jobs, 600.0)
        load.end(60.0)
        _add(record, load, jobs, found)
        record.add("kills_of_runner", len(resumed))
        record.add("kills_of_http_process", len(back))
        record.add("kills_resumed_seconds", max(resumed), "<= 10")
        record.add("kills_http_back_seconds", max(back))
        differing = load.differing(jobs, scratch, record.by_size(3, 1, 1))
        record.add("kills_studies_differing", differing, "== 0")
        jobs.close()


def _add(record: Record, load: JobLoad, jobs: Jobs, found: list[Job]) -> None:
    """Add what was lost or doubled."""
    unfinished = [job for job in found if job.state != "finished"]
    missed, doubled = load.missed_and_doubled(jobs)
    record.add("kills_jobs", len(found))
    record.add("kills_jobs_lost", len(unfinished), "== 0")
    second = load.stored(jobs) - len(set(load.keys.values())) + len(load.conflicts)
    record.add("kills_jobs_doubled", second, "== 0")
    record.add("kills_evaluations_lost", load.lost_evaluations(jobs), "== 0")
    record.add("kills_events_missed", missed, "== 0")
    record.add("kills_events_doubled", doubled, "== 0")
    record.add("kills_lists_answered", load.lists)
    record.add("kills_clients_failed", len(load.failures), "== 0")
    record.notes["kills_failures"] = load.failures[:20]
    record.notes["kills_errors"] = [job.error for job in unfinished][:20]


def _keep_busy(load: JobLoad, jobs: Jobs) -> None:
    """Wait until jobs are running that have told a trial; submit more if there are too few."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        counts = jobs.counts()
        left = counts.get("queued", 0) + counts.get("running", 0)
        for _ in range(_RUNNING + 1 - left):
            load.submit()
        for job in jobs.list(state="running").jobs:
            if job.progress is not None and job.progress.best_value is not None:
                return
        time.sleep(0.1)
    raise TimeoutError("no job tells a trial")


def _kill_runner(service: RunningService, jobs: Jobs) -> float:
    """Kill the runner; return the seconds until each job that it ran is at work again."""
    waiting = {job.id: job.last_event for job in jobs.list(state="running").jobs}
    killed = time.monotonic()
    service.kill_runner(jobs)
    at = time.time()
    while waiting:
        if time.monotonic() > killed + _PATIENCE:
            raise TimeoutError(f"jobs do not go on: {sorted(waiting)}")
        for job, last in list(waiting.items()):
            for event in jobs.events(job, last, 1000):
                ended = event.kind == "state" and event.data.get("state") == "finished"
                # An event from before the kill may have been written late.
                if ended or (event.kind in _WORK and event.at > at):
                    waiting.pop(job, None)
        time.sleep(0.02)
    return time.monotonic() - killed


def _kill_http(service: RunningService, jobs: Jobs) -> float:
    """Kill the HTTP process and start it again; return the seconds until it is ready.

    Raises:
        AssertionError: the runner did not survive it.
    """
    runner = service.runner(jobs)
    killed = time.monotonic()
    service.kill()
    service.start()
    seconds = time.monotonic() - killed
    assert service.runner(jobs) == runner, "the runner does not depend on the HTTP process"
    return seconds
