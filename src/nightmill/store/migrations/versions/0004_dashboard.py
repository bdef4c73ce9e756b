"""What the dashboard needs: the secret that signs its cookies."""

from alembic import op
from sqlalchemy import Column, MetaData, Table, Text

from nightmill.store.migrate import create_tables

revision = "0004"
down_revision = "0003"

_metadata = MetaData()

Table("secret", _metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))


def upgrade() -> None:
    create_tables(op.get_bind(), _metadata)
    # Which batches use a file.
    op.create_index("batch_by_input", "batch", ["input_file_id", "sequence"])
