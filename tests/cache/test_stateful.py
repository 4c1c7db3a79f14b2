"""The cache against a dictionary: commits, crashes, reopening, clocks that jump and leases that run
out.
"""

import shutil
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prunesearch.cache import tables
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import Key, evaluation_key
from prunesearch.cache.leases import TTL
from prunesearch.cache.single_flight import SingleFlight

numbers = st.integers(0, 5)
owners = st.sampled_from("ab")


def key(number: int) -> Key:
    return evaluation_key("f" * 64, f"blocks/6:{number}", {"kind": "calibration"})


class StoreMachine(RuleBasedStateMachine):
    """Two owners over one folder;
    the model: what was committed first, and who holds what until when.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.now = 1000.0
        self.patch = mock.patch.object(tables, "monotonic", lambda: self.now)
        self.patch.start()
        self.committed: dict[int, float] = {}
        self.held: dict[int, tuple[str, float]] = {}
        self.caches: dict[str, EvaluationCache] = {}
        self.leasing: dict[str, SingleFlight] = {}
        self.serial = 0.0

    @initialize()
    def begin(self) -> None:
        for owner in "ab":
            self.open(owner)

    def open(self, owner: str) -> None:
        self.caches[owner] = EvaluationCache(self.folder / "c")
        self.leasing[owner] = self.caches[owner].single_flight()

    @rule(owner=owners, number=numbers)
    def acquire(self, owner: str, number: int) -> None:
        single_flight = self.leasing[owner]
        if key(number).digest in single_flight.owned:
            return
        found = single_flight.acquire([key(number)])
        free = number not in self.held or self.held[number][1] <= self.now
        if number in self.committed:
            assert found[key(number).digest].value == [[self.committed[number]]]
        else:
            assert found == {}
            assert (key(number).digest in single_flight.owned) == free
            if free:
                self.held[number] = owner, self.now + TTL

    @rule(owner=owners, number=numbers)
    def commit(self, owner: str, number: int) -> None:
        single_flight = self.leasing[owner]
        if key(number).digest not in single_flight.owned:
            return
        self.serial += 1
        stands = single_flight.commit(key(number), [[self.serial]])
        if self.held.get(number, ("", 0))[0] == owner:  # be it over: nobody has replaced it
            del self.held[number]
            self.committed.setdefault(number, self.serial)
        if number in self.committed:
            assert stands is not None
            assert stands.value == [[self.committed[number]]]
        else:
            assert stands is None

    @rule(owner=owners, number=numbers)
    def release(self, owner: str, number: int) -> None:
        self.leasing[owner].release([key(number)])
        if self.held.get(number, ("", 0))[0] == owner:
            del self.held[number]

    @rule(owner=owners)
    def crash(self, owner: str) -> None:
        """As a killed process: no lease is released, but its lock dies with it."""
        cache = self.caches[owner]
        cache._closed.set()
        lock = cache._liveness._lock
        assert lock is not None
        lock.release()
        self.held = {number: held for number, held in self.held.items() if held[0] != owner}
        self.open(owner)

    @rule(owner=owners)
    def reopen(self, owner: str) -> None:
        self.caches[owner].close()
        self.held = {number: held for number, held in self.held.items() if held[0] != owner}
        self.open(owner)

    @rule(owner=owners)
    def renew(self, owner: str) -> None:
        self.caches[owner]._renew()
        for number, (holder, _) in list(self.held.items()):
            if holder == owner:
                self.held[number] = owner, self.now + TTL

    @rule(seconds=st.sampled_from([0.1, 30.0, 59.0, 61.0, 3600.0]))
    def the_clock_jumps(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=numbers, owner=owners)
    def get(self, number: int, owner: str) -> None:
        entry = self.caches[owner].get(key(number))
        assert (entry.value if entry else None) == (
            [[self.committed[number]]] if number in self.committed else None
        )

    @invariant()
    def counts_agree(self) -> None:
        if self.caches:
            assert len(self.caches["a"]) == len(self.committed)

    def teardown(self) -> None:
        for cache in self.caches.values():
            cache.close()
        self.patch.stop()
        shutil.rmtree(self.folder)


TestCache = StoreMachine.TestCase
TestCache.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
