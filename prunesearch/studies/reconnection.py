"""Repeats an operation on the database of studies that an outage interrupted.

A server may be restarted, crash, or be cut off by the network. The operation is then repeated until
it succeeds, or until the patience is over. An operation can be repeated without harm even if only
the answer to its commit was lost: see `rdb.StudyStorage`.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, TimeoutError

from prunesearch import events
from prunesearch.errors import one_line
from prunesearch.runtime import stopping

PATIENCE = 600.0
"""Seconds to wait for a database that has worked before."""
_PAUSES = (0.05, 1.0)  # first and longest pause in seconds between two attempts
_SLICE = 0.1  # seconds between two checks whether a stop was requested
# SQLSTATE codes of failures that pass. PostgreSQL's manual lists them in appendix A.
_PASSING_CLASSES = ("08", "40", "53", "57")
_PASSING = ("25006", "25P03", "55P03")  # standby, idle for too long, locked for too long
_LASTING = ("53100", "57P04")  # the disk is full, the database was dropped
# Failures to connect have no SQLSTATE. A text that holds one of these does not pass.
_REFUSALS = ("authentication failed", "does not exist", "pg_hba.conf", "permission denied")
_WITHOUT_CODE = ("OperationalError", "InterfaceError", "InternalError", "ConnectionTimeout")
_SQLITE_BUSY = (5, 6)  # SQLite's codes: the file, or a table of it, is locked

Result = TypeVar("Result")


class Reconnection:
    """Repeats operations on one database.

    Several threads may use it. A message is published when the first of them begins to wait, and
    when the database works again.

    Args:
        name: location of the database without secrets, for the messages.
        patience: seconds to wait for the database. With 0, no operation is repeated.
    """

    def __init__(self, name: str, patience: float = PATIENCE) -> None:
        self.name, self.patience = name, patience
        self._thread = _Operation()
        self._lock = threading.Lock()
        self._down_since: float | None = None

    @property
    def repeated(self) -> bool:
        """True if an earlier attempt at this thread's operation failed.

        That attempt may have been committed: the connection may have been lost after the commit.
        """
        return self._thread.failures > 0

    def repeat(self, operation: Callable[[], Result]) -> Result:
        """Call an operation until no outage interrupts it. Return its result.

        An operation inside another one is a part of it: only the outer one is repeated.

        Raises:
            SQLAlchemyError, StorageInternalError: the operation failed for another reason, or the
                patience is over.
        """
        if self._thread.active:
            return operation()
        self._thread.active = True
        end: float | None = None
        try:
            while True:
                try:
                    result = operation()
                except (SQLAlchemyError, StorageInternalError) as error:
                    if end is None:
                        end = time.monotonic() + self.patience
                    if not is_outage(error) or time.monotonic() >= end:
                        raise
                    self._thread.failures += 1
                    self._tell_outage(error)
                    self._pause()
                else:
                    self._tell_return()
                    return result
        finally:
            self._thread.active, self._thread.failures = False, 0

    def _pause(self) -> None:
        """Wait before the next attempt, longer each time.

        Raises:
            StopRequested: a stop was requested.
        """
        first, longest = _PAUSES
        end = time.monotonic() + min(longest, first * 2.0 ** (self._thread.failures - 1))
        while (left := end - time.monotonic()) > 0:
            stopping.check()
            time.sleep(min(left, _SLICE))

    def _tell_outage(self, error: Exception) -> None:
        with self._lock:
            if self._down_since is not None:
                return
            self._down_since = time.monotonic()
        cause = error.__cause__ or error
        reason = one_line(getattr(cause, "orig", None) or cause)
        events.tell_or_log(
            f"the database of studies {self.name} does not answer ({reason}); it is waited for, "
            f"{self.patience:.0f} s at most"
        )

    def _tell_return(self) -> None:
        if self._down_since is None:
            return
        with self._lock:
            since, self._down_since = self._down_since, None
        if since is not None:
            seconds = time.monotonic() - since
            events.tell_or_log(f"the database of studies works again after {seconds:.1f} s")


class _Operation(threading.local):
    """The operation of a thread: whether there is one, and how many of its attempts failed."""

    active = False
    failures = 0


def is_outage(error: BaseException) -> bool:
    """Return whether a failure passes by itself.

    The server is gone, starts, or has too many connections, or a lock was held for too long.
    """
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    # No connection of the pool became free in time.
    if isinstance(cause, TimeoutError):
        return True
    if not isinstance(cause, DBAPIError):
        return False
    if cause.connection_invalidated:
        return True
    original = cause.orig
    code = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if code is not None:
        passes = code in _PASSING or code[:2] in _PASSING_CLASSES
        return passes and code not in _LASTING
    # The low byte of SQLite's code is the kind of failure.
    if (number := getattr(original, "sqlite_errorcode", None)) is not None:
        return number & 0xFF in _SQLITE_BUSY
    # The driver of PostgreSQL could not connect, or lost the connection. A pool of sessions may
    # have said so beside the server, which the driver calls an internal error.
    if type(original).__name__ not in _WITHOUT_CODE:
        return False
    return not any(words in str(original) for words in _REFUSALS)
