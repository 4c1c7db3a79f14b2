"""The tables of the service. `migrations` makes them; a test compares both."""

from typing import Any

import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnClause,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    TableClause,
    Text,
    column,
)

from prunesearch.cache.tables import PREFIX

METADATA = MetaData()
JOB_RECORDS = Table(
    f"{PREFIX}job_records",
    METADATA,
    Column("job", String(64), primary_key=True),
    Column("study", String(512), nullable=False, index=True),
    Column("submitted_by", String(100), nullable=False, index=True),
    Column("created", Float, nullable=False, index=True),
    Column("command", String(16), nullable=False),
    Column("trials", Integer, nullable=False),
    Column("request", Text, nullable=False),  # the JSON document that was submitted
    Column("stages", Text, nullable=False),  # a JSON list of `job.StageRecord`
    Column("progress", Text),  # the JSON object of a `job.JobProgress`
    Column("error", Text),
    Column("exported", Boolean, nullable=False),
    Column("paused", Boolean, nullable=False),  # a cancelled workflow is a paused job
    Column("stop_asked", Boolean, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Column("told", String(16), nullable=False, index=True),  # state in the last `state` event
    Column("last_event", BigInteger, nullable=False),
    Column("batch", String(32)),  # identifier of the events that were written last
)
"""What the service knows of a job beside its workflow.

A row is written in the transaction that puts the workflow into the queue.
"""
JOB_EVENTS = Table(
    f"{PREFIX}job_events",
    METADATA,
    Column("job", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("data", Text, nullable=False),
)
RUNNERS = Table(
    f"{PREFIX}runners",
    METADATA,
    Column("id", String(255), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process", String(255), nullable=False),  # of `studies.writer_process.this_process`
    Column("slots", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("started", Float, nullable=False),
    Column("seen", Float, nullable=False),  # time of the last sign of life
)
TOKENS = Table(
    f"{PREFIX}tokens",
    METADATA,
    Column("name", String(100), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("last_used", Float),
)
SESSIONS = Table(
    f"{PREFIX}sessions",
    METADATA,
    Column("hash", String(64), primary_key=True),
    Column("token_name", String(100), nullable=False, index=True),
    Column("csrf", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
)
AUDIT = Table(
    f"{PREFIX}audit",
    METADATA,
    Column("id", BigInteger().with_variant(sqlalchemy.Integer, "sqlite"), primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("who", String(100), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(512), nullable=False),
    Column("detail", Text, nullable=False),
    Column("address", String(64), nullable=False),
)


def workflow_table(dialect: str) -> TableClause:
    """Return the columns of DBOS's table of workflows that the service reads.

    The table is documented as one that may be queried. Only DBOS writes it. On PostgreSQL it is in
    the schema ``dbos``.

    Args:
        dialect: name of the database's dialect.
    """
    names = (
        *("workflow_uuid", "name", "status", "executor_id"),
        *("started_at_epoch_ms", "completed_at", "updated_at"),
    )
    columns: list[ColumnClause[Any]] = [column(name) for name in names]
    schema = "dbos" if dialect == "postgresql" else None
    return sqlalchemy.table("workflow_status", *columns, schema=schema)
