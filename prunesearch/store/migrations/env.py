"""Run by Alembic: migrates over the connection that `schema.ensure` hands it, in that connection's transaction."""

from alembic import context

from prunesearch.store.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], version_table=VERSION_TABLE, transactional_ddl=True
)
context.run_migrations()
