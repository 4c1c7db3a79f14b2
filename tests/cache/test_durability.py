"""The benchmarks' kills and attacks, shortened."""

import signal

import pytest

from tests.support import killed_searches, postgres
from tests.support.formula import run_searches


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_ten_kills_lose_nothing_and_repeat_nothing(backend: str) -> None:
    if backend == "postgresql" and not postgres.AVAILABLE:
        pytest.skip("PostgreSQL's server is not installed")
    with killed_searches.ground(backend) as (place, _):
        died = killed_searches.kill_searches(place, 10, trials=20, pace=0.6)
        found = killed_searches.checked(place)
    assert died >= 10
    assert found["acknowledged"] > 50
    assert (found["lost"], found["repeated"], found["incidents"]) == (0, 0, 0)
    assert found["extra"] <= died


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_one_of_many_computes_and_the_stopped_are_refused(backend: str) -> None:
    if backend == "postgresql" and not postgres.AVAILABLE:
        pytest.skip("PostgreSQL's server is not installed")
    with killed_searches.ground(backend) as (place, _):
        assert killed_searches.single_flight(place, 4, 60) == 60
        assert killed_searches.fencing(place, 5) == (0, 5)


@pytest.mark.parametrize("point", killed_searches.FUSES)
def test_a_death_at_each_point_loses_nothing(point: str) -> None:
    with killed_searches.ground("sqlite") as (place, _):
        names = [("s", "pso", 0)]
        for fuse in ({point: 4}, {}):
            process = killed_searches.start(
                run_searches,
                place.location(0),
                place.storage,
                place.log(f"w{len(fuse)}"),
                names,
                8,
                fuse,
            )
            process.join()
            assert process.exitcode == (-signal.SIGKILL if fuse else 0)
        found = killed_searches.checked(place)
    assert (found["lost"], found["repeated"]) == (0, 0)
    assert found["stored"] == 16, "eight trials of two chunks"
    assert found["extra"] <= 1
