"""The events of jobs: an append-only table, read by sequence number.

The number of the last event is kept in the record of the job, and it is raised in the transaction
that writes the events. So the numbers of a job have no gaps, and a reader that asks for the events
after a number never misses one. The final `state` event is the last one of a job.
"""

import json
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy
from sqlalchemy import Connection, Engine

from prunesearch.runtime.json_values import Json, JsonObject, to_json
from prunesearch.service.job import FINAL, JobState, StoredEvent
from prunesearch.service.job_state import state_of
from prunesearch.service.tables import JOB_EVENTS, JOB_RECORDS, workflow_table


@dataclass(frozen=True)
class NewEvent:
    """An event that is to be written.

    Attributes:
        kind: see `job.StoredEvent`.
        data: what happened.
        at: time in seconds since 1970.
    """

    kind: str
    data: JsonObject
    at: float


def serialized(value: object) -> str:
    """Return a value as JSON text. Numbers that are not finite become null."""
    return json.dumps(to_json(value), ensure_ascii=False, separators=(",", ":"))


class EventLog:
    """The events of all jobs in a database.

    Args:
        engine: database of the service.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._workflows = workflow_table(engine.dialect.name)

    def append(self, job: str, events: Sequence[NewEvent], batch: str, **changes: Json) -> bool:
        """Write events of a job, and change its record, in one transaction.

        Args:
            job: identifier of the job.
            events: events in order.
            batch: identifier of these events. If a connection is lost while they are written, the
                same call again does not write them twice.
            changes: new values of columns of `tables.JOB_RECORDS`.

        Returns:
            False if nothing was written: the events are there already, or the job has ended or was
            deleted.
        """
        records = JOB_RECORDS.c
        change = (
            sqlalchemy.update(JOB_RECORDS)
            .where(records.job == job, records.told.not_in(sorted(FINAL)))
            .where(sqlalchemy.or_(records.batch.is_(None), records.batch != batch))
            .values(last_event=records.last_event + len(events), batch=batch, **changes)
            .returning(records.last_event)
        )
        with self._engine.begin() as connection:
            # Raise the number of the last event. This locks the record until the commit.
            last = connection.execute(change).scalar()
            if last is None:
                return False
            self._insert(connection, job, last - len(events), events)
        return True

    def first(self, connection: Connection, job: str) -> None:
        """Write the first event of a job: it is queued."""
        self._insert(connection, job, 0, [NewEvent("state", {"state": "queued"}, time.time())])

    def _insert(
        self, connection: Connection, job: str, last: int, events: Sequence[NewEvent]
    ) -> None:
        # Number the events from the last one on.
        rows = []
        for seq, event in enumerate(events, last + 1):
            data = serialized(event.data)
            rows.append({"job": job, "seq": seq, "at": event.at, "kind": event.kind, "data": data})
        if rows:
            connection.execute(sqlalchemy.insert(JOB_EVENTS), rows)

    def tell_states(self, job: str | None = None) -> None:
        """Write a `state` event for each job whose workflow has another state than was told last.

        Args:
            job: identifier of the only job that is looked at. None: all jobs.
        """
        records, workflows = JOB_RECORDS.c, self._workflows.c
        query = (
            sqlalchemy.select(records.job, records.told, records.paused, workflows.status)
            .join(self._workflows, workflows.workflow_uuid == records.job)
            .where(records.told.not_in(sorted(FINAL)))
        )
        if job is not None:
            query = query.where(records.job == job)
        with self._engine.connect().execution_options(reading=True) as connection:
            rows = connection.execute(query).all()
        # Most jobs have the state that was told.
        for row in rows:
            state = state_of(row.status, row.paused)
            if state != row.told:
                self._tell_state(row.job, row.told, state)

    def _tell_state(self, job: str, told: str, state: JobState) -> None:
        """Write a `state` event, unless another process was faster."""
        records, at = JOB_RECORDS.c, time.time()
        change = (
            sqlalchemy.update(JOB_RECORDS)
            .where(records.job == job, records.told == told)
            .values(told=state, last_event=records.last_event + 1)
            .returning(records.last_event, records.error, records.started)
        )
        with self._engine.begin() as connection:
            row = connection.execute(change).first()
            if row is None:
                return
            # The event.
            data: JsonObject = {"state": state}
            if state == "failed":
                data["error"] = row.error
            self._insert(connection, job, row.last_event - 1, [NewEvent("state", data, at)])
            # The times of the job.
            times: dict[str, float] = {}
            if state == "running" and row.started is None:
                times["started"] = at
            if state in FINAL:
                times["ended"] = at
            if times:
                connection.execute(
                    sqlalchemy.update(JOB_RECORDS).where(records.job == job).values(**times)
                )

    def read(
        self, job: str, after: int = 0, limit: int = 1000, kinds: Collection[str] | None = None
    ) -> list[StoredEvent]:
        """Return the events of a job after a sequence number, in order.

        Args:
            job: identifier of the job.
            after: sequence number.
            limit: largest number of events that are returned.
            kinds: kinds of events. None: all.
        """
        events = JOB_EVENTS.c
        query = (
            sqlalchemy.select(events.seq, events.at, events.kind, events.data)
            .where(events.job == job, events.seq > after)
            .order_by(events.seq)
            .limit(limit)
        )
        if kinds is not None:
            query = query.where(events.kind.in_(list(kinds)))
        with self._engine.connect().execution_options(reading=True) as connection:
            rows = connection.execute(query).all()
        return [StoredEvent(row.seq, row.at, row.kind, json.loads(row.data)) for row in rows]

    def last(self, jobs: Iterable[str]) -> dict[str, int]:
        """Return the sequence number of the last event of each job. Unknown jobs are left out."""
        records = JOB_RECORDS.c
        query = sqlalchemy.select(records.job, records.last_event).where(
            records.job.in_(list(jobs))
        )
        with self._engine.connect().execution_options(reading=True) as connection:
            return {row.job: row.last_event for row in connection.execute(query)}
