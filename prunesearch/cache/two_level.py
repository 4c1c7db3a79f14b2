"""Two backends as one: a folder on this machine's disk, alone or in front of a shared database.

Either backend may fail while a search runs. Without the database, results are kept on the disk
until it works again. Without the disk, only the database is used. An operation fails only when no
backend is left.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from prunesearch.cache.backend import FoundEntries, SettleRule
from prunesearch.cache.entry import Entry
from prunesearch.cache.keys import Key
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.location import CacheLocation
from prunesearch.cache.shared_backend import SharedBackend
from prunesearch.errors import StorageError, UnavailableError

UNSENT = "unsent"
RETRY_SECONDS = 2.0
"""Seconds until a database that failed is tried again."""
PATIENCE = 120.0
"""Seconds to wait for a database that is the only backend."""
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class TwoLevelBackend:
    """Reads and writes entries in both backends.

    Args:
        location: location of the backends.

    Attributes:
        local, shared: the backends. None without one, or after it failed for good.
        unsent: number of results that were kept on the disk because the database did not work.

    Raises:
        StorageError: a backend must not be used, or cannot be opened.
    """

    def __init__(self, location: CacheLocation) -> None:
        self.folder = location.folder
        self.unsent = 0
        self.shared = SharedBackend(location.url) if location.url else None
        # The disk may fail if there is a database.
        self.local: LocalBackend | None = None
        try:
            self.local = LocalBackend(location.folder)
        except UnavailableError as error:
            if self.shared is None:
                raise StorageError(str(error)) from None
            self._local_failed(error)
        self._waiting: LocalBackend | None = None
        self._outbox_is_broken = False
        self._down_until = 0.0
        self._was_down = False
        self._lock = threading.RLock()
        self._closed = threading.Event()
        # Send the results that an earlier process could not send.
        self._send_if_possible()

    def get(self, key: Key) -> Entry | None:
        """Return the entry of a key, or None."""
        return self.get_digests([key.digest]).get(key.digest)

    def get_digests(self, digests: Iterable[str]) -> FoundEntries:
        """Return the entries of those keys that are in a backend.

        Entries that only the database has are copied to the disk.

        Raises:
            UnavailableError: no backend works.
        """
        wanted = list(digests)
        # 1. The disk answers for most keys.
        found = self._locally(lambda backend: backend.get(wanted)) or {}
        missing = [digest for digest in wanted if digest not in found]
        # 2. The database is asked for the others.
        if missing and self.shared is not None:
            fetched = self._shared(lambda backend: backend.get(missing)) or {}
            if fetched:
                self._locally(lambda backend: backend.put(fetched.values(), "given"))
            found = found | fetched
        return found

    def _put(self, entry: Entry) -> Entry:
        digest, stands = entry.key.digest, None
        rule: SettleRule = "first"
        # 1. Write to the database. Its entry decides which entry the disk gets.
        if self.shared is not None:
            stands = self._shared(lambda backend: backend.put([entry]))
            if stands is None:
                self._keep_unsent(entry)
            else:
                entry, rule = stands[digest], "given"
        # 2. Write to the disk.
        kept = self._locally(lambda backend: backend.put([entry], rule))
        if kept is not None:
            return kept[digest]
        # 3. The disk has failed. Without the database either, wait until the database works.
        if stands is None:
            return self._put(entry)
        return entry

    def _cache(self, entry: Entry) -> None:
        """Copy an entry of the database to the disk."""
        self._locally(lambda backend: backend.put([entry], "given"))

    def _locally(self, action: Callable[[LocalBackend], _Result]) -> _Result | None:
        """Run an action on the disk backend. Return None if the backend does not work."""
        if self.local is None:
            return None
        try:
            return action(self.local)
        except UnavailableError as error:
            self._local_failed(error)
            return None

    def _local_failed(self, error: UnavailableError) -> None:
        if self.shared is None:
            raise error
        if self.local is not None:
            _log.warning("%s; going on with the shared cache alone", str(error).partition(";")[0])
        self.local = None

    def _shared(self, action: Callable[[SharedBackend], _Result]) -> _Result | None:
        """Run an action on the database. Return None if the database does not work.

        If the database is the only backend, wait for it up to `PATIENCE` seconds.
        """
        assert self.shared is not None
        end = time.monotonic() + PATIENCE
        while True:
            # After a failure the database is left alone for a while.
            if time.monotonic() >= self._down_until:
                try:
                    result = action(self.shared)
                except UnavailableError as error:
                    self._shared_failed(error)
                    if self.local is None and time.monotonic() > end:
                        raise
                else:
                    self._shared_works()
                    return result
            if self.local is not None:
                return None
            self._closed.wait(max(0.1, self._down_until - time.monotonic()))

    def _shared_failed(self, error: UnavailableError) -> None:
        self._down_until = time.monotonic() + RETRY_SECONDS
        if not self._was_down:
            self._was_down = True
            _log.warning(
                "%s (results are kept here until it is back)", str(error).partition(";")[0]
            )

    def _shared_works(self) -> None:
        if self._was_down:
            self._was_down = False
            _log.warning("the shared cache works again")
            self._send_if_possible()

    def _send_if_possible(self) -> None:
        try:
            self.send()
        except UnavailableError as error:
            self._shared_failed(error)

    def send(self) -> int:
        """Send the database the results that it has missed, and return their number.

        Raises:
            UnavailableError: the database does not work.
        """
        if self.shared is None or self.local is None or not (self.folder / UNSENT).is_dir():
            return 0
        with self._lock:
            waiting = self._unsent_entries()
            if waiting:
                stored = self.shared.put(waiting)
                self._locally(lambda backend: backend.put(stored.values(), "given"))
                try:
                    self._outbox().discard(entry.key.digest for entry in waiting)
                except (UnavailableError, StorageError) as error:
                    # The entries will be sent again. That changes nothing.
                    self._outbox_failed(error)
            return len(waiting)

    def _unsent_entries(self) -> list[Entry]:
        """Return the entries in the outbox. A damaged outbox is rebuilt from its sound entries.

        A failure of the outbox does not count as a failure of the database.
        """
        try:
            outbox = self._outbox()
            try:
                return [entry for _, entry in outbox.scan() if entry is not None]
            except UnavailableError:
                outbox.rebuild()
            return [entry for _, entry in outbox.scan() if entry is not None]
        except (UnavailableError, StorageError) as error:
            self._outbox_failed(error)
            return []

    def _keep_unsent(self, entry: Entry) -> None:
        try:
            self._locally(lambda _: self._outbox().put([entry]))
            self.unsent += 1
        except StorageError as error:
            self._outbox_failed(error)

    def _outbox_failed(self, error: Exception) -> None:
        if not self._outbox_is_broken:
            self._outbox_is_broken = True
            _log.warning(
                "%s; results that the shared cache misses while it is down "
                "are kept on this machine",
                error,
            )

    def _outbox(self) -> LocalBackend:
        """Open the outbox: a backend on the disk for results that the database does not have
        yet.
        """
        with self._lock:
            if self._waiting is None:
                self._waiting = LocalBackend(self.folder / UNSENT)
            return self._waiting

    def _retry_failed(self) -> None:
        """Try a database that failed again."""
        if self._was_down:
            with contextlib.suppress(UnavailableError):
                self._shared(lambda backend: backend.get([""]))

    @property
    def damaged(self) -> int:
        """Number of entries that were found damaged. They are computed again."""
        return sum(backend.damaged for backend in (self.local, self.shared) if backend is not None)

    def __len__(self) -> int:
        if self.shared is not None:
            return len(self.shared)
        if self.local is not None:
            return len(self.local)
        return 0

    def close(self) -> None:
        """Send unsent results to the database, and close both backends."""
        self._closed.set()
        if self.shared is not None:
            self._send_if_possible()
            self.shared.close()
        for backend in (self.local, self._waiting):
            if backend is not None:
                backend.close()
