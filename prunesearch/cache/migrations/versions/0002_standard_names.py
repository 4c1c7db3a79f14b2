"""Standard names: an entry's text is `serialized`, and reports are `incidents`."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Rename the column and the table. The rows stay as they are."""
    op.alter_column("prunesearch_evaluations", "sealed", new_column_name="serialized")
    op.rename_table("prunesearch_alarms", "prunesearch_incidents")
