"""Two tiers as one: a folder on this machine's disk, alone or in front of a database that is shared with others.

Either may vanish while a search runs. Without the database, results go to the disk and wait there until it is back;
without the disk, the database serves alone. Only when no tier is left does an operation fail.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from prunesearch.errors import StorageError, UnavailableError
from prunesearch.store.disk import DiskTier
from prunesearch.store.entry import Entry
from prunesearch.store.keys import Key
from prunesearch.store.places import Places
from prunesearch.store.sql import SqlTier
from prunesearch.store.tier import Found

UNSENT = "unsent"
RETRY_SECONDS = 2.0
"""How long a database that failed is left alone."""
PATIENCE = 120.0
"""How long a database that is the only tier is waited for."""
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Tiers:
    """Entries in both tiers.

    Args:
        places: where they are.

    Attributes:
        local, shared: the tiers; None where there is none, or it was given up.
        unsent: results that were kept on the disk because the database did not work.

    Raises:
        StorageError: a tier that must not be used, or that cannot be opened.
    """

    def __init__(self, places: Places) -> None:
        self.folder = places.folder
        self.unsent = 0
        self.shared = SqlTier(places.url) if places.url else None
        self.local: DiskTier | None = None
        try:
            self.local = DiskTier(places.folder)
        except UnavailableError as error:
            if self.shared is None:
                raise StorageError(str(error)) from None
            self._local_failed(error)
        self._waiting: DiskTier | None = None
        self._outbox_is_broken = False
        self._down_until = 0.0
        self._was_down = False
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._send_if_possible()  # what an earlier process left

    def get(self, key: Key) -> Entry | None:
        """The entry of a key, or None."""
        return self.get_digests([key.digest]).get(key.digest)

    def get_digests(self, digests: Iterable[str]) -> Found:
        """The entries of those keys that are in a tier; what only the database has is copied to the disk.

        Raises:
            UnavailableError: no tier works.
        """
        wanted = list(digests)
        found = self._locally(lambda tier: tier.get(wanted)) or {}
        missing = [digest for digest in wanted if digest not in found]
        if missing and self.shared is not None:
            fetched = self._shared(lambda tier: tier.get(missing)) or {}
            if fetched:
                self._locally(lambda tier: tier.put(fetched.values(), "given"))
            found = found | fetched
        return found

    def _put(self, entry: Entry) -> Entry:
        digest, stands = entry.key.digest, None
        if self.shared is not None:
            stands = self._shared(lambda tier: tier.put([entry]))
            if stands is None:
                self._keep_unsent(entry)
            else:
                entry = stands[digest]
        kept = self._locally(lambda tier: tier.put([entry], "first" if stands is None else "given"))
        if kept is not None:
            return kept[digest]
        # The disk has failed. If the database has the entry that is enough; else it is waited for.
        return entry if stands is not None else self._put(entry)

    def _cache(self, entry: Entry) -> None:
        """Copy to the disk what is safe in the database."""
        self._locally(lambda tier: tier.put([entry], "given"))

    def _locally(self, action: Callable[[DiskTier], _Result]) -> _Result | None:
        """Do something with the disk; None where it does not work."""
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

    def _shared(self, action: Callable[[SqlTier], _Result]) -> _Result | None:
        """Do something with the database; None where it does not work. If there is nothing else it is waited for."""
        assert self.shared is not None
        end = time.monotonic() + PATIENCE
        while True:
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
            _log.warning("%s (results are kept here until it is back)", str(error).partition(";")[0])

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
        """Send the database what it has missed; returns how much that was.

        Raises:
            UnavailableError: the database does not work.
        """
        if self.shared is None or self.local is None or not (self.folder / UNSENT).is_dir():
            return 0
        with self._lock:
            waiting = self._unsent_entries()
            if waiting:
                standing = self.shared.put(waiting)
                self._locally(lambda tier: tier.put(standing.values(), "given"))
                try:
                    self._outbox().discard(entry.key.digest for entry in waiting)
                except (UnavailableError, StorageError) as error:
                    self._outbox_failed(error)  # they will be sent once more, which changes nothing
            return len(waiting)

    def _unsent_entries(self) -> list[Entry]:
        """What waits in the outbox. One that is damaged is made anew from what is sound in it.

        An outbox that does not work says nothing about the database, which is used as before.
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
            _log.warning("%s; results that the shared cache misses while it is down are kept on this machine", error)

    def _outbox(self) -> DiskTier:
        """Results that the database has not seen: they are safe on the disk."""
        with self._lock:
            if self._waiting is None:
                self._waiting = DiskTier(self.folder / UNSENT)
            return self._waiting

    def _look_again(self) -> None:
        """See whether a database that failed is back."""
        if self._was_down:
            with contextlib.suppress(UnavailableError):
                self._shared(lambda tier: tier.get([""]))

    @property
    def damaged(self) -> int:
        """Entries that were found damaged, and computed again."""
        return sum(tier.damaged for tier in (self.local, self.shared) if tier is not None)

    def __len__(self) -> int:
        if self.shared is not None:
            return len(self.shared)
        return 0 if self.local is None else len(self.local)

    def close(self) -> None:
        """Send what waits, and let go of everything."""
        self._closed.set()
        if self.shared is not None:
            self._send_if_possible()
            self.shared.close()
        for tier in (self.local, self._waiting):
            if tier is not None:
                tier.close()
