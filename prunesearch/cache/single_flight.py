"""Single-flight: of all processes that need a key, one computes it and the others use its result.

with cache.single_flight() as single_flight:
    found = single_flight.acquire(keys)         # the stored entries
    single_flight.owned                         # the keys that this process computes
    single_flight.commit(key, value, seconds)   # the stored entry; None without a lease
    single_flight.wait(stopped)                 # until others may have stored results
"""

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol, Self

from prunesearch.cache.backend import FoundEntries
from prunesearch.cache.entry import Entry
from prunesearch.cache.keys import Key
from prunesearch.cache.leased_backend import LeasedBackend
from prunesearch.runtime import failpoints
from prunesearch.runtime.json_values import Json

_FIRST_WAIT, _LONGEST_WAIT = 0.02, 1.0


class LeasingCache(Protocol):
    """A cache that leases keys; `EvaluationCache` is one."""

    def get_digests(self, digests: Iterable[str]) -> FoundEntries:
        """Return the stored entries of these keys."""
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


class SingleFlight:
    """Leases keys to this process until it commits them, releases them or dies.

    A thread of the cache renews the leases. Leases that are left at the end of the ``with`` block
    are released.
    """

    def __init__(self, cache: LeasingCache) -> None:
        self._cache = cache
        self._tokens: dict[str, tuple[LeasedBackend, int]] = {}
        self._pause = _FIRST_WAIT

    @property
    def owned(self) -> set[str]:
        """Digests of the keys that are leased to this object."""
        return set(self._tokens)

    def acquire(self, keys: Iterable[Key]) -> FoundEntries:
        """Look keys up, and lease those that are missing and that no other process is computing.

        Returns:
            The entries that are stored already.

        Raises:
            UnavailableError: no backend of the cache works.
        """
        wanted = {key.digest for key in keys} - self.owned
        found = self._cache.get_digests(wanted)
        missing = wanted - set(found)
        if missing:
            leased, granted = self._cache.lease(missing)
            for digest, token in granted.items():
                self._tokens[digest] = (leased, token)
            for digest in granted:
                failpoints.hit("after_acquire", digest)
            # Look again: a key may have been committed, and its lease released, since the first
            # look.
            late = self._cache.get_digests(granted)
            self._release(late)
            found |= late
        if found or self._tokens:
            self._pause = _FIRST_WAIT
        return found

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
        self._pause = min(_LONGEST_WAIT, 1.5 * self._pause)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release(self.owned)
