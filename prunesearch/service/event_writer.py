"""Writes the events of one running job, in order, from a thread of its own.

The events of a moment are written together. While the database does not answer, they wait, and the
job goes on.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.service.event_log import EventLog, NewEvent, serialized
from prunesearch.service.job import JobProgress, StageRecord
from prunesearch.units import noun_for

INTERVAL = 0.3
"""Seconds for which events are collected. Of the progress of a step only the last one is kept."""
MOST_LINES = 100
"""Largest number of log lines of one `INTERVAL`. The others are counted."""
_RETRY = 0.5  # seconds between two attempts to reach the database
_DONE = ("finished", "skipped")


class EventWriter:
    """Writes the events of a running job, and keeps its stages and its progress.

    Args:
        log: the events of all jobs.
        job: identifier of the job.
        stages: stages of the job so far.
        progress: its latest progress.
    """

    def __init__(
        self,
        log: EventLog,
        job: str,
        stages: Sequence[StageRecord],
        progress: JobProgress | None,
    ) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.progress = progress or JobProgress()
        self._log, self._job = log, job
        self._pending: list[NewEvent] = []
        self._changes: dict[str, Json] = {}
        self._put = self._written = 0
        self._changed = threading.Condition()
        self._hurry, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"events-{job}", daemon=True)
        self._thread.start()

    def put(self, kind: str, data: JsonObject) -> None:
        """Add an event."""
        self._add([NewEvent(kind, data, time.time())], {})

    def change(self, **columns: Json) -> None:
        """Change columns of the job's record (`tables.JOB_RECORDS`)."""
        self._add([], columns)

    def _add(self, events: Sequence[NewEvent], changes: dict[str, Json]) -> None:
        with self._changed:
            self._pending.extend(events)
            self._changes.update(changes)
            self._put += 1
            self._changed.notify_all()

    def flush(self, seconds: float | None = None) -> None:
        """Wait until everything is written, or until the writer was abandoned.

        Args:
            seconds: longest time to wait. None: as long as the database is away.
        """
        with self._changed:
            target = self._put
            self._hurry.set()
            self._changed.wait_for(
                lambda: self._written >= target or self._abandoned.is_set(), seconds
            )
            self._hurry.clear()

    def abandon(self) -> None:
        """Give up what could not be written, because the process ends."""
        self._abandoned.set()
        self._hurry.set()
        with self._changed:
            self._changed.notify_all()

    def close(self, seconds: float | None = None) -> None:
        """Write everything, and end the thread. See `flush`."""
        self.flush(seconds)
        self.abandon()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._written < self._put or self._abandoned.is_set()
                )
            # Collect for a moment, unless somebody waits.
            self._hurry.wait(INTERVAL)
            # Take what has come, and write it.
            with self._changed:
                events, self._pending = self._pending, []
                changes, self._changes = self._changes, {}
                target = self._put
            self._write(events, changes)
            with self._changed:
                self._written = target
                self._changed.notify_all()
                if self._abandoned.is_set():
                    return

    def _write(self, events: Sequence[NewEvent], changes: dict[str, Json]) -> None:
        """Write one batch. Try again while the database does not answer."""
        kept = self._kept(events)
        if not kept and not changes:
            return
        batch = uuid.uuid4().hex
        columns: dict[str, Json] = {
            **changes,
            "stages": serialized(list(self.stages.values())),
            "progress": serialized(self.progress),
        }
        while True:
            try:
                self._log.append(self._job, kept, batch, **columns)
                return
            except SQLAlchemyError:
                if self._abandoned.wait(_RETRY):
                    return

    def _kept(self, events: Sequence[NewEvent]) -> list[NewEvent]:
        """Return the events that are written, and take the stages and the progress from them."""
        kept: list[NewEvent] = []
        places: dict[str, int] = {}
        lines = left_out = 0
        for event in events:
            # A stage that is known already is not told again.
            if event.kind == "stage" and not self._take_stage(event.data):
                continue
            # A flood of lines is cut.
            if event.kind == "log":
                lines += 1
                if lines > MOST_LINES:
                    left_out += 1
                    continue
            if event.kind in ("progress", "search", "heal"):
                self._take_progress(event)
            if event.kind in ("progress", "heal"):
                # A later progress of the same step replaces this one.
                step = f"{event.kind} {event.data.get('name')} {event.data.get('phase')}"
                if step in places:
                    kept[places[step]] = event
                    continue
                places[step] = len(kept)
            else:
                places.clear()
            kept.append(event)
        if left_out:
            lines_were = noun_for(left_out, "line was", "lines were")
            data: JsonObject = {"line": f"... {left_out} more {lines_were} left out"}
            kept.append(NewEvent("log", data, events[-1].at))
        return kept

    def _take_stage(self, data: JsonObject) -> bool:
        """Take a stage's state. Return False for what is known: a process that was started again
        runs through the finished stages once more.
        """
        name, state = str(data["name"]), data["state"]
        before = self.stages.get(name)
        if before is None or before.state in _DONE or before.state == state:
            return False
        values = {"name": name, "state": state, "seconds": data["seconds"]}
        self.stages[name] = StageRecord(**values)  # type: ignore[arg-type]
        return True

    def _take_progress(self, event: NewEvent) -> None:
        """Take the progress of a step."""
        data = event.data
        values: dict[str, Json] = {"done": data["done"], "total": data["total"]}
        if event.kind == "progress":
            values |= {"step": data["name"], "unit": data["unit"]}
        elif event.kind == "heal":
            unit = "sequences" if data["phase"] == "teacher" else "steps"
            values |= {"step": data["name"], "unit": unit}
        else:
            values |= {"step": "search", "unit": "trials"}
            for name in ("hits", "computed", "best_value", "best_dropped"):
                values[name] = data[name]
        self.progress = replace(self.progress, **values)  # type: ignore[arg-type]
