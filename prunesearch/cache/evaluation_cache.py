"""The evaluation cache: results by key, in two backends.

Among all processes that need a result at the same time, one computes it and the others wait for it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from prunesearch.cache.entry import Entry
from prunesearch.cache.folder_leases import folder_leases
from prunesearch.cache.incidents import Incident
from prunesearch.cache.keys import Key
from prunesearch.cache.leased_backend import LeasedBackend
from prunesearch.cache.leases import TTL, Interest, Leases
from prunesearch.cache.liveness import ProcessLiveness
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.location import CacheLocation
from prunesearch.cache.single_flight import SingleFlight
from prunesearch.cache.two_level import TwoLevelBackend
from prunesearch.errors import UnavailableError, one_line
from prunesearch.runtime import stopping
from prunesearch.runtime.closing import Closing
from prunesearch.runtime.json_values import Json

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0  # interval at which a database that failed is tried again


class EvaluationCache(TwoLevelBackend, Closing):
    """Stores results, so that later searches, other processes and colleagues find them.

    Args:
        place: ``DIR``, ``URL`` or ``DIR,URL``; see `CacheLocation`.
        ttl: lifetime of a lease in seconds. If a process dies and this host cannot tell, others
            wait this long before they compute its keys.

    Attributes:
        refused: number of results that came after their lease had passed to another process.

    Raises:
        StorageError: a backend must not be used, or cannot be opened.
    """

    def __init__(self, place: str | Path | CacheLocation, ttl: float = TTL) -> None:
        super().__init__(place if isinstance(place, CacheLocation) else CacheLocation.parse(place))
        self.refused = 0
        self._ttl = ttl
        self._liveness = ProcessLiveness(self.folder)
        self._local_leased: LeasedBackend | None = None
        self._shared_leased: LeasedBackend | None = None
        if self.shared is not None:
            self._shared_leased = LeasedBackend(
                Leases(self.shared.engine, self.shared.name, ttl), self.shared
            )
        self._leased_backends: list[LeasedBackend] = []
        self._last_warning = ""
        self._renewal = self._start_renewal()

    def put(self, key: Key, value: Json, seconds: float = 0.0) -> Entry:
        """Store a value without a lease. The first value of a key stays.

        On return the value is stored durably.

        Raises:
            UnavailableError: no backend works.
        """
        entry = Entry(key, value, round(seconds, 4), round(time.time(), 3))
        return self._put(entry)

    def single_flight(self) -> SingleFlight:
        """Return a context manager that leases keys to this process; see `SingleFlight`."""
        return SingleFlight(self)

    def once(self, key: Key, compute: Callable[[], Any]) -> Any:  # noqa: ANN401 (any JSON value)
        """Return the value of a key, and compute it if it is neither stored nor being computed.

        Raises:
            UnavailableError: no backend works.
            StopRequested: a stop was requested while another process was computing the value.
        """
        with self.single_flight() as single_flight:
            while True:
                # 1. Look the key up, and lease it if it is missing.
                entry = single_flight.acquire([key]).get(key.digest)
                # 2. Compute the value if this process got the lease.
                if entry is None and key.digest in single_flight.owned:
                    begun = time.perf_counter()
                    value = compute()
                    entry = single_flight.commit(key, value, time.perf_counter() - begun)
                if entry is not None:
                    return entry.value
                # 3. Another process holds the lease, or has just taken it over: wait for it.
                single_flight.wait(lambda: self._closed.is_set() or stopping.requested())
                stopping.check()

    def lease(self, digests: Iterable[str]) -> tuple[LeasedBackend, dict[str, int]]:
        """Lease keys in the shared database, or on the local disk while the database does not work.

        Leases of processes that died on this host are taken over.
        """
        self._check_renewal()
        wanted = set(digests)
        # Prefer the database: its leases hold for all hosts.
        if self._shared_leased is not None:
            leased = self._shared_leased
            granted = self._shared(lambda _: self._lease_at(leased, wanted))
            if granted is not None:
                return leased, granted
        found = self._locally(lambda backend: self._lease_locally(backend, wanted))
        if found is None:
            # The disk has just failed, so only the database is left. Wait for it.
            return self.lease(wanted)
        return found

    def _lease_locally(
        self, backend: LocalBackend, wanted: set[str]
    ) -> tuple[LeasedBackend, dict[str, int]]:
        leased = self._leased(backend)
        return leased, self._lease_at(leased, wanted)

    def _leased(self, backend: LocalBackend) -> LeasedBackend:
        """Return the local backend with its leases, which are opened when they are first needed."""
        if self._local_leased is None:
            self._local_leased = LeasedBackend(folder_leases(self.folder, self._ttl), backend)
        return self._local_leased

    def _lease_at(self, leased: LeasedBackend, wanted: set[str]) -> dict[str, int]:
        with self._lock:
            if leased not in self._leased_backends:
                self._leased_backends.append(leased)
        owner = self._liveness.owner
        granted = leased.leases.acquire(owner, wanted)
        left = wanted - set(granted)
        if not left:
            return granted
        # Release the leases of owners that died on this host, then try once more.
        if self._release_dead(leased, leased.leases.owners(left)):
            granted |= leased.leases.acquire(owner, left)
        return granted

    def _release_dead(self, leased: LeasedBackend, owners: Iterable[str]) -> set[str]:
        """Release the leases of those owners that died on this host, and return these owners."""
        dead = {other for other in owners if self._liveness.has_died(other)}
        for other in dead:
            leased.leases.release(other)
            self._liveness.forget(other)
        return dead

    def interest(self, digests: Iterable[str]) -> Interest:
        """Return which living processes hold these keys, or wait for keys of this process."""
        wanted = set(digests)
        if self._shared_leased is not None:
            leased = self._shared_leased
            found = self._shared(lambda _: self._interest_at(leased, wanted))
            if found is not None:
                return found
        here = self._locally(lambda backend: self._interest_at(self._leased(backend), wanted))
        # Without a disk, leasing waits for the database.
        return here or Interest(self._liveness.owner, {})

    def _interest_at(self, leased: LeasedBackend, wanted: set[str]) -> Interest:
        found = leased.leases.interest(self._liveness.owner, wanted)
        dead = self._release_dead(leased, found.others)
        alive = {digest: owner for digest, owner in found.holders.items() if owner not in dead}
        return Interest(found.owner, alive, found.waiting - dead)

    def announce(self, holders: Iterable[str]) -> None:
        """Announce to other processes that this one waits for keys that they hold."""
        others = set(holders)
        leased = self._shared_leased or self._local_leased
        if leased is not None:
            # Without the announcement, this process only waits longer.
            with contextlib.suppress(UnavailableError):
                leased.leases.announce(self._liveness.owner, others)

    def commit(self, leased: LeasedBackend, token: int, entry: Entry) -> Entry | None:
        """Store a result under its lease; see `SingleFlight.commit`."""
        try:
            stored = leased.commit(self._liveness.owner, token, entry)
        except UnavailableError as error:
            # The backend failed. Store the result in the other backend, if there is one.
            if leased is self._shared_leased:
                self._shared_failed(error)
            elif self.shared is not None:
                self._local_failed(error)
            else:
                raise
            return self._put(entry)
        if stored is None:
            # The lease had passed to another process. Report its value if it disagrees.
            self.refused += 1
            stored = self.get(entry.key)
            if stored is not None and not stored.agrees(entry):
                leased.backend.report_incident(Incident.disagreement(stored, entry))
        elif leased is self._shared_leased:
            self._cache(stored)
        elif self.shared is not None:
            # The key was leased on the disk while the database was down.
            stored = self._put(stored)
        return stored

    def release(self, leased: LeasedBackend, digests: Iterable[str]) -> None:
        """Release leases, so that other processes can get them."""
        with contextlib.suppress(UnavailableError):  # the leases run out by themselves
            leased.leases.release(self._liveness.owner, digests)

    def _renew_regularly(self) -> None:
        """Renew leases, and try a database that failed again, until the cache is closed."""
        pause = self._ttl / 3
        if self.shared is not None:
            pause = min(pause, _LOOK_SECONDS)
        due = time.monotonic() + self._ttl / 3
        while not self._closed.wait(pause):
            # Renew three times in a lease's lifetime; look at the database in every round.
            if time.monotonic() >= due - pause / 2:
                due = time.monotonic() + self._ttl / 3
                self._renew()
            self._run_guarded(self._retry_failed)

    def _renew(self) -> None:
        with self._lock:
            leased_backends = list(self._leased_backends)
        for leased in leased_backends:
            self._run_guarded(partial(leased.leases.renew, self._liveness.owner))

    def _run_guarded(self, task: Callable[[], None]) -> None:
        """Run one task of the thread that renews leases, whatever it raises.

        If that thread ended, all leases would run out unnoticed.
        """
        try:
            task()
        except UnavailableError:
            pass  # the database or the disk does not work; the threads that score report it
        except Exception as error:  # noqa: BLE001 (the next round may succeed)
            if str(error) != self._last_warning:
                self._last_warning = str(error)
                _log.warning(
                    "renewing leases failed, which is tried again: %s: %s",
                    type(error).__name__,
                    one_line(error),
                )

    def _start_renewal(self) -> threading.Thread:
        keeper = threading.Thread(
            target=self._renew_regularly, name="prunesearch-leases", daemon=True
        )
        keeper.start()
        return keeper

    def _check_renewal(self) -> None:
        """Start the thread that renews leases again if it is gone.

        A forked process, for example, does not have its parent's threads.
        """
        if not self._renewal.is_alive() and not self._closed.is_set():
            _log.warning("the thread that renews leases has died: starting it again")
            self._renewal = self._start_renewal()

    def close(self) -> None:
        """Release all leases, send unsent results to the database, and close both backends."""
        self._closed.set()
        self._renewal.join()
        for leased in self._leased_backends:
            with contextlib.suppress(UnavailableError):
                leased.leases.release(self._liveness.owner)
        super().close()
        if self._local_leased is not None:
            self._local_leased.leases.engine.dispose()
        self._liveness.close()
