"""The benchmarks' kills and attacks, shortened."""

import pytest

from benchmarks import durability, postgres


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_twenty_kills_lose_nothing_and_repeat_nothing(backend: str) -> None:
    if backend == "postgresql" and not postgres.AVAILABLE:
        pytest.skip("PostgreSQL's server is not installed")
    with durability.ground(backend) as (place, _):
        died = durability.kill_searches(place, 20, trials=30)
        found = durability.checked(place)
    assert died >= 20
    assert found["acknowledged"] > 100
    assert (found["lost"], found["repeated"], found["alarms"]) == (0, 0, 0)
    assert found["extra"] <= died


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_one_of_many_computes_and_the_stopped_are_refused(backend: str) -> None:
    if backend == "postgresql" and not postgres.AVAILABLE:
        pytest.skip("PostgreSQL's server is not installed")
    with durability.ground(backend) as (place, _):
        assert durability.single_flight(place, 4, 60) == 60
        assert durability.fencing(place, 5) == (0, 5)
