"""Runs the migrations for Alembic, on the connection of `schema.ensure` and in its transaction."""

from alembic import context

from prunesearch.cache.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
