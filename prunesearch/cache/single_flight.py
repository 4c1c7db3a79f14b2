"""Single-flight: of all processes that need a key, one computes it and the others use its result.

with cache.single_flight() as single_flight:
    found = single_flight.acquire(keys)         # the stored entries
    single_flight.owned                         # the keys that this process computes
    single_flight.commit(key, value, seconds)   # the stored entry; None without a lease
    single_flight.wait(stopped)                 # until others may have stored results
"""

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from prunesearch.cache.backend import FoundEntries
from prunesearch.cache.entry import Entry
from prunesearch.cache.keys import Key
from prunesearch.cache.leased_backend import LeasedBackend
from prunesearch.cache.leases import Interest
from prunesearch.runtime import failpoints
from prunesearch.runtime.closing import Closing
from prunesearch.runtime.json_values import Json

_FIRST_WAIT, _LONGEST_WAIT = 0.02, 1.0
_GROWTH = 1.25  # so a result is noticed after at most a quarter more than the time waited for it
Choice = Callable[[set[str], Interest], set[str]]
"""Function that chooses which free keys are leased. It knows who is interested in the keys."""


class LeasingCache(Protocol):
    """A cache that leases keys; `EvaluationCache` is one."""

    def get_digests(self, digests: Iterable[str]) -> FoundEntries:
        """Return the stored entries of these keys."""
        ...

    def interest(self, digests: Iterable[str]) -> Interest:
        """Return which processes hold these keys, or wait for keys of this process."""
        ...

    def announce(self, holders: Iterable[str]) -> None:
        """Announce to other processes that this one waits for keys that they hold."""
        ...

    def lease(self, digests: Iterable[str]) -> tuple[LeasedBackend, dict[str, int]]:
        """Lease keys. Return the backend that they are leased in, and the lease's token by key."""
        ...

    def commit(self, leased: LeasedBackend, token: int, entry: Entry) -> Entry | None:
        """Store a result under its lease."""
        ...

    def release(self, leased: LeasedBackend, digests: Iterable[str]) -> None:
        """Release leases without a result."""
        ...


class SingleFlight(Closing):
    """Leases keys to this process until it commits them, releases them or dies.

    A thread of the cache renews the leases. Leases that are left at the end of the ``with`` block
    are released.
    """

    def __init__(self, cache: LeasingCache) -> None:
        self._cache = cache
        self._tokens: dict[str, tuple[LeasedBackend, int]] = {}
        self._announced_to: set[str] = set()
        self._pause = _FIRST_WAIT

    @property
    def owned(self) -> set[str]:
        """Digests of the keys that are leased to this object."""
        return set(self._tokens)

    def acquire(self, keys: Iterable[Key], choose: Choice | None = None) -> FoundEntries:
        """Look keys up, and lease missing ones that no other process is computing.

        Args:
            keys: the keys.
            choose: function that chooses which of the missing and free keys are leased. Default:
                all.

        Returns:
            The entries that are stored already.

        Raises:
            UnavailableError: no backend of the cache works.
        """
        wanted = {key.digest for key in keys} - self.owned
        found = self._cache.get_digests(wanted)
        missing = wanted - set(found)
        if missing:
            found = found | self._lease(missing, choose)
        if found or self._tokens:
            self._pause = _FIRST_WAIT
        return found

    def _lease(self, missing: set[str], choose: Choice | None) -> FoundEntries:
        """Lease missing keys, and return the entries that were stored meanwhile."""
        interest = self._cache.interest(missing)
        chosen = missing - set(interest.holders)
        if choose is not None:
            chosen = choose(chosen, interest)
        if not chosen:
            # Other processes compute all of them. They leave some over once they know.
            unaware = set(interest.holders.values()) - self._announced_to
            if unaware:
                self._cache.announce(unaware)
                self._announced_to |= unaware
            return {}
        leased, granted = self._cache.lease(chosen)
        for digest, token in granted.items():
            self._tokens[digest] = (leased, token)
        for digest in granted:
            failpoints.hit("after_acquire", digest)
        # Look again: a key may have been committed, and its lease released, since the first look.
        late = self._cache.get_digests(granted)
        self._release(late)
        return late

    def commit(self, key: Key, value: Json, seconds: float = 0.0) -> Entry | None:
        """Store the result of a key that is in `owned`. On return it is stored durably.

        Returns:
            The entry that is stored now: this one, or an earlier one if there was one. None if the
            lease has passed to another process that has not stored a result yet. This result was
            refused then.

        Raises:
            UnavailableError: no backend of the cache works.
            ValueError: the value is not portable JSON.
        """
        entry = Entry(key, value, round(seconds, 4), round(time.time(), 3))
        # Serialize first: a value that is not JSON is refused while the lease can still be
        # released.
        _ = entry.serialized
        leased, token = self._tokens.pop(key.digest)
        failpoints.hit("before_commit", key.digest)
        stored = self._cache.commit(leased, token, entry)
        if stored is not None:
            failpoints.hit("after_commit", key.digest)
        return stored

    def release(self, keys: Iterable[Key]) -> None:
        """Release keys without a result, so that other processes can compute them."""
        self._release(key.digest for key in keys)

    def _release(self, digests: Iterable[str]) -> None:
        # Group the digests by the backend that they are leased in. A `LeasedBackend` is not
        # hashable.
        leased_backends: dict[int, LeasedBackend] = {}
        left: dict[int, list[str]] = {}
        for digest in list(digests):
            if digest in self._tokens:
                leased, _ = self._tokens.pop(digest)
                leased_backends[id(leased)] = leased
                left.setdefault(id(leased), []).append(digest)
        for number, leased in leased_backends.items():
            self._cache.release(leased, left[number])

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Wait a moment for other processes to finish. Each wait is longer than the one before."""
        end = time.monotonic() + self._pause
        while time.monotonic() < end and not stopped():
            time.sleep(min(0.05, self._pause))
        self._pause = min(_LONGEST_WAIT, _GROWTH * self._pause)

    def close(self) -> None:
        """Release the leases that this object holds."""
        self._release(self.owned)
