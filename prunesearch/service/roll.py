"""The roll of runners: each signs it every few seconds, and sees who does so no longer."""

import os
import platform
import time
from collections.abc import Collection

import sqlalchemy
from sqlalchemy import Engine

from prunesearch.service.database import now
from prunesearch.service.runners import SILENCE
from prunesearch.service.slots import Slots
from prunesearch.service.tables import RUNNERS
from prunesearch.studies.writer_process import is_dead, this_process


class Roll:
    """The roll of runners, as one of them uses it.

    Args:
        engine: database of the service.
        runner: identifier of the runner.
        slots: slots of the runner.
    """

    def __init__(self, engine: Engine, runner: str, slots: Slots) -> None:
        self._engine, self._runner, self._slots = engine, runner, slots
        self._process, self._host = this_process(), platform.node()
        # The last sign of life of each other runner, and when it was seen first, by this host's
        # clock. So a runner is not taken for gone because the database was away for a while.
        self._signs: dict[str, tuple[float, float]] = {}

    def sign(self) -> None:
        """Give a sign of life."""
        change = (
            sqlalchemy.update(RUNNERS)
            .where(RUNNERS.c.id == self._runner)
            .values(seen=now(self._engine), running=self._slots.used)
        )
        with self._engine.begin() as connection:
            if connection.execute(change).rowcount:
                return
            connection.execute(
                sqlalchemy.insert(RUNNERS).values(
                    id=self._runner,
                    host=self._host,
                    pid=os.getpid(),
                    process=self._process,
                    slots=self._slots.count,
                    running=self._slots.used,
                    started=now(self._engine),
                    seen=now(self._engine),
                )
            )

    def leave(self) -> None:
        """Take the runner off the roll."""
        self.strike([self._runner])

    def strike(self, runners: Collection[str]) -> None:
        """Take runners off the roll."""
        with self._engine.begin() as connection:
            connection.execute(sqlalchemy.delete(RUNNERS).where(RUNNERS.c.id.in_(list(runners))))

    def forget_silence(self) -> None:
        """Start to wait anew for signs of life, because the database was away."""
        self._signs.clear()

    def gone(self, runners: Collection[str]) -> set[str]:
        """Return the runners that are gone.

        A runner of this host is gone if its process does not exist. A runner of another host is
        gone if it gave no sign of life for `runners.SILENCE` seconds. One that is not on the roll
        is gone, too.
        """
        if not runners:
            return set()
        query = sqlalchemy.select(RUNNERS.c.id, RUNNERS.c.process, RUNNERS.c.seen)
        query = query.where(RUNNERS.c.id.in_(list(runners)))
        with self._engine.connect().execution_options(reading=True) as connection:
            rows = {row.id: row for row in connection.execute(query)}
        # Judge each of them.
        found = set[str]()
        for runner in runners:
            row = rows.get(runner)
            if row is None or is_dead(row.process) or self._is_silent(runner, row.seen):
                found.add(runner)
                self._signs.pop(runner, None)
        return found

    def _is_silent(self, runner: str, seen: float) -> bool:
        """Return whether a runner gave no sign of life for too long."""
        last = self._signs.get(runner)
        if last is None or last[0] != seen:
            self._signs[runner] = (seen, time.monotonic())
            return False
        return time.monotonic() - last[1] > SILENCE
