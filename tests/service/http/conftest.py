"""A service for each test of the HTTP interface."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http_service import HttpService, http_service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[HttpService]:
    """A service with jobs in memory."""
    with http_service(tmp_path) as started:
        yield started
