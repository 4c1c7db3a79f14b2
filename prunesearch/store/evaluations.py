"""The evaluation store: a tier on this machine's disk, alone or in front of a database that is shared with others.

Either tier may vanish while a search runs. Without the database, results go to the disk and wait there until it is
back; without the disk, the database serves alone. Only when no tier is left does an operation fail.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from prunesearch.errors import StorageError, UnavailableError
from prunesearch.store.alarms import Alarm
from prunesearch.store.disk import DiskTier
from prunesearch.store.entry import Entry
from prunesearch.store.flight import Flight
from prunesearch.store.keys import Key
from prunesearch.store.leases import TTL, Leases, Presence, folder_leases
from prunesearch.store.places import Places
from prunesearch.store.sql import SqlTier, unavailable
from prunesearch.store.tier import Found

UNSENT = "unsent"
RETRY_SECONDS = 2.0
"""How long a database that failed is left alone."""
_LOOK_SECONDS = 1.0  # between looks whether it is back
PATIENCE = 120.0
"""How long a database that is the only tier is waited for."""
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass
class Desk:
    """Where leases are given out, and the tier that their results are committed to."""

    leases: Leases
    tier: DiskTier | SqlTier

    def commit(self, owner: str, token: int, entry: Entry) -> Entry | None:
        """Store a result if its lease still holds; the entry that stands, or None if it does not hold."""
        digest = entry.key.digest
        with unavailable(self.tier.name), self.leases.held(owner, {digest: token}) as (connection, held):
            if digest not in held:
                return None
            if isinstance(self.tier, SqlTier):
                return self.tier.put_in(connection, [entry])[digest]
            return self.tier.put([entry])[digest]  # while the transaction keeps the lease from passing on


@dataclass
class Counts:
    """What a store has been through since it was opened.

    Attributes:
        refused: results that came after their lease had passed to another.
        unsent: results that were kept on the disk because the database did not work.
    """

    refused: int = 0
    unsent: int = 0


class EvaluationStore:
    """Results by key: what was computed once is found by every later search, process and colleague.

    Args:
        place: ``DIR``, ``URL`` or ``DIR,URL``; see `Places`.
        ttl: seconds until what a dead process was computing is taken over, where it is not known to have died.

    Attributes:
        local, shared: the tiers; None where there is none, or it was given up.
        counts: what it has been through.

    Raises:
        StorageError: a tier that must not be used, or that cannot be opened.
    """

    def __init__(self, place: str | Path | Places, ttl: float = TTL) -> None:
        places = place if isinstance(place, Places) else Places.parse(place)
        self.folder = places.folder
        self.counts = Counts()
        self.shared = SqlTier(places.url) if places.url else None
        self.local: DiskTier | None = None
        try:
            self.local = DiskTier(places.folder)
        except UnavailableError as error:
            if self.shared is None:
                raise StorageError(str(error)) from None
            self._local_failed(error)
        self._ttl = ttl
        self._presence = Presence(places.folder)
        self._local_desk: Desk | None = None
        self._unsent: DiskTier | None = None
        self._shared_desk: Desk | None = None
        if self.shared is not None:
            self._shared_desk = Desk(Leases(self.shared.engine, self.shared.name, ttl), self.shared)
        self._down_until = 0.0
        self._was_down = False
        self._desks: list[Desk] = []
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="prunesearch-leases", daemon=True)
        self._keeper.start()
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

    def put(self, key: Key, value: Any, seconds: float = 0.0) -> Entry:  # noqa: ANN401 (any JSON value)
        """Keep a value that no lease was needed for; on return it is safe. The first value of a key stays.

        Raises:
            UnavailableError: no tier works.
        """
        entry = Entry(key, value, round(seconds, 4), round(time.time(), 3))
        return self._put(entry)

    def flight(self) -> Flight:
        """Begin to compute keys that nobody else computes."""
        return Flight(self)

    def lease(self, digests: Iterable[str]) -> tuple[Desk, dict[str, int]]:
        """Lease keys at the desk that works; what dead processes of this host left is taken over."""
        wanted = set(digests)
        if self._shared_desk is not None:
            desk = self._shared_desk
            granted = self._shared(lambda _: self._lease_at(desk, wanted))
            if granted is not None:
                return desk, granted
        found = self._locally(lambda tier: self._lease_locally(tier, wanted))
        return found if found is not None else self.lease(wanted)  # the disk has just failed: wait for the database

    def _lease_locally(self, tier: DiskTier, wanted: set[str]) -> tuple[Desk, dict[str, int]]:
        if self._local_desk is None:
            self._local_desk = Desk(folder_leases(self.folder, self._ttl), tier)
        return self._local_desk, self._lease_at(self._local_desk, wanted)

    def _lease_at(self, desk: Desk, wanted: set[str]) -> dict[str, int]:
        with self._lock:
            if desk not in self._desks:
                self._desks.append(desk)
        owner = self._presence.owner
        granted = desk.leases.claim(owner, wanted)
        if left := wanted - set(granted):
            dead = [other for other in desk.leases.owners(left) if self._presence.is_dead(other)]
            for other in dead:
                desk.leases.release(other)
                self._presence.bury(other)
            if dead:
                granted |= desk.leases.claim(owner, left)
        return granted

    def commit(self, desk: Desk, token: int, entry: Entry) -> Entry | None:
        """Store a result under its lease; see `Flight.commit`."""
        try:
            stands = desk.commit(self._presence.owner, token, entry)
        except UnavailableError as error:
            if desk is self._shared_desk:
                self._shared_failed(error)
            elif self.shared is not None:
                self._local_failed(error)
            else:
                raise
            return self._put(entry)
        if stands is None:
            self.counts.refused += 1
            stands = self.get(entry.key)
            if stands is not None and not stands.agrees(entry):
                desk.tier.alarm(Alarm.disagreement(stands, entry))
        elif desk is self._shared_desk:
            self._cache(stands)
        elif self.shared is not None:  # leased here while it was down
            stands = self._put(stands)
        return stands

    def give_back(self, desk: Desk, digests: Iterable[str]) -> None:
        """Let others have leases."""
        with contextlib.suppress(UnavailableError):  # they run out by themselves
            desk.leases.release(self._presence.owner, digests)

    def _cache(self, entry: Entry) -> None:
        """Copy to the disk what is safe in the database."""
        self._locally(lambda tier: tier.put([entry], "given"))

    def _put(self, entry: Entry) -> Entry:
        digest, stands = entry.key.digest, None
        if self.shared is not None:
            stands = self._shared(lambda tier: tier.put([entry]))
            if stands is None:
                self._locally(lambda _: self._outbox().put([entry]))
                self.counts.unsent += 1
            else:
                entry = stands[digest]
        kept = self._locally(lambda tier: tier.put([entry], "first" if stands is None else "given"))
        if kept is not None:
            return kept[digest]
        # The disk has failed. If the database has the entry that is enough; else it is waited for.
        return entry if stands is not None else self._put(entry)

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
            UnavailableError: it does not work.
        """
        if self.shared is None or self.local is None or not (self.folder / UNSENT).is_dir():
            return 0
        with self._lock:
            outbox = self._outbox()
            waiting = [entry for _, entry in outbox.scan() if entry is not None]
            if waiting:
                standing = self.shared.put(waiting)
                self.local.put(standing.values(), "given")
                outbox.discard(entry.key.digest for entry in waiting)
            return len(waiting)

    def _outbox(self) -> DiskTier:
        """Results that the database has not seen: they are safe on the disk."""
        with self._lock:
            if self._unsent is None:
                self._unsent = DiskTier(self.folder / UNSENT)
            return self._unsent

    def _keep(self) -> None:
        """Renew leases, and look whether the database is back, until the store is closed."""
        pause = min(self._ttl / 3, _LOOK_SECONDS if self.shared is not None else self._ttl)
        due = time.monotonic() + self._ttl / 3
        while not self._closed.wait(pause):
            if time.monotonic() >= due - pause / 2:
                due = time.monotonic() + self._ttl / 3
                self._renew()
            if self._was_down:
                with contextlib.suppress(UnavailableError):
                    self._shared(lambda tier: tier.get([""]))

    def _renew(self) -> None:
        with self._lock:
            desks = list(self._desks)
        for desk in desks:
            with contextlib.suppress(UnavailableError):
                desk.leases.renew(self._presence.owner)

    @property
    def damaged(self) -> int:
        """Entries that were found damaged, and computed again."""
        return sum(tier.damaged for tier in (self.local, self.shared) if tier is not None)

    def __len__(self) -> int:
        if self.shared is not None:
            return len(self.shared)
        return 0 if self.local is None else len(self.local)

    def close(self) -> None:
        """Give leases back, send what waits, and let go of everything."""
        self._closed.set()
        self._keeper.join()
        for desk in self._desks:
            with contextlib.suppress(UnavailableError):
                desk.leases.release(self._presence.owner)
        if self.shared is not None:
            self._send_if_possible()
            self.shared.close()
        if self._local_desk is not None:
            self._local_desk.leases.engine.dispose()
        for tier in (self.local, self._unsent):
            if tier is not None:
                tier.close()
        self._presence.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
