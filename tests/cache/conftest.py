"""A PostgreSQL server of the tests' own, and keys."""

from collections.abc import Callable, Iterator

import pytest

from benchmarks import postgres
from prunesearch.cache.keys import Key, evaluation_key


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A throw-away server on loopback."""
    if not postgres.AVAILABLE:
        pytest.skip("PostgreSQL's server is not installed")
    with postgres.Server() as running:
        yield running


@pytest.fixture
def database(server: postgres.Server, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    return server.database(f"d{abs(hash(request.node.nodeid))}")


@pytest.fixture
def key() -> Callable[[int], Key]:
    """Makes keys by number."""
    return lambda number: evaluation_key(
        "f" * 64, f"blocks/6:{number}", {"kind": "calibration", "tokens": "t"}
    )
