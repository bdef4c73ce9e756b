"""Grants: each worker's part of an upstream's window."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SECONDS: sa.Double[float] = sa.Double()


def upgrade() -> None:
    op.create_table(
        "upstream",
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "upstream_grant",
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("slots", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", _SECONDS, nullable=False),
        sa.CheckConstraint("slots >= 0 AND wanted >= 0", name="upstream_grant_size"),
        sa.ForeignKeyConstraint(["upstream"], ["upstream.name"]),
        sa.PrimaryKeyConstraint("upstream", "worker_id"),
    )
    op.create_index("upstream_grant_by_worker", "upstream_grant", ["worker_id"])


def downgrade() -> None:
    op.drop_table("upstream_grant")
    op.drop_table("upstream")
