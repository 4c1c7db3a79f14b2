"""The runners that work on a database, and whether each is alive."""

import platform
from dataclasses import dataclass

import sqlalchemy
from sqlalchemy import Engine

from prunesearch.service.database import now
from prunesearch.service.tables import RUNNERS
from prunesearch.studies.writer_process import is_dead

SILENCE = 30.0
"""Seconds without a sign of life after which a runner of another host counts as gone."""


@dataclass(frozen=True)
class RunnerInfo:
    """A runner.

    Attributes:
        id: identifier, which is unique for each process.
        host: name of its host.
        pid: process id.
        slots: number of jobs that it runs at once.
        running: number of jobs that it runs now.
        started: time of its start, in seconds since 1970.
        silent: seconds since its last sign of life.
        alive: False if its process is known to be gone, or if it was silent for `SILENCE` seconds.
    """

    id: str
    host: str
    pid: int
    slots: int
    running: int
    started: float
    silent: float
    alive: bool

    @property
    def here(self) -> bool:
        """Whether it runs on this host."""
        return self.host == platform.node()


@dataclass(frozen=True)
class RunnerStarted:
    """A runner that has just started.

    Attributes:
        id: its identifier.
        pid: process id.
        database: URL of its database, without secrets.
        slots: number of jobs that it runs at once.
    """

    id: str
    pid: int
    database: str
    slots: int


def list_runners(engine: Engine) -> list[RunnerInfo]:
    """Return the runners in a database, the latest first."""
    query = sqlalchemy.select(RUNNERS, now(engine).label("now")).order_by(RUNNERS.c.started.desc())
    with engine.connect().execution_options(reading=True) as connection:
        rows = connection.execute(query).all()
    found = []
    for row in rows:
        silent = max(0.0, row.now - row.seen)
        alive = silent < SILENCE and not is_dead(row.process)
        found.append(
            RunnerInfo(
                *(row.id, row.host, row.pid, row.slots, row.running),
                *(row.started, silent, alive),
            )
        )
    return found
