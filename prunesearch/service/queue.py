"""The durable queue: how the service uses DBOS.

The processes that submit jobs have a client of the queue, and the runners execute the workflows.
Both meet in the database only. Values are stored as JSON, and no pickle is loaded: a row that says
that it is one is refused. Nothing is sent to other hosts, and no port is opened.
"""

import logging
from typing import NoReturn

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer
from dbos._serialization import DefaultSerializer
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache.location import shown
from prunesearch.cache.tables import TABLES_LOCK, advisory_lock, connect
from prunesearch.errors import StorageError, one_line
from prunesearch.runtime.masking import masked_text, printable

APPLICATION = "prunesearch"
QUEUE = "jobs"
WORKFLOW = "job"
"""Name of the workflow that is a job."""
VERSION = "1"
"""Version of the workflow, which is not that of prunesearch.

A runner takes only workflows of its own version. Raise the number if the steps of a job change, and
let runners of the earlier version finish their jobs.
"""
_CONNECTIONS = 16


def open_client(url: str) -> DBOSClient:
    """Open the queue for submitting and changing jobs, and make its tables if they are missing.

    Args:
        url: see `settings.ServiceSettings.database`.

    Raises:
        StorageError: the database cannot be used.
    """
    refuse_pickles()
    quiet_logger()
    try:
        client = DBOSClient(
            system_database_url=url,
            system_database_engine=_engine(url),
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            retry_connection_errors=False,
            lazy=True,
        )
        _make_tables(client, url)
    except SQLAlchemyError as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise StorageError(f"cannot open the queue in {shown(url)!r}: {reason}") from None
    return client


def close_client(client: DBOSClient) -> None:
    """Close a client of the queue with its connections."""
    client.destroy()
    # DBOS leaves an engine open that it did not make.
    client._sys_db.engine.dispose()


def configuration(url: str, executor: str) -> DBOSConfig:
    """Return the settings of DBOS in a runner.

    Args:
        url: see `settings.ServiceSettings.database`.
        executor: identifier of the runner.
    """
    refuse_pickles()
    quiet_logger()
    return {
        "name": APPLICATION,
        "system_database_url": url,
        "system_database_engine": _engine(url),
        "serializer": DBOSPortableJSONSerializer(),
        "executor_id": executor,
        "application_version": VERSION,
        # LISTEN needs a session of its own, which PgBouncer does not give in transaction mode.
        "use_listen_notify": False,
        # `open_client` makes the tables.
        "run_migrations": False,
        "enable_otlp": False,
        "log_level": "WARNING",
    }


def close(configured: DBOSConfig) -> None:
    """Shut DBOS down in this process, with its connections. Workflows must have ended before."""
    DBOS.destroy()
    if configured["system_database_engine"] is not None:
        configured["system_database_engine"].dispose()


def _engine(url: str) -> Engine | None:
    """Return the engine for a server.

    DBOS would set a session's settings, which a pool of sessions hands to other programs. For a
    SQLite file DBOS makes an engine itself, with its own transactions.
    """
    if sqlalchemy.make_url(url).get_backend_name() == "sqlite":
        return None
    return connect(url, connections=_CONNECTIONS)


def _make_tables(client: DBOSClient, url: str) -> None:
    """Make or migrate the tables of the queue, one process at a time."""
    database = client._sys_db  # no public function makes tables without notifications
    if database.engine.dialect.name != "postgresql":
        database.run_migrations()
        return
    # DBOS's own lock belongs to a session. This one belongs to a transaction.
    engine = connect(url)
    try:
        with advisory_lock(engine, TABLES_LOCK):
            database.run_migrations()
    finally:
        engine.dispose()


def refuse_pickles() -> None:
    """Make DBOS refuse pickles in this process.

    A row of the database says how its values are serialized. A row that says "pickle" would run the
    code that its writer chose.
    """

    def refuse(_: object, serialized_data: str) -> NoReturn:
        raise ValueError("a pickle in the queue was refused: only JSON is read")

    # The class is private, and there is no setting.
    DefaultSerializer.serialize = refuse  # type: ignore[assignment,method-assign]
    DefaultSerializer.deserialize = refuse  # type: ignore[assignment,method-assign]


class _OneLine(logging.Formatter):
    """Formats a record of DBOS as one line without secrets and without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text} {type(record.exc_info[1]).__name__}: {one_line(record.exc_info[1])}"
        return f"queue: {printable(masked_text(' '.join(text.split())))[:500]}"


def quiet_logger() -> None:
    """Let DBOS write one line for each warning to stderr."""
    logger = logging.getLogger("dbos")
    logger.propagate = False
    if not any(isinstance(handler.formatter, _OneLine) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine())
        logger.handlers = [handler]
    logger.setLevel(logging.WARNING)
