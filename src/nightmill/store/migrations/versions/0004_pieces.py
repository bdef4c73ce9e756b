"""Pieces: the blobs that a file's blob is made of."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "piece",
        sa.Column("blob_key", sa.Text(), nullable=False),
        sa.Column("of_blob_key", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("blob_key"),
    )
    op.create_index("piece_by_whole", "piece", ["of_blob_key"])


def downgrade() -> None:
    op.drop_table("piece")
