"""The PostgreSQL server of the tests on the cache."""

from tests.cache.conftest import database, server

__all__ = ["database", "server"]
