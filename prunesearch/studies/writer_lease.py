"""The lease on a study in a PostgreSQL database.

Connections may break, and a pool such as PgBouncer may give every transaction another session.
Locks of a session do not survive either of these. So the writer holds a row that it renews, and
that runs out by the database's clock. The row's token rises whenever the lease passes on. Every
transaction that writes reads the row, and locks it until the transaction ends. So a process that
has lost the lease cannot write, and the lease cannot pass on during a transaction. If the writer
was a process of this host that no longer exists, the lease passes on at once.
"""

import contextlib
import logging
import os
import platform
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache.tables import PREFIX
from prunesearch.errors import RunError, one_line
from prunesearch.runtime.masking import masked_url
from prunesearch.studies.reconnection import Reconnection
from prunesearch.studies.writer_process import Writer, busy, is_dead, this_process

TTL = 30.0
"""Lifetime of a writer's lease in seconds. The writer renews it three times in that span."""
_SCHEMA_LOCK = 0x70727377  # PostgreSQL's advisory lock while the table is made: "prsw"
_log = logging.getLogger(__name__)
_METADATA = MetaData()
WRITERS = Table(
    f"{PREFIX}writers",
    _METADATA,
    Column("study", String(512), primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires", Float, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("host", String(255), nullable=False),
    Column("process", String(255), nullable=False),
    Column("since", Float, nullable=False),
)
Fence = Callable[[Connection], None]
"""A check that is called in a transaction before it is committed.

It raises if the study has another writer by now.
"""


def _now() -> sqlalchemy.ColumnElement[float]:
    return sqlalchemy.cast(sqlalchemy.extract("epoch", sqlalchemy.func.clock_timestamp()), Float)


@contextmanager
def held_lease(engine: Engine, name: str) -> Iterator[Fence]:
    """Hold the lease on a study until the block ends, and renew it in a thread.

    Yields:
        The check that every transaction must call before it commits.

    Raises:
        StudyBusyError: another process holds the lease.
    """
    lease = _Lease(engine, name)
    Reconnection(masked_url(str(engine.url))).repeat(lease.acquire)
    ended = threading.Event()
    keeper = threading.Thread(
        target=lease.keep, args=(ended,), name="prunesearch-writer", daemon=True
    )
    keeper.start()
    try:
        yield lease.check
    finally:
        ended.set()
        keeper.join(TTL)
        lease.release()


class _Lease:
    """The lease on a study: its row in the table of writers."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._owner = uuid.uuid4().hex
        self._token = 0

    def acquire(self) -> None:
        """Acquire the lease.

        Raises:
            StudyBusyError: another process holds the lease.
        """
        self._make_table()
        row = None
        with self._engine.begin() as connection:
            # 1. Take the lease if it is free, or has run out. Or this process has taken it in an
            # attempt whose answer was lost.
            own = WRITERS.c.owner == self._owner
            token = self._acquire(connection, sqlalchemy.or_(WRITERS.c.expires <= _now(), own))
            if token is None:
                row = _row(connection, self._name)
            # 2. Take it from a process of this host that is dead, unless another process was
            # faster.
            if row is not None and is_dead(row.process):
                same = sqlalchemy.and_(WRITERS.c.owner == row.owner, WRITERS.c.token == row.token)
                token = self._acquire(connection, same)
        # 3. Otherwise say which process holds it, and for how long.
        if token is None:
            writer = _writer_of_row(row)
            left = max(1.0, TTL if row is None else row.left)
            raise busy(
                self._name, writer, f"; should that be dead, the study is free in {left:.0f} s"
            )
        self._token = token

    def _acquire(self, connection: Connection, free: sqlalchemy.ColumnElement[bool]) -> int | None:
        """Take the row if it does not exist, or if `free` is true of it.

        Returns:
            The token of the lease, or None if the row was not taken.
        """
        owned: dict[str, str | int | float | sqlalchemy.ColumnElement[float]] = {
            "owner": self._owner,
            "expires": _now() + TTL,
            "pid": os.getpid(),
            "host": platform.node()[:255],
            "process": this_process(),
            "since": _now(),
        }
        insert = postgresql.insert(WRITERS).values(study=self._name, token=1, **owned)
        claimed = insert.on_conflict_do_update(
            index_elements=[WRITERS.c.study],
            set_={**owned, "token": WRITERS.c.token + 1},
            where=free,
        )
        token: int | None = connection.execute(claimed.returning(WRITERS.c.token)).scalar()
        return token

    def _make_table(self) -> None:
        if sqlalchemy.inspect(self._engine).has_table(WRITERS.name):
            return
        with self._engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")
            _METADATA.create_all(connection)

    @property
    def _own_row(self) -> sqlalchemy.ColumnElement[bool]:
        return sqlalchemy.and_(
            WRITERS.c.study == self._name,
            WRITERS.c.owner == self._owner,
            WRITERS.c.token == self._token,
        )

    def keep(self, ended: threading.Event) -> None:
        """Renew the lease until `ended` is set."""
        warned = False
        while not ended.wait(TTL / 3):
            try:
                with self._engine.begin() as connection:
                    connection.execute(
                        WRITERS.update().where(self._own_row).values(expires=_now() + TTL)
                    )
                warned = False
            # This thread must not end. `check` says what has been lost.
            except Exception as error:  # noqa: BLE001
                if not warned:
                    warned = True
                    _log.warning(
                        "study %r could not be held on to, which is tried again: %s",
                        self._name,
                        one_line(error),
                    )

    def check(self, connection: Connection) -> None:
        """Check that the lease is held, and keep it until the transaction ends.

        A lease that has run out, but has no new owner, is still held.

        Raises:
            RunError: another process has taken over the study.
        """
        # The query locks the row, so that the lease cannot pass on before the transaction ends.
        found = connection.execute(
            sqlalchemy.select(WRITERS.c.token).where(self._own_row).with_for_update(read=True)
        )
        if found.first() is None:
            writer = _writer_of_row(_row(connection, self._name))
            raise RunError(
                f"study {self._name!r} was taken over by {writer}, since this one was not heard of "
                f"for {TTL:.0f} s; "
                "its finished trials are kept: run it again when the other is done"
            )

    def release(self) -> None:
        """Release the lease. The row stays, so that its token goes on rising."""
        # If the database does not work, the lease runs out by itself.
        with contextlib.suppress(SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(WRITERS.update().where(self._own_row).values(expires=0.0))


def lease_holder(engine: Engine, name: str) -> Writer | None:
    """Return the process that holds the lease on a study, or None."""
    if not sqlalchemy.inspect(engine).has_table(WRITERS.name):
        return None
    with engine.connect() as connection:
        row = _row(connection, name)
    # A lease that has run out, and one of a dead process, do not count.
    if row is None or row.left <= 0 or is_dead(row.process):
        return None
    return _writer_of_row(row)


def _row(connection: Connection, name: str) -> Any:  # noqa: ANN401 (a row)
    """Return a study's row, or None.

    Its column ``left`` is the rest of the lease's lifetime in seconds.
    """
    columns = sqlalchemy.select(WRITERS, (WRITERS.c.expires - _now()).label("left"))
    return connection.execute(columns.where(WRITERS.c.study == name)).first()


def _writer_of_row(row: Any) -> Writer:  # noqa: ANN401 (a row or None)
    if row is None:
        return Writer()
    return Writer(row.pid, row.host, row.since)
