"""The two locks on a study in a SQLite file, which end with the process of the writer.

The first is on a file next to the database, in which the writer stores its process id. The second
is on a byte far after the end of the database itself. It is the same lock under every name of the
database (links, ``..``), and it cannot be deleted.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from prunesearch.config.names import slug
from prunesearch.errors import StorageError
from prunesearch.studies.writer_process import Writer, busy

_PATIENCE = 0.5  # seconds to wait for a lock: a process that looks for the writer holds it briefly
_FIRST_BYTE = 2**40  # first byte of the locks on a database file; SQLite's own locks are near 2**30
_FLOCK = "hhqqi4x"
"""C's struct flock on 64-bit Linux: type, whence, start, length, process (0: open file's)."""


def file_of(engine: Engine) -> Path | None:
    """Return the file of a SQLite database; None if it is in memory."""
    if engine.url.database in (None, "", ":memory:"):
        return None
    return Path(str(engine.url.database))


@contextmanager
def held_file(file: Path | None, name: str) -> Iterator[None]:
    """Hold both locks on a study until the block or the process ends.

    Raises:
        StudyBusyError: another process holds one of them.
        StorageError: the lock file cannot be written.
    """
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


def writer_of_file(file: Path, name: str) -> Writer | None:
    """Return the process that holds the locks on a study, or None."""
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
