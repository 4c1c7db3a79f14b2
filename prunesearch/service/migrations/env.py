"""Runs the migrations for Alembic, on the connection of `schema_history.SchemaHistory.ensure` and
in its transaction.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    transactional_ddl=True,
)
context.run_migrations()
