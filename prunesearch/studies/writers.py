"""Locks that allow one process to write a study at a time, and that show which process it is.

SQLite serves one host. There the writer holds two locks of the operating system, which end with its
process. The first is on a file next to the database, in which the writer stores its process id. The
second is on a byte far after the end of the database itself. It is the same lock under every name
of the database (links, ``..``), and it cannot be deleted.

PostgreSQL serves many hosts. Connections may break, and a pool such as PgBouncer may give every
transaction another session. Locks of a session do not survive either of these. So the writer holds
a lease: a row that it renews, and that runs out by the database's clock. The row's token rises
whenever the lease passes on. Every transaction that writes reads the row, and locks it until the
transaction ends. So a process that has lost the lease cannot write, and the lease cannot pass on
during a transaction. If the writer was a process of this host that no longer exists, the lease
passes on at once.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
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

from prunesearch.cache.tables import PREFIX, connect
from prunesearch.config.names import slug
from prunesearch.errors import (
    RunError,
    StorageError,
    StudyBusyError,
    one_line,
)

TTL = 30.0
"""Lifetime of a writer's lease in seconds. The writer renews it three times in that span."""
_PATIENCE = 0.5  # seconds to wait for a lock: a process that looks for the writer holds it briefly
_SCHEMA_LOCK = 0x70727377  # PostgreSQL's advisory lock while the table is made: "prsw"
_FIRST_BYTE = 2**40  # first byte of the locks on a database file; SQLite's own locks are near 2**30
_FLOCK = "hhqqi4x"
"""C's struct flock on 64-bit Linux: type, whence, start, length, process (0: open file's)."""
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


@dataclass(frozen=True)
class Writer:
    """The process that writes a study. A field is None if it is unknown.

    Attributes:
        pid: process id.
        host: name of the host.
        since: time at which the process locked the study, in seconds since 1970.
    """

    pid: int | None = None
    host: str | None = None
    since: float | None = None

    def __str__(self) -> str:
        if self.pid is None or self.since is None:
            return "another process"
        began = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"another process (pid {self.pid} on {self.host}, since {began})"


Fence = Callable[[Connection], None]
"""A check that is called in a transaction before it is committed.

It raises if the study has another writer by now.
"""


@contextmanager
def held(engine: Engine, name: str) -> Iterator[Fence | None]:
    """Lock a study for writing until the block or the process ends.

    Yields:
        The check that every transaction must call before it commits, or None if the lock cannot be
        lost.

    Raises:
        StudyBusyError: another process writes the study.
        StorageError: the lock file cannot be written.
    """
    if engine.dialect.name == "sqlite":
        with _held_file(_file_of(engine), name):
            yield None
    else:
        with _held_lease(engine, name) as fence:
            yield fence


def writer_in(engine: Engine, name: str) -> Writer | None:
    """Return the writer of a study, or None if no process writes it."""
    if engine.dialect.name == "sqlite":
        file = _file_of(engine)
        if file is None:
            return None
        return _writer_of_file(file, name)
    if not sqlalchemy.inspect(engine).has_table(WRITERS.name):
        return None
    with engine.connect() as connection:
        row = _row(connection, name)
    # A lease that has run out, and one of a dead process, do not count.
    if row is None or row.left <= 0 or _is_dead(row.process):
        return None
    return _writer_of_row(row)


def writer_at(url: str, name: str) -> Writer | None:
    """Return the writer of a study in the database of a URL, or None."""
    engine = connect(url)
    try:
        return writer_in(engine, name)
    finally:
        engine.dispose()


def busy(name: str, writer: Writer, more: str = "") -> StudyBusyError:
    """Return the error for a study that another process writes."""
    return StudyBusyError(
        f"study {name!r} is being searched by {writer}{more}: wait for it, or give `study` NAME"
    )


# The locks on a SQLite file


def _file_of(engine: Engine) -> Path | None:
    if engine.url.database in (None, "", ":memory:"):
        return None
    return Path(str(engine.url.database))


@contextmanager
def _held_file(file: Path | None, name: str) -> Iterator[None]:
    # Other processes cannot reach a database in memory.
    if file is None:
        yield
        return
    path = _lock_file(file, name)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise StorageError(
            f"cannot write {str(path)!r} ({error.strerror}), which locks study {name!r}"
        ) from None
    try:
        # 1. Lock the file next to the database.
        end = time.monotonic() + _PATIENCE
        while not _locked(lock, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise busy(name, _read_writer(path))
            time.sleep(0.02)
        # 2. Lock the byte of the database.
        with _held_byte(file, name) as is_held:
            if not is_held:
                raise busy(name, Writer())
            # 3. Store this process's id. If the disk is full, other processes find the study locked
            # by an unknown process.
            me = {"pid": os.getpid(), "host": platform.node(), "since": round(time.time(), 3)}
            with contextlib.suppress(OSError):
                os.pwrite(lock, json.dumps(me).encode(), 0)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def _writer_of_file(file: Path, name: str) -> Writer | None:
    path = _lock_file(file, name)
    # 1. The lock on the byte decides, if it can be read.
    with _handle_of(file) as handle:
        if handle is not None:
            if _is_byte_locked(handle, name):
                return _read_writer(path)
            return None
    # 2. Otherwise try the lock on the file next to the database.
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None  # the study has had no writer yet
    try:
        if _locked(lock, fcntl.LOCK_SH):
            return None
        return _read_writer(path)
    finally:
        os.close(lock)


def _lock_file(file: Path, name: str) -> Path:
    return Path(f"{file.resolve()}.{slug(name)}-{_digest(name).hex()[:8]}.lock")


def _digest(name: str) -> bytes:
    return hashlib.sha256(f"prunesearch:{name}".encode()).digest()


def _locked(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_writer(path: Path) -> Writer:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Writer(int(fields["pid"]), str(fields["host"])[:255], float(fields["since"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return Writer()


_handles: dict[tuple[int, int], list[int]] = {}
"""Open handles of database files that are not in use, by device and inode.

They are never closed: closing any handle of a file drops the locks that SQLite holds on it in this
process.
"""
_handles_lock = threading.Lock()
# Otherwise a child process would hold locks through the handles of its parent.
os.register_at_fork(after_in_child=_handles.clear)


@contextmanager
def _handle_of(file: Path) -> Iterator[int | None]:
    """Yield a handle of a database file on which bytes can be locked.

    Yield None if the system or the file does not allow this. Then the lock file alone is used.
    """
    free: list[int] = []
    handle = None
    if hasattr(fcntl, "F_OFD_SETLK"):  # Linux
        # The file may be missing, or not writable.
        with _handles_lock, contextlib.suppress(OSError):
            info = file.stat()
            free = _handles.setdefault((info.st_dev, info.st_ino), [])
            handle = free.pop() if free else os.open(file, os.O_RDWR)
    try:
        yield handle
    finally:
        if handle is not None:
            with _handles_lock:
                free.append(handle)


@contextmanager
def _held_byte(file: Path, name: str) -> Iterator[bool]:
    """Lock a byte of the database for a study.

    Yields:
        False if another process, or another thread of this process, holds the lock.
    """
    with _handle_of(file) as handle:
        if handle is None:
            yield True
            return
        try:
            yield _lock_byte(handle, fcntl.F_WRLCK, name)
        finally:
            _lock_byte(handle, fcntl.F_UNLCK, name)


def _lock_byte(handle: int, kind: int, name: str) -> bool:
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _byte_lock(kind, name))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        # The file system has no such locks, so the lock file alone decides.
        return True
    return True


def _is_byte_locked(handle: int, name: str) -> bool:
    found: bytes = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _byte_lock(fcntl.F_WRLCK, name))
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


def _byte_lock(kind: int, name: str) -> bytes:
    start = _FIRST_BYTE + int.from_bytes(_digest(name)[:8]) % 2**61
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, 1, 0)


# The lease in a PostgreSQL database


def _now() -> sqlalchemy.ColumnElement[float]:
    return sqlalchemy.cast(sqlalchemy.extract("epoch", sqlalchemy.func.clock_timestamp()), Float)


@contextmanager
def _held_lease(engine: Engine, name: str) -> Iterator[Fence]:
    lease = _Lease(engine, name)
    lease.acquire()
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
            # 1. Take the lease if it is free, or has run out.
            token = self._acquire(connection, WRITERS.c.expires <= _now())
            if token is None:
                row = _row(connection, self._name)
            # 2. Take it from a process of this host that is dead, unless another process was
            # faster.
            if row is not None and _is_dead(row.process):
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
            "process": _this_process(),
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
        complaint = ""
        while not ended.wait(TTL / 3):
            try:
                with self._engine.begin() as connection:
                    connection.execute(
                        WRITERS.update().where(self._own_row).values(expires=_now() + TTL)
                    )
            # This thread must not end. `check` says what has been lost.
            except Exception as error:  # noqa: BLE001
                if str(error) != complaint:
                    complaint = str(error)
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


def _this_process() -> str:
    """Return an identifier of this process that is unique among all hosts and across restarts.

    It is empty if the system does not provide one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return (
            f"{boot} {Path('/proc/self/ns/pid').readlink()} {os.getpid()} {_started(os.getpid())}"
        )
    except OSError:
        return ""


def _is_dead(process: str) -> bool:
    """Return whether a process is known to be gone.

    This is known only of processes that ran on this host, in this process namespace.
    """
    owned, words = _this_process().split(" "), process.split(" ")
    if len(words) != 4 or len(owned) != 4 or words[:2] != owned[:2] or not words[2].isdecimal():
        return False
    return _started(int(words[2])) != words[3]


def _started(pid: int) -> str:
    """Return the start of a process in ticks since the host started; empty if it is gone."""
    # The name of the process, in parentheses, may contain blanks.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie counts as gone.
    if fields[0] in "ZX":
        return ""
    return fields[19]
