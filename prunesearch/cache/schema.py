"""Makes and migrates the tables of the cache. The database may hold other tables, too."""

from pathlib import Path

from sqlalchemy import Connection, Engine

from prunesearch.cache.schema_history import SchemaHistory

VERSION_TABLE = "prunesearch_alembic_version"
HISTORY = SchemaHistory(
    Path(__file__).parent / "migrations",
    VERSION_TABLE,
    lock=0x70727573,  # "prus"
    title="the shared cache",
    option="cache",
)
"""The history of the cache's tables."""


def revision(connection: Connection) -> str | None:
    """Return the revision of the schema, or None if there are no tables yet."""
    return HISTORY.revision(connection)


def head() -> str:
    """Return the revision that this version of prunesearch works with."""
    return HISTORY.head()


def ensure(engine: Engine, name: str) -> None:
    """Make the tables, or migrate them to the schema of this version.

    Raises:
        StorageError: a newer prunesearch made the tables.
    """
    HISTORY.ensure(engine, name)
