"""The database of the service: opens it, and makes its tables and those of the queue."""

import time
from pathlib import Path

import sqlalchemy
from sqlalchemy import Engine, Float
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache.location import check_url, shown, sqlite_file
from prunesearch.cache.schema_history import SchemaHistory
from prunesearch.cache.tables import connect
from prunesearch.errors import StorageError, one_line

VERSION_TABLE = "prunesearch_service_alembic_version"
HISTORY = SchemaHistory(
    Path(__file__).parent / "migrations",
    VERSION_TABLE,
    lock=0x70727376,  # "prsv"
    title="the database of the service",
    option="storage",
)
"""The history of the service's tables."""


def open_database(url: str) -> Engine:
    """Open the database of the service, and make its tables.

    Args:
        url: see `settings.ServiceSettings.database`.

    Raises:
        StorageError: the database cannot be opened, or a newer prunesearch made its tables.
    """
    check_url(url)
    try:
        if file := sqlite_file(url):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        engine = connect(url)
        HISTORY.ensure(engine, shown(url))
    except OSError as error:
        raise StorageError(f"cannot write the database {shown(url)!r}: {error.strerror}") from None
    except SQLAlchemyError as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise StorageError(f"cannot open `storage` {shown(url)!r}: {reason}") from None
    except ImportError:
        raise StorageError(
            f"`storage` {shown(url)!r} needs a driver: pip install 'prunesearch[postgres]' and "
            f"write postgresql+psycopg://"
        ) from None
    return engine


def now(engine: Engine) -> sqlalchemy.ColumnElement[float]:
    """Return the time in seconds since 1970, by the clock of a database's host.

    A SQLite file is on this host, so it is this host's clock.
    """
    if engine.dialect.name == "postgresql":
        clock = sqlalchemy.extract("epoch", sqlalchemy.func.clock_timestamp())
        return sqlalchemy.cast(clock, Float)
    return sqlalchemy.literal(time.time(), Float)
