"""Jobs in memory, for tests of the HTTP interface that need no queue and no database of jobs."""

import secrets
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunesearch.config.recipe import Recipe
from prunesearch.errors import ConflictError, InputError, NotFoundError
from prunesearch.runtime.json_values import JsonObject
from prunesearch.service.allowed import AllowedRequest
from prunesearch.service.job import (
    FINAL,
    Job,
    JobPage,
    JobRequest,
    JobState,
    StageRecord,
    StoredEvent,
)
from prunesearch.service.jobs import Jobs
from prunesearch.service.runners import RunnerInfo

Events = list[StoredEvent]
Runners = list[RunnerInfo]


class MemoryJobs(Jobs):
    """Jobs that a test moves on by hand with `add_event` and `finish`.

    Attributes:
        reads: number of calls that a database would answer.
        running: whether the runner is alive.
        hanging: while this event is not set, every call waits.
        failing: error that every call raises, as if the database were away; or None.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._events: dict[str, list[StoredEvent]] = {}
        self._keys: dict[tuple[str, str], tuple[str, JobRequest]] = {}
        self._exports: dict[str, Path] = {}
        self._lock = threading.RLock()
        self.reads = 0
        self.hanging = threading.Event()
        self.hanging.set()
        self.running = True
        self.failing: Exception | None = None
        self.results: dict[str, JsonObject] = {}

    def _look(self) -> None:
        self.reads += 1
        self.hanging.wait()
        if self.failing is not None:
            raise self.failing

    def submit(
        self, request: JobRequest, user: str, idempotency_key: str | None = None
    ) -> tuple[Job, bool]:
        self._look()
        with self._lock:
            if request.recipe.get("model") == "../secret":
                raise InputError("`model` '../secret': give a folder of the service")
            known = self._keys.get((user, idempotency_key or ""))
            if known is not None and idempotency_key is not None:
                if known[1] != request:
                    raise ConflictError("the Idempotency-Key was used with another request")
                return self._jobs[known[0]], False
            job = Job(
                id="job-" + secrets.token_hex(8),
                study=request.study or "study",
                state="queued",
                command=request.command,
                recipe=request.recipe,
                trials=request.trials or 10,
                submitted_by=user,
                created=time.time(),
                stages=(StageRecord("search", "waiting"),),
            )
            self._jobs[job.id], self._events[job.id] = job, []
            if idempotency_key is not None:
                self._keys[user, idempotency_key] = (job.id, request)
            self._state(job.id, "queued")
            return self._jobs[job.id], True

    def list(
        self,
        state: JobState | None = None,
        study: str | None = None,
        submitted_by: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        self._look()
        found = []
        for job in reversed(self._jobs.values()):
            wanted = ((state, job.state), (study, job.study), (submitted_by, job.submitted_by))
            if all(asked in (None, value) for asked, value in wanted):
                found.append(job)
        start = int(cursor) if cursor and cursor.isdecimal() else 0
        page = found[start : start + limit]
        end = start + limit
        return JobPage(tuple(page), str(end) if end < len(found) else None)

    def get(self, job_id: str) -> Job:
        self._look()
        if job_id not in self._jobs:
            raise NotFoundError(f"there is no job {job_id!r}")
        return self._jobs[job_id]

    def pause(self, job_id: str) -> Job:
        return self._verb(job_id, "paused")

    def resume(self, job_id: str) -> Job:
        if self.get(job_id).state != "paused":
            raise ConflictError(f"job {job_id} is not paused")
        return self._state(job_id, "queued")

    def stop(self, job_id: str) -> Job:
        return self._verb(job_id, "finished")

    def cancel(self, job_id: str) -> Job:
        return self._verb(job_id, "cancelled")

    def delete(self, job_id: str, export: bool = False) -> None:
        if self.get(job_id).state not in {*FINAL, "paused"}:
            raise ConflictError(f"job {job_id} is not over")
        del self._jobs[job_id], self._events[job_id]

    def events(
        self,
        job_id: str,
        after: int = 0,
        limit: int = 1000,
        kinds: Collection[str] | None = None,
    ) -> Events:
        self._look()
        if job_id not in self._jobs:
            raise NotFoundError(f"there is no job {job_id!r}")
        found = []
        for event in self._events[job_id][after:]:
            if kinds is None or event.kind in kinds:
                found.append(event)
        return found[:limit]

    def last_events(self, job_ids: Iterable[str]) -> dict[str, int]:
        self._look()
        return {name: self._jobs[name].last_event for name in job_ids if name in self._jobs}

    def export_folder(self, job_id: str) -> Path:
        self.get(job_id)
        if job_id not in self._exports:
            raise NotFoundError(f"job {job_id} has no export")
        return self._exports[job_id]

    def result(self, job_id: str) -> JsonObject | None:
        self._look()
        return self.results.get(job_id)

    def check(self, request: JobRequest) -> AllowedRequest:
        self._look()
        recipe = Recipe.of(request.recipe)
        return AllowedRequest(recipe, recipe, request.study or "study", request.trials or 10)

    def runners(self) -> Runners:
        self._look()
        return [RunnerInfo("here", "host", 1, 1, 0, 0.0, 0.5, self.running)]

    def counts(self) -> dict[JobState, int]:
        self._look()
        counts: dict[JobState, int] = {}
        for job in self._jobs.values():
            counts[job.state] = counts.get(job.state, 0) + 1
        return counts

    def close(self) -> None:
        """Nothing is open."""

    def add_event(self, job_id: str, kind: str, **data: Any) -> None:  # noqa: ANN401
        """Add an event, as a runner would."""
        with self._lock:
            events = self._events[job_id]
            events.append(StoredEvent(len(events) + 1, time.time(), kind, data))
            self._jobs[job_id] = replace(self._jobs[job_id], last_event=len(events))

    def finish(self, job_id: str, state: JobState = "finished") -> None:
        """End a job, as a runner would."""
        self._state(job_id, state)

    def add_export(self, job_id: str, folder: Path) -> None:
        """Say where the export of a job is."""
        self._exports[job_id] = folder
        self._jobs[job_id] = replace(self._jobs[job_id], exported=True)

    def _verb(self, job_id: str, state: JobState) -> Job:
        job = self.get(job_id)
        if job.state == state:
            return job
        if job.state in FINAL:
            raise ConflictError(f"job {job_id} is over: it is {job.state}")
        return self._state(job_id, state)

    def _state(self, job_id: str, state: JobState) -> Job:
        with self._lock:
            self._jobs[job_id] = replace(self._jobs[job_id], state=state)
            self.add_event(job_id, "state", state=state)
            return self._jobs[job_id]
