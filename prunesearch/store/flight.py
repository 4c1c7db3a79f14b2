"""Single flight: of all that want a key at once, one computes it and the others take what it stored.

with store.flight() as flight:
    found = flight.claim(keys)          # what is there already; flight.mine is ours to compute
    flight.commit(key, value, seconds)  # what stands now; None: our lease had passed to another
    flight.wait(stopped)                # until others may have stored what they hold
"""

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from prunesearch.store import faults
from prunesearch.store.entry import Entry
from prunesearch.store.keys import Key
from prunesearch.store.tier import Found

if TYPE_CHECKING:
    from prunesearch.store.evaluations import Desk, EvaluationStore

_FIRST_WAIT, _LONGEST_WAIT = 0.02, 1.0


class Flight:
    """Keys that this process alone computes, until it commits them, gives them back or dies.

    Leases are renewed by a thread of the store while the flight lasts; whatever is left at its end is given back.
    """

    def __init__(self, store: "EvaluationStore") -> None:
        self._store = store
        self._tokens: dict[str, tuple[Desk, int]] = {}
        self._pause = _FIRST_WAIT

    @property
    def mine(self) -> set[str]:
        """Digests that are leased to this flight."""
        return set(self._tokens)

    def claim(self, keys: Iterable[Key]) -> Found:
        """Look keys up and lease those that are missing and that nobody else is computing.

        Raises:
            UnavailableError: no tier of the store works.
        """
        wanted = {key.digest for key in keys} - self.mine
        found = self._store.get_digests(wanted)
        missing = wanted - set(found)
        if missing:
            desk, granted = self._store.lease(missing)
            self._tokens |= {digest: (desk, token) for digest, token in granted.items()}
            for digest in granted:
                faults.reach("after_claim", digest)
            # A key may have been committed, and its lease given back, since it was looked up.
            late = self._store.get_digests(granted)
            self._give_back(late)
            found |= late
        if found or self._tokens:
            self._pause = _FIRST_WAIT
        return found

    def commit(self, key: Key, value: Any, seconds: float = 0.0) -> Entry | None:  # noqa: ANN401 (any JSON value)
        """Store the result of a key that is `mine`; on return it is safe.

        Returns:
            The entry that stands: ours, or the first if there was one. None if the lease has passed to another, who has
            not stored a result yet: ours was refused.

        Raises:
            UnavailableError: no tier of the store works.
            ValueError: the value is no portable JSON.
        """
        entry = Entry(key, value, round(seconds, 4), round(time.time(), 3))
        _ = entry.sealed  # a value that is no JSON is refused while the lease can still be given back
        desk, token = self._tokens.pop(key.digest)
        faults.reach("before_commit", key.digest)
        stands = self._store.commit(desk, token, entry)
        if stands is not None:
            faults.reach("after_commit", key.digest)
        return stands

    def give_back(self, keys: Iterable[Key]) -> None:
        """Leave keys to others, without a result."""
        self._give_back(key.digest for key in keys)

    def _give_back(self, digests: Iterable[str]) -> None:
        left = [(digest, self._tokens.pop(digest)) for digest in list(digests) if digest in self._tokens]
        for desk in {id(desk): desk for _, (desk, _) in left}.values():
            self._store.give_back(desk, [digest for digest, (at, _) in left if at is desk])

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Give others a moment to finish; longer each time."""
        end = time.monotonic() + self._pause
        while time.monotonic() < end and not stopped():
            time.sleep(min(0.05, self._pause))
        self._pause = min(_LONGEST_WAIT, 1.5 * self._pause)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back(self.mine)
