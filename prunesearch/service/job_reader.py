"""Reads jobs: a job's record together with the state of its workflow."""

import json
import re
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, Row, Select

from prunesearch.errors import InputError, NotFoundError
from prunesearch.runtime.json_values import JsonObject, as_float, as_object
from prunesearch.service.job import FINAL, Job, JobPage, JobProgress, JobState, StageRecord
from prunesearch.service.job_state import in_state, state_of
from prunesearch.service.tables import JOB_RECORDS, workflow_table

_CURSOR = re.compile(r"([0-9]{1,12}(?:[.][0-9]{1,9})?)_(job-[0-9a-f]{16})")
MOST_JOBS = 500
"""Largest number of jobs in a page."""


class JobReader:
    """Reads jobs from a database.

    Args:
        engine: database of the service.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._workflows = workflow_table(engine.dialect.name)

    def job(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            NotFoundError: the job does not exist.
        """
        rows = self._rows(self._query().where(JOB_RECORDS.c.job == job_id))
        if not rows:
            raise NotFoundError(f"there is no job {job_id!r}")
        return _job_of(rows[0])

    def page(
        self,
        state: JobState | None,
        study: str | None,
        submitted_by: str | None,
        limit: int,
        cursor: str | None,
    ) -> JobPage:
        """Return a page of jobs, the newest first. See `jobs.Jobs.list`."""
        records = JOB_RECORDS.c
        limit = max(1, min(limit, MOST_JOBS))
        # One more than asked for tells whether there is a next page.
        query = self._query().order_by(records.created.desc(), records.job.desc()).limit(limit + 1)
        # Conditions.
        if state is not None:
            query = query.where(in_state(state, self._workflows))
        if study is not None:
            query = query.where(records.study == study)
        if submitted_by is not None:
            query = query.where(records.submitted_by == submitted_by)
        # The cursor names the last job of the page before.
        if cursor is not None:
            match = _CURSOR.fullmatch(cursor)
            if match is None:
                raise InputError(f"cursor {cursor[:40]!r} is not one that a page gave")
            before = sqlalchemy.tuple_(records.created, records.job)
            query = query.where(before < sqlalchemy.tuple_(float(match[1]), match[2]))
        jobs = [_job_of(row) for row in self._rows(query)]
        if len(jobs) <= limit:
            return JobPage(tuple(jobs))
        last = jobs[limit - 1]
        return JobPage(tuple(jobs[:limit]), f"{last.created!r}_{last.id}")

    def counts(self) -> dict[JobState, int]:
        """Return the number of jobs in each state."""
        workflows, number = self._workflows.c, sqlalchemy.func.count()
        query = (
            sqlalchemy.select(workflows.status, JOB_RECORDS.c.paused, number.label("jobs"))
            .join(self._workflows, workflows.workflow_uuid == JOB_RECORDS.c.job)
            .group_by(workflows.status, JOB_RECORDS.c.paused)
        )
        states: tuple[JobState, ...] = ("queued", "running", "paused")
        found: dict[JobState, int] = dict.fromkeys((*states, *sorted(FINAL)), 0)
        for row in self._rows(query):
            found[state_of(row.status, row.paused)] += row.jobs
        return found

    def request(self, job_id: str) -> JsonObject | None:
        """Return the request of a job, or None if the job does not exist."""
        query = sqlalchemy.select(JOB_RECORDS.c.request).where(JOB_RECORDS.c.job == job_id)
        rows = self._rows(query)
        return as_object(json.loads(rows[0].request), "request") if rows else None

    def stop_asked(self, job_id: str) -> bool:
        """Return whether somebody wants the search of a job to end early."""
        query = sqlalchemy.select(JOB_RECORDS.c.stop_asked).where(JOB_RECORDS.c.job == job_id)
        return any(row.stop_asked for row in self._rows(query))

    def _query(self) -> Select[Any]:
        workflows = self._workflows
        return sqlalchemy.select(
            JOB_RECORDS,
            workflows.c.status,
            workflows.c.started_at_epoch_ms,
            workflows.c.completed_at,
        ).join(workflows, workflows.c.workflow_uuid == JOB_RECORDS.c.job)

    def _rows(self, query: Select[Any]) -> list[Row[Any]]:
        with self._engine.connect().execution_options(reading=True) as connection:
            return list(connection.execute(query))


def _job_of(row: Row[Any]) -> Job:
    """Return the job of a row."""
    state = state_of(row.status, row.paused)
    request = as_object(json.loads(row.request), "request")
    confirm = request.get("confirm")
    # The times and the error are told with the state, which takes a moment.
    started, ended, error = row.started, None, None
    if started is None and state == "running" and row.started_at_epoch_ms is not None:
        started = row.started_at_epoch_ms / 1000
    if state in FINAL:
        ended = row.ended
        if ended is None and row.completed_at is not None:
            ended = max(row.created, row.completed_at / 1000)
    if state == "failed":
        error = row.error or "the job failed without a message: see the log of the runner"
    progress = None
    if row.progress is not None:
        progress = JobProgress(**json.loads(row.progress))
    return Job(
        id=row.job,
        study=row.study,
        state=state,
        command=row.command,
        recipe=as_object(request["recipe"], "recipe"),
        trials=row.trials,
        submitted_by=row.submitted_by,
        created=row.created,
        started=started,
        ended=ended,
        stages=stages_in(row.stages),
        progress=progress,
        error=error,
        exported=row.exported,
        last_event=row.last_event,
        confirm=None if confirm is None else as_float(confirm, "confirm"),
    )


def stages_in(text: str) -> tuple[StageRecord, ...]:
    """Return the stages in a record's JSON text."""
    return tuple(StageRecord(**stage) for stage in json.loads(text))
