"""Keys for the tests of the cache."""

from collections.abc import Callable

import pytest

from prunesearch.cache.keys import Key, evaluation_key


@pytest.fixture
def key() -> Callable[[int], Key]:
    """Makes keys by number."""
    return lambda number: evaluation_key(
        "f" * 64, f"blocks/6:{number}", {"kind": "calibration", "tokens": "t"}
    )
