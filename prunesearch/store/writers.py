"""One writer per study: who may ask and tell, and who is doing so.

SQLite serves one host. There the writer holds two locks of the operating system, which end with its process: one on a
file beside the database, in which it writes who it is, and one on a byte far behind the end of the database itself. The
second is the same lock under every name that the database has (links, ``..``) and cannot be deleted.

PostgreSQL serves many hosts, over connections that may break, and perhaps through a pool (PgBouncer) that gives every
transaction another session. Locks of a session hold through neither. So the writer holds a lease: a row that it renews,
that runs out by the database's clock, and whose token rises whenever it passes on. Every transaction that writes reads
the row, and locks it until its end: a process that has lost the lease cannot write, and none gets it during a
transaction. A lease passes on at once if its writer is known to be dead: a process of this host that is gone.
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
from sqlalchemy import BigInteger, Column, Connection, Engine, Float, Integer, MetaData, String, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.errors import RunError, StorageError, StudyBusyError, one_line
from prunesearch.recipe import slug
from prunesearch.store.tables import PREFIX, connect

TTL = 30.0
"""Seconds until the study of a writer that is not heard of may pass on; it is renewed three times in that span."""
_PATIENCE = 0.5  # seconds: whoever looks who the writer is holds its lock for a moment
_SCHEMA_LOCK = 0x70727377  # PostgreSQL's advisory lock while the table is made: "prsw"
_FIRST_BYTE = 2**40  # of the locks on a database file: SQLite's own lie about 2**30, the rest is our studies'
_FLOCK = "hhqqi4x"
"""C's struct flock on 64-bit Linux: type, whence, start, length, process (0 for locks of an open file)."""
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
    """The process that writes a study; a field is None where the lock cannot tell.

    Attributes:
        since: seconds since 1970.
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
"""Called in a transaction before it is committed; raises if the study has another writer by now."""


@contextmanager
def held(engine: Engine, name: str) -> Iterator[Fence | None]:
    """Hold a study for writing until the block or the process ends.

    Yields:
        What every transaction that writes must call; None where the lock cannot be lost.

    Raises:
        StudyBusyError: another process holds it.
        StorageError: the lock file cannot be written.
    """
    if engine.dialect.name == "sqlite":
        with _held_file(_file_of(engine), name):
            yield None
    else:
        with _held_lease(engine, name) as fence:
            yield fence


def writer_in(engine: Engine, name: str) -> Writer | None:
    """The writer of a study; None while nobody writes it."""
    if engine.dialect.name == "sqlite":
        file = _file_of(engine)
        return None if file is None else _writer_of_file(file, name)
    if not sqlalchemy.inspect(engine).has_table(WRITERS.name):
        return None
    with engine.connect() as connection:
        row = _row(connection, name)
    return None if row is None or row.left <= 0 or _is_dead(row.process) else Writer(row.pid, row.host, row.since)


def writer_at(url: str, name: str) -> Writer | None:
    """The writer of a study in the database of a URL."""
    engine = connect(url)
    try:
        return writer_in(engine, name)
    finally:
        engine.dispose()


def busy(name: str, writer: Writer, more: str = "") -> StudyBusyError:
    """The refusal of a study that somebody writes."""
    return StudyBusyError(f"study {name!r} is being searched by {writer}{more}: wait for it, or give --study NAME")


# A file's locks


def _file_of(engine: Engine) -> Path | None:
    return None if engine.url.database in (None, "", ":memory:") else Path(str(engine.url.database))


@contextmanager
def _held_file(file: Path | None, name: str) -> Iterator[None]:
    if file is None:  # in memory: nobody else can reach it
        yield
        return
    path = _lock_file(file, name)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r} ({error.strerror}), which locks study {name!r}") from None
    try:
        end = time.monotonic() + _PATIENCE
        while not _locked(lock, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise busy(name, _read_writer(path))
            time.sleep(0.02)
        with _held_byte(file, name) as is_held:
            if not is_held:
                raise busy(name, Writer())
            me = {"pid": os.getpid(), "host": platform.node(), "since": round(time.time(), 3)}
            with contextlib.suppress(OSError):  # a full disk: others learn that the study is held, but not by whom
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
    with _handle_of(file) as handle:
        if handle is not None:
            return _read_writer(path) if _is_byte_locked(handle, name) else None
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None  # there has been no writer yet
    try:
        return None if _locked(lock, fcntl.LOCK_SH) else _read_writer(path)
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
"""Open handles of database files, free to use, by device and inode.

They are never closed: closing any handle of a file drops the locks that SQLite holds on it in this process.
"""
_handles_lock = threading.Lock()
os.register_at_fork(after_in_child=_handles.clear)  # or a child would hold locks by its parent's handles


@contextmanager
def _handle_of(file: Path) -> Iterator[int | None]:
    """A handle of a database file to lock bytes by; None where that does not work, so that the lock file must do."""
    free: list[int] = []
    handle = None
    if hasattr(fcntl, "F_OFD_SETLK"):  # Linux
        with _handles_lock, contextlib.suppress(OSError):  # not there, or not ours to write
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
    """Lock a byte of the database for a study; False if another process, or another holder of this one, has it."""
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
    except OSError:  # a file system without such locks: the lock file must do
        return True
    return True


def _is_byte_locked(handle: int, name: str) -> bool:
    found: bytes = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _byte_lock(fcntl.F_WRLCK, name))
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


def _byte_lock(kind: int, name: str) -> bytes:
    start = _FIRST_BYTE + int.from_bytes(_digest(name)[:8]) % 2**61
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, 1, 0)


# A database's lease


def _now() -> sqlalchemy.ColumnElement[float]:
    return sqlalchemy.cast(sqlalchemy.extract("epoch", sqlalchemy.func.clock_timestamp()), Float)


@contextmanager
def _held_lease(engine: Engine, name: str) -> Iterator[Fence]:
    lease = _Lease(engine, name)
    lease.acquire()
    ended = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(ended,), name="prunesearch-writer", daemon=True)
    keeper.start()
    try:
        yield lease.check
    finally:
        ended.set()
        keeper.join(TTL)
        lease.release()


class _Lease:
    """A study's row in the table of writers."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._owner = uuid.uuid4().hex
        self._token = 0

    def acquire(self) -> None:
        """Get the lease.

        Raises:
            StudyBusyError: another process has it.
        """
        self._make_table()
        with self._engine.begin() as connection:
            token = self._claim(connection, WRITERS.c.expires <= _now())
            row = None if token is not None else _row(connection, self._name)
            if row is not None and _is_dead(row.process):
                same = sqlalchemy.and_(WRITERS.c.owner == row.owner, WRITERS.c.token == row.token)
                token = self._claim(connection, same)
        if token is None:
            writer = Writer() if row is None else Writer(row.pid, row.host, row.since)
            left = max(1.0, TTL if row is None else row.left)
            raise busy(self._name, writer, f"; should that be dead, the study is free in {left:.0f} s")
        self._token = token

    def _claim(self, connection: Connection, free: sqlalchemy.ColumnElement[bool]) -> int | None:
        """Take the row if it is not there, or free; the token, or None."""
        mine: dict[str, Any] = {
            "owner": self._owner,
            "expires": _now() + TTL,
            "pid": os.getpid(),
            "host": platform.node()[:255],
            "process": _this_process(),
            "since": _now(),
        }
        insert = postgresql.insert(WRITERS).values(study=self._name, token=1, **mine)
        claimed = insert.on_conflict_do_update(
            index_elements=[WRITERS.c.study], set_={**mine, "token": WRITERS.c.token + 1}, where=free
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
    def _mine(self) -> sqlalchemy.ColumnElement[bool]:
        return sqlalchemy.and_(
            WRITERS.c.study == self._name, WRITERS.c.owner == self._owner, WRITERS.c.token == self._token
        )

    def keep(self, ended: threading.Event) -> None:
        """Renew the lease until that is no longer wanted."""
        complaint = ""
        while not ended.wait(TTL / 3):
            try:
                with self._engine.begin() as connection:
                    connection.execute(WRITERS.update().where(self._mine).values(expires=_now() + TTL))
            except Exception as error:  # noqa: BLE001 (this thread must not end; what has been lost, `check` says)
                if str(error) != complaint:
                    complaint = str(error)
                    _log.warning(
                        "study %r could not be held on to, which is tried again: %s", self._name, one_line(error)
                    )

    def check(self, connection: Connection) -> None:
        """See that the lease is held, and hold it until the transaction ends. One that has run out, and has no new
        owner, is still held.

        Raises:
            RunError: another process has taken over.
        """
        found = connection.execute(sqlalchemy.select(WRITERS.c.token).where(self._mine).with_for_update(read=True))
        if found.first() is None:
            row = _row(connection, self._name)
            writer = Writer() if row is None else Writer(row.pid, row.host, row.since)
            raise RunError(
                f"study {self._name!r} was taken over by {writer}, since this one was not heard of for {TTL:.0f} s; "
                "its finished trials are kept: run it again when the other is done"
            )

    def release(self) -> None:
        """Let others have the study. The row stays, so that its token goes on rising."""
        with contextlib.suppress(SQLAlchemyError), self._engine.begin() as connection:  # it runs out by itself
            connection.execute(WRITERS.update().where(self._mine).values(expires=0.0))


def _row(connection: Connection, name: str) -> Any:  # noqa: ANN401 (a row)
    """A study's row, and how many seconds its lease will live."""
    columns = sqlalchemy.select(WRITERS, (WRITERS.c.expires - _now()).label("left"))
    return connection.execute(columns.where(WRITERS.c.study == name)).first()


def _this_process() -> str:
    """What names this process among all of all hosts, also after a restart; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {os.getpid()} {_started(os.getpid())}"
    except OSError:
        return ""


def _is_dead(process: str) -> bool:
    """Whether a process is known to be gone: it ran on this host, among the processes that are seen here."""
    mine, words = _this_process().split(" "), process.split(" ")
    if len(words) != 4 or len(mine) != 4 or words[:2] != mine[:2] or not words[2].isdecimal():
        return False
    return _started(int(words[2])) != words[3]


def _started(pid: int) -> str:
    """When a process started, in ticks since the host did; empty if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # its name may have blanks
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
