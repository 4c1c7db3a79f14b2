"""A history of a database's tables: makes them, and migrates them to the present schema.

Each part of prunesearch that has tables has a history of its own, because one database may hold the
tables of several parts, and those of other programs too.
"""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from prunesearch.errors import StorageError


@dataclass(frozen=True)
class SchemaHistory:
    """The migrations of some tables.

    Attributes:
        migrations: folder of Alembic's migrations.
        version_table: table that holds the revision of the schema.
        lock: number of PostgreSQL's advisory lock, which is held while the schema changes.
        title: what the tables are called in messages, such as ``the shared cache``.
        option: option that names the database, for messages.
    """

    migrations: Path
    version_table: str
    lock: int
    title: str
    option: str

    def revision(self, connection: Connection) -> str | None:
        """Return the revision of the schema, or None if there are no tables yet."""
        if not sqlalchemy.inspect(connection).has_table(self.version_table):
            return None
        found: str | None = connection.exec_driver_sql(
            f"SELECT version_num FROM {self.version_table}"
        ).scalar()
        return found

    def head(self) -> str:
        """Return the revision that this version of prunesearch works with."""
        return str(self._scripts().get_current_head())

    def ensure(self, engine: Engine, name: str) -> None:
        """Make the tables, or migrate them to the schema of this version.

        Args:
            engine: database of the tables.
            name: name of the database in messages.

        Raises:
            StorageError: a newer prunesearch made the tables.
        """
        # 1. Most often there is nothing to do.
        with engine.connect() as connection:
            found = self.revision(connection)
        if found == self.head():
            return
        self._refuse_unknown(found, name)
        # 2. Otherwise lock the schema. On SQLite the transaction locks the whole file.
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self.lock})")
            found = self.revision(connection)
            # 3. Look again: another process may have been faster.
            if found == self.head():
                return
            self._refuse_unknown(found, name)
            config = self._config()
            config.attributes["connection"] = connection
            config.attributes["version_table"] = self.version_table
            command.upgrade(config, "head")

    def _refuse_unknown(self, found: str | None, name: str) -> None:
        known = {script.revision for script in self._scripts().walk_revisions()}
        if found is not None and found not in known:
            raise StorageError(
                f"{self.title} {name} was made by a newer prunesearch (schema {found}, known: "
                f"{self.head()}): "
                f"upgrade prunesearch on this machine, or give another `{self.option}`"
            )

    def _config(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(self.migrations).replace("%", "%%"))
        return config

    def _scripts(self) -> ScriptDirectory:
        return ScriptDirectory.from_config(self._config())
