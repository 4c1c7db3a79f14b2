"""The tables of the cache, and connections to a database that holds them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    MetaData,
    String,
    Table,
    Text,
    event,
)

PREFIX = "prunesearch_"
CLOCK = "prunesearch_clock"
"""Name of the SQL function that serves as a clock on SQLite."""
METADATA = MetaData()
EVALUATIONS = Table(
    f"{PREFIX}evaluations",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("stored", Float, nullable=False, index=True),
    # Databases have the older name of this column.
    Column("serialized", Text, nullable=False),
)
LEASES = Table(
    f"{PREFIX}leases",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("token", BigInteger, nullable=False),
    Column("expires", Float, nullable=False),
)
INCIDENTS = Table(
    f"{PREFIX}incidents",
    METADATA,
    Column("id", BigInteger().with_variant(sqlalchemy.Integer, "sqlite"), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("key", String(100), nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", Float, nullable=False),
)


def connect(url: str, connections: int = 4) -> Engine:
    """Return an engine for a database. On SQLite a transaction takes the lock when it begins.

    Args:
        url: URL of the database.
        connections: number of connections to a server that may be open at once.
    """
    if sqlalchemy.make_url(url).get_backend_name() == "sqlite":
        return sqlite_engine(url)
    engine = sqlalchemy.create_engine(
        url,
        pool_pre_ping=True,
        pool_size=2,
        max_overflow=connections - 2,
        connect_args=postgres_arguments(url),
    )

    # None of the statements takes a second. One that hangs longer has lost its network.
    limit_transactions(engine, 30)
    return engine


def limit_transactions(engine: Engine, seconds: int) -> None:
    """Let PostgreSQL end a statement that takes too long, and a transaction that was abandoned.

    The limits are set for each transaction only: a pool such as PgBouncer passes the session on to
    other programs.

    Args:
        engine: engine of a PostgreSQL database.
        seconds: longest time of a statement. A transaction may idle for 60 seconds. Then its locks
            are released, for its client is gone.
    """

    @event.listens_for(engine, "begin")
    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(
            f"SELECT set_config('statement_timeout', '{seconds}s', true), "
            "set_config('idle_in_transaction_session_timeout', '60s', true)"
        )


TABLES_LOCK = 0x70727374  # "prst"
"""Number of the lock that a process holds while Optuna or DBOS makes its tables.

They use further sessions meanwhile. With one lock for both, one process at a time needs several
sessions. With a lock for each, two processes could wait for the sessions of a small pool that the
other holds.
"""


@contextmanager
def advisory_lock(engine: Engine, number: int) -> Iterator[None]:
    """Hold one of PostgreSQL's advisory locks until the block ends.

    The lock belongs to a transaction, so it also holds through a pool of sessions. While a process
    waits it uses no session, so the holder of the lock can have several of a small pool.

    Args:
        engine: engine of a PostgreSQL database.
        number: number of the lock.
    """
    while True:
        with engine.begin() as connection:
            held = connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({number})")
            if held.scalar():
                # This transaction idles on purpose while others make tables.
                connection.exec_driver_sql(
                    "SELECT set_config('idle_in_transaction_session_timeout', '10min', true)"
                )
                yield
                return
        sleep(0.1)


def postgres_arguments(url: str | sqlalchemy.URL) -> dict[str, int | None]:
    """Return arguments for a PostgreSQL driver. Settings in the URL take precedence.

    With these arguments the driver notices a dead connection, and works over a pool of sessions.
    """
    parsed = sqlalchemy.make_url(url)
    if parsed.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    arguments: dict[str, int | None] = {
        "connect_timeout": 5,
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    }
    # Prepared statements belong to a session, and a pool uses many sessions.
    if parsed.get_driver_name() == "psycopg":
        arguments["prepare_threshold"] = None
    return {name: value for name, value in arguments.items() if name not in parsed.query}


def sqlite_engine(url: str | sqlalchemy.URL, pragmas: Sequence[str] = ()) -> Engine:
    """Return an engine for a SQLite file.

    SQLite's own clock can jump, so the connection gets the host's monotonic clock as a function.

    Args:
        url: URL of the file.
        pragmas: SQLite settings of each connection.
    """
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": 60})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:  # noqa: ANN401 (of sqlite3, wrapped)
        # Otherwise the driver would begin transactions late, and without the lock.
        connection.isolation_level = None
        connection.create_function(CLOCK, 0, lambda: monotonic())
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that only reads must not block writers.
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
