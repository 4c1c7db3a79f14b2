"""The evaluation store: results by key, in two tiers, each computed by one of all that want it."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prunesearch import stopping
from prunesearch.errors import UnavailableError, one_line
from prunesearch.store.alarms import Alarm
from prunesearch.store.disk import DiskTier
from prunesearch.store.entry import Entry
from prunesearch.store.flight import Flight
from prunesearch.store.keys import Key
from prunesearch.store.leases import TTL, Leases, Presence, folder_leases
from prunesearch.store.places import Places
from prunesearch.store.sql import SqlTier, unavailable
from prunesearch.store.tiers import Tiers

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0  # between looks whether a database that failed is back


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


class EvaluationStore(Tiers):
    """What was computed once is found by every later search, process and colleague.

    Args:
        place: ``DIR``, ``URL`` or ``DIR,URL``; see `Places`.
        ttl: seconds until what a dead process was computing is taken over, where it is not known to have died.

    Attributes:
        refused: results that came after their lease had passed to another.

    Raises:
        StorageError: a tier that must not be used, or that cannot be opened.
    """

    def __init__(self, place: str | Path | Places, ttl: float = TTL) -> None:
        super().__init__(place if isinstance(place, Places) else Places.parse(place))
        self.refused = 0
        self._ttl = ttl
        self._presence = Presence(self.folder)
        self._local_desk: Desk | None = None
        self._shared_desk: Desk | None = None
        if self.shared is not None:
            self._shared_desk = Desk(Leases(self.shared.engine, self.shared.name, ttl), self.shared)
        self._desks: list[Desk] = []
        self._complaint = ""
        self._keeper = self._start_keeper()

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

    def once(self, key: Key, compute: Callable[[], Any]) -> Any:  # noqa: ANN401 (any JSON value)
        """The value of a key, computed here if nobody has it and nobody is computing it.

        Raises:
            UnavailableError: no tier works.
            StopRequested: that was asked for while another process was computing it.
        """
        with self.flight() as flight:
            while True:
                entry = flight.claim([key]).get(key.digest)
                if entry is None and key.digest in flight.mine:
                    begun = time.perf_counter()
                    value = compute()
                    entry = flight.commit(key, value, time.perf_counter() - begun)
                if entry is not None:
                    return entry.value
                flight.wait(lambda: self._closed.is_set() or stopping.requested())
                stopping.check()

    def lease(self, digests: Iterable[str]) -> tuple[Desk, dict[str, int]]:
        """Lease keys at the desk that works; what dead processes of this host left is taken over."""
        self._watch_keeper()
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
            self.refused += 1
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

    def _keep(self) -> None:
        """Renew leases, and look whether the database is back, until the store is closed."""
        pause = min(self._ttl / 3, _LOOK_SECONDS if self.shared is not None else self._ttl)
        due = time.monotonic() + self._ttl / 3
        while not self._closed.wait(pause):
            if time.monotonic() >= due - pause / 2:
                due = time.monotonic() + self._ttl / 3
                self._renew()
            self._survive(self._look_again)

    def _renew(self) -> None:
        with self._lock:
            desks = list(self._desks)
        for desk in desks:
            self._survive(lambda desk=desk: desk.leases.renew(self._presence.owner))  # type: ignore[misc]

    def _survive(self, task: Callable[[], None]) -> None:
        """Do one of the keeper's tasks. Without its thread every lease would run out unseen, so nothing may end it."""
        try:
            task()
        except UnavailableError:
            pass  # the database or the disk is down, which those that score say
        except Exception as error:  # noqa: BLE001 (whatever it is, the next round may succeed)
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning(
                    "renewing leases failed, which is tried again: %s: %s", type(error).__name__, one_line(error)
                )

    def _start_keeper(self) -> threading.Thread:
        keeper = threading.Thread(target=self._keep, name="prunesearch-leases", daemon=True)
        keeper.start()
        return keeper

    def _watch_keeper(self) -> None:
        """See that leases are being renewed: a process that was forked, say, has no thread of its parent's."""
        if not self._keeper.is_alive() and not self._closed.is_set():
            _log.warning("the thread that renews leases has died: starting it again")
            self._keeper = self._start_keeper()

    def close(self) -> None:
        """Give leases back, send what waits, and let go of everything."""
        self._closed.set()
        self._keeper.join()
        for desk in self._desks:
            with contextlib.suppress(UnavailableError):
                desk.leases.release(self._presence.owner)
        super().close()
        if self._local_desk is not None:
            self._local_desk.leases.engine.dispose()
        self._presence.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
