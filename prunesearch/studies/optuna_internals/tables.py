"""Optuna's tables for plain queries. This module does not import Optuna."""

import sqlalchemy
from sqlalchemy import Connection, column, table

STUDIES = table("studies", column("study_id"), column("study_name"))
STUDY_ATTRIBUTES = table(
    "study_user_attributes", column("study_id"), column("key"), column("value_json")
)
TRIALS = table("trials", column("trial_id"), column("study_id"), column("state"))
TRIAL_ATTRIBUTES = table(
    "trial_user_attributes", column("trial_id"), column("key"), column("value_json")
)
RUNNING = "RUNNING"
"""State of a trial that is being evaluated."""
NO_REVISION = "none"
"""The revision of a database without Optuna's tables."""
_VERSION_TABLE = "alembic_version"


def are_there(connection: Connection) -> bool:
    """Return whether a database has these tables."""
    needed = {part.name for part in (STUDIES, STUDY_ATTRIBUTES, TRIALS, TRIAL_ATTRIBUTES)}
    return needed <= set(sqlalchemy.inspect(connection).get_table_names())


def schema_revision(connection: Connection) -> str:
    """Return the revision of Optuna's schema in a database, or `NO_REVISION`."""
    if not sqlalchemy.inspect(connection).has_table(_VERSION_TABLE):
        return NO_REVISION
    return str(connection.exec_driver_sql(f"SELECT version_num FROM {_VERSION_TABLE}").scalar())
