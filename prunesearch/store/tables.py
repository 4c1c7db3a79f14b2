"""Our tables, and how a database that holds them is connected to."""

from collections.abc import Sequence
from time import monotonic
from typing import Any

import sqlalchemy
from sqlalchemy import BigInteger, Column, Connection, Engine, Float, MetaData, String, Table, Text, event

PREFIX = "prunesearch_"
CLOCK = "prunesearch_clock"
"""The SQL function that SQLite is given for a clock."""
METADATA = MetaData()
EVALUATIONS = Table(
    f"{PREFIX}evaluations",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("stored", Float, nullable=False, index=True),
    Column("sealed", Text, nullable=False),
)
LEASES = Table(
    f"{PREFIX}leases",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("token", BigInteger, nullable=False),
    Column("expires", Float, nullable=False),
)
ALARMS = Table(
    f"{PREFIX}alarms",
    METADATA,
    Column("id", BigInteger().with_variant(sqlalchemy.Integer, "sqlite"), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("key", String(100), nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", Float, nullable=False),
)


def connect(url: str) -> Engine:
    """An engine for a database, with transactions that lock when they begin on SQLite."""
    if sqlalchemy.make_url(url).get_backend_name() == "sqlite":
        return sqlite_engine(url)
    engine = sqlalchemy.create_engine(
        url, pool_pre_ping=True, pool_size=2, max_overflow=2, connect_args=postgres_arguments(url)
    )

    @event.listens_for(engine, "begin")
    def limit(connection: Connection) -> None:
        # What hangs longer has lost its network; no statement of ours takes a second. For the transaction alone: a pool
        # such as PgBouncer hands the session on to other programs.
        connection.exec_driver_sql(
            "SELECT set_config('statement_timeout', '30s', true), "
            "set_config('idle_in_transaction_session_timeout', '60s', true)"
        )

    return engine


def postgres_arguments(url: str | sqlalchemy.URL) -> dict[str, Any]:
    """What a PostgreSQL driver is told beside the URL: to notice a dead connection, and to bear a pool of sessions.

    What the URL says goes before it.
    """
    parsed = sqlalchemy.make_url(url)
    if parsed.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    arguments: dict[str, Any] = {
        "connect_timeout": 5,
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    }
    if parsed.get_driver_name() == "psycopg":
        arguments["prepare_threshold"] = None  # prepared statements belong to a session, of which a pool has many
    return {name: value for name, value in arguments.items() if name not in parsed.query}


def sqlite_engine(url: str | sqlalchemy.URL, pragmas: Sequence[str] = ()) -> Engine:
    """An engine for a SQLite file. It has no clock that cannot jump, so it is given the host's monotonic one."""
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": 60})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:  # noqa: ANN401 (sqlite3's connection in SQLAlchemy's wrapper)
        connection.isolation_level = None  # the driver would begin late, and without the lock
        connection.create_function(CLOCK, 0, lambda: monotonic())
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
