"""Leases: one owner at a time, by the database's clock, fenced."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunesearch.cache import tables
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.folder_leases import folder_leases
from prunesearch.cache.keys import Key
from prunesearch.cache.leases import Leases
from prunesearch.cache.liveness import ProcessLiveness
from prunesearch.cache.shared_backend import SharedBackend
from tests.support.processes import FORK

MakeKey = Callable[[int], Key]


class Clock:
    """The host's monotonic clock, which tests turn."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(tables, "monotonic", turned.monotonic)
    return turned


@contextmanager
def committing(leases: Leases, owner: str, tokens: dict[str, int]) -> Iterator[set[str]]:
    with leases.held(owner, tokens) as (_, held):
        yield held


def test_a_lease_has_one_owner_until_it_runs_out(tmp_path: Path, clock: Clock) -> None:
    first, second = folder_leases(tmp_path, 10.0), folder_leases(tmp_path, 10.0)
    assert first.acquire("a", ["k", "l"]) == {"k": 1, "l": 1}
    assert second.acquire("b", ["k", "m"]) == {"m": 1}
    assert second.owners(["k", "l", "m"]) == {"a", "b"}
    assert first.acquire("a", ["k"]) == {}, "nor may its owner begin twice"
    clock.now += 9.9
    first.renew("a")
    clock.now += 9.9
    assert second.acquire("b", ["k"]) == {}, "renewed"
    assert first.count() == (2, 1)
    clock.now += 0.2
    assert second.acquire("b", ["k"]) == {"k": 2}
    first.renew("a")
    assert second.owners(["k"]) == {"b"}, "a late renewal brings nothing back"


def test_a_superseded_token_is_refused(tmp_path: Path, clock: Clock) -> None:
    leases = folder_leases(tmp_path, 10.0)
    stale = leases.acquire("a", ["k"])
    clock.now += 11
    fresh = leases.acquire("b", ["k"])
    with committing(leases, "a", stale) as held:
        assert held == set()
    with committing(leases, "b", stale) as held:
        assert held == set(), "the owner with an earlier token"
    with committing(leases, "b", fresh) as held:
        assert held == {"k"}
    assert leases.owners(["k"]) == set(), "a commit gives the lease back"


def test_an_owner_that_slept_but_was_not_replaced_goes_on(tmp_path: Path, clock: Clock) -> None:
    leases = folder_leases(tmp_path, 10.0)
    tokens = leases.acquire("a", ["k"])
    clock.now += 100
    with committing(leases, "a", tokens) as held:
        assert held == {"k"}


def test_leases_from_before_a_reboot_do_not_last(tmp_path: Path, clock: Clock) -> None:
    leases = folder_leases(tmp_path, 10.0)
    clock.now = 1e6
    leases.acquire("a", ["k"])
    clock.now = 5.0  # the monotonic clock begins anew
    assert leases.acquire("b", ["k"]) == {"k": 2}


def test_owners_learn_once_who_holds_keys_and_who_waits_for_theirs(
    tmp_path: Path, clock: Clock
) -> None:
    leases = folder_leases(tmp_path, 10.0)
    first, second = "a" * 32, "b" * 32
    leases.acquire(first, ["k", "l"])
    found = leases.interest(second, ["k", "m"])
    assert (found.holders, found.waiting, found.others) == ({"k": first}, set(), {first})
    leases.announce(second, [first, second])
    leases.announce(second, [first])
    assert leases.count() == (2, 0), "announcements are not leases"
    assert leases.interest("c" * 32, ["k"]).waiting == set()
    assert leases.interest(first, []).waiting == {second}
    assert leases.interest(first, []).waiting == set(), "it was told already"
    # Leases and announcements that have run out count no more.
    leases.announce(second, [first])
    clock.now += 10.0
    found = leases.interest(first, ["k"])
    assert (found.holders, found.waiting) == ({}, set())


def test_a_failed_commit_keeps_the_lease(tmp_path: Path) -> None:
    leases = folder_leases(tmp_path)
    tokens = leases.acquire("a", ["k"])
    with pytest.raises(ZeroDivisionError), leases.held("a", tokens):
        raise ZeroDivisionError
    assert leases.owners(["k"]) == {"a"}


def test_damaged_leases_are_made_anew(tmp_path: Path) -> None:
    (tmp_path / "leases.db").write_bytes(b"nonsense" * 1000)
    assert folder_leases(tmp_path).acquire("a", ["k"]) == {"k": 1}


def test_postgresql_keeps_the_time_itself(database: str) -> None:
    backend = SharedBackend(database)
    leases = Leases(backend.engine, backend.name, 60.0)
    assert leases.acquire("a", ["k", "l"]) == {"k": 1, "l": 1}
    assert leases.acquire("b", ["k"]) == {}
    # The leases were taken a minute earlier by the server's clock.
    with backend.engine.begin() as connection:
        connection.execute(tables.LEASES.update().values(expires=tables.LEASES.c.expires - 60.0))
    assert leases.acquire("b", ["k"]) == {"k": 2}
    with leases.held("a", {"k": 1, "l": 1}) as (_, held):
        assert held == {"l"}, "run out, and nobody else's yet"
    assert leases.sweep() == 0
    backend.close()


def test_a_dead_process_of_this_host_is_known_to_be_dead(tmp_path: Path) -> None:
    reader, writer = FORK.Pipe()

    def live() -> None:
        living = ProcessLiveness(tmp_path)
        writer.send(living.owner)
        time.sleep(60)

    process = FORK.Process(target=live)
    process.start()
    owner, owned = reader.recv(), ProcessLiveness(tmp_path)
    assert not owned.has_died(owner)
    assert not owned.has_died(owned.owner)
    assert not owned.has_died("0" * 32), "on another host, for all we know"
    assert not owned.has_died("../../etc/passwd")
    process.kill()
    process.join()
    assert owned.has_died(owner)
    assert owned.dead() == [owner]
    owned.forget(owner)
    assert not owned.has_died(owner)
    owned.close()
    assert list((tmp_path / "owners").iterdir()) == []


def test_what_a_killed_process_was_computing_is_taken_over_at_once(
    tmp_path: Path, key: MakeKey
) -> None:
    reader, writer = FORK.Pipe()

    def lease_and_hang() -> None:
        with EvaluationCache(tmp_path) as cache, cache.single_flight() as single_flight:
            single_flight.acquire([key(1)])
            writer.send(single_flight.owned)
            time.sleep(60)

    process = FORK.Process(target=lease_and_hang)
    process.start()
    assert reader.recv() == {key(1).digest}
    with EvaluationCache(tmp_path) as cache, cache.single_flight() as single_flight:
        single_flight.acquire([key(1)])
        assert single_flight.owned == set()
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        single_flight.acquire([key(1)])
        assert single_flight.owned == {key(1).digest}, "its lease would live for a minute"


def test_leases_are_renewed_while_their_owner_computes(tmp_path: Path, key: MakeKey) -> None:
    with (
        EvaluationCache(tmp_path, ttl=0.3) as first,
        EvaluationCache(tmp_path, ttl=0.3) as second,
        first.single_flight() as computing,
        second.single_flight() as waiting,
    ):
        computing.acquire([key(1)])
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            waiting.acquire([key(1)])
            waiting.wait(lambda: False)
        assert waiting.owned == set()
        assert computing.commit(key(1), 5) is not None
        assert waiting.acquire([key(1)])[key(1).digest].value == 5


@pytest.fixture
def full_leases(tmp_path: Path) -> Leases:
    """A file of several pages, opened."""
    leases = folder_leases(tmp_path)
    leases.acquire("a", [f"{i:064}" for i in range(300)])
    return leases


def damage(folder: Path) -> None:
    file = folder / "leases.db"
    content = bytearray(file.read_bytes())
    for at in range(4096, len(content), 4096):
        content[at : at + 4096] = b"\xff" * 4096
    file.write_bytes(content)


def test_a_file_of_leases_that_is_damaged_under_way_is_made_anew(
    tmp_path: Path, full_leases: Leases
) -> None:
    other = folder_leases(tmp_path)
    other.acquire("b", ["k"])
    damage(tmp_path)
    assert full_leases.count() == (0, 0), "what leases said is worth nothing by then"
    assert full_leases.acquire("a", ["k"]) == {"k": 1}
    assert other.acquire("b", ["k", "l"]) == {"l": 1}, "all processes see the new file"
    assert folder_leases(tmp_path).owners(["k", "l"]) == {"a", "b"}


def test_a_result_is_kept_though_the_leases_were_damaged(
    tmp_path: Path, full_leases: Leases
) -> None:
    tokens = full_leases.acquire("a", ["k"])
    damage(tmp_path)
    with committing(full_leases, "a", tokens) as held:
        assert held == {"k"}, "nobody else has claimed it since"
    tokens = full_leases.acquire("a", ["k"])
    full_leases.acquire("a", [f"{i:064}" for i in range(300)])
    with committing(full_leases, "a", tokens) as held:
        assert held == {"k"}
        damage(tmp_path)
    assert full_leases.acquire("b", ["k"]) == {"k": 1}


def test_the_keeper_outlives_what_goes_wrong(
    tmp_path: Path, key: MakeKey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renew, failures = Leases.renew, [KeyError("first"), ValueError("second")]

    def failing(self: Leases, owner: str) -> None:
        if failures:
            raise failures.pop()
        renew(self, owner)

    monkeypatch.setattr(Leases, "renew", failing)
    with EvaluationCache(tmp_path, ttl=0.3) as cache, cache.single_flight() as single_flight:
        single_flight.acquire([key(1)])
        end = time.monotonic() + 10
        while failures and time.monotonic() < end:
            time.sleep(0.05)
        assert not failures
        assert cache._renewal.is_alive()
        assert "tried again: ValueError: second" in caplog.text


def test_a_keeper_that_is_gone_is_replaced(tmp_path: Path, key: MakeKey) -> None:
    reader, writer = FORK.Pipe()
    with EvaluationCache(tmp_path) as cache, cache.single_flight() as single_flight:

        def acquire() -> None:  # a fork has no thread of its parent's
            single_flight.acquire([key(1)])
            writer.send(cache._renewal.is_alive())

        process = FORK.Process(target=acquire)
        process.start()
        assert reader.recv() is True
        process.join()
