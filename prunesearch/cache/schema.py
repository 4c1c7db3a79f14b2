"""Makes and migrates the tables of the cache. The database may hold other tables, too."""

from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from prunesearch.errors import StorageError

VERSION_TABLE = "prunesearch_alembic_version"
_LOCK = 0x70727573  # PostgreSQL's advisory lock while the schema changes: "prus"


def revision(connection: Connection) -> str | None:
    """Return the revision of the schema, or None if there are no tables yet."""
    if not sqlalchemy.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.exec_driver_sql(
        f"SELECT version_num FROM {VERSION_TABLE}"
    ).scalar()
    return found


def head() -> str:
    """Return the revision that this version of prunesearch works with."""
    return str(_scripts().get_current_head())


def ensure(engine: Engine, name: str) -> None:
    """Make the tables, or migrate them to the schema of this version.

    Raises:
        StorageError: a newer prunesearch made the tables.
    """
    # 1. Most often there is nothing to do.
    with engine.connect() as connection:
        found = revision(connection)
    if found == head():
        return
    _refuse_unknown(found, name)
    # 2. Otherwise lock the schema. On SQLite the transaction locks the whole file.
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        found = revision(connection)
        # 3. Look again: another process may have been faster.
        if found == head():
            return
        _refuse_unknown(found, name)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _refuse_unknown(found: str | None, name: str) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if found is not None and found not in known:
        raise StorageError(
            f"the shared cache {name} was made by a newer prunesearch (schema {found}, known: "
            f"{head()}): "
            "upgrade prunesearch on this machine, or give another `cache`"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
    )
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
