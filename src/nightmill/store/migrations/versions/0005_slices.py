"""Slices: runs of a huge batch's segments that several finalizers join at once."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_SECONDS: sa.Double[float] = sa.Double()
_TALLY = (
    *("completed", "failed", "input_tokens", "cached_tokens"),
    *("output_tokens", "reasoning_tokens", "total_tokens"),
)


def upgrade() -> None:
    op.create_table(
        "slice",
        sa.Column("batch_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("number", "first", "count")),
        sa.Column("state", sa.Text(), nullable=False),
        _counter("token"),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", _SECONDS, nullable=True),
        sa.Column("output_blob_key", sa.Text(), nullable=True),
        _counter("output_bytes"),
        sa.Column("error_blob_key", sa.Text(), nullable=True),
        _counter("error_bytes"),
        _counter("lines"),
        _counter("missing"),
        *(_counter(name) for name in _TALLY),
        sa.CheckConstraint("state IN ('waiting', 'leased', 'done')", name="slice_state"),
        sa.CheckConstraint("number >= 0 AND first >= 0 AND count > 0 AND token >= 0", name="slice_range"),
        sa.CheckConstraint(" AND ".join(f"{name} >= 0" for name in _TALLY), name="slice_tally"),
        sa.CheckConstraint("completed + failed + missing = lines AND missing >= 0", name="slice_lines"),
        sa.CheckConstraint("(state = 'done') = (lines > 0)", name="slice_done"),
        sa.CheckConstraint(
            "(output_bytes > 0) = (output_blob_key IS NOT NULL)"
            " AND (error_bytes > 0) = (error_blob_key IS NOT NULL)",
            name="slice_pieces",
        ),
        sa.CheckConstraint(
            "(state = 'leased') = (worker_id IS NOT NULL)"
            " AND (state = 'leased') = (lease_expires_at IS NOT NULL)",
            name="slice_lease",
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"]),
        sa.PrimaryKeyConstraint("batch_id", "number"),
    )
    for name, columns, where in (
        ("slice_open", ["batch_id", "number"], "state <> 'done'"),
        ("slice_output", ["output_blob_key"], "output_blob_key IS NOT NULL"),
        ("slice_error", ["error_blob_key"], "error_blob_key IS NOT NULL"),
    ):
        op.create_index(name, "slice", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _counter(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)


def downgrade() -> None:
    op.drop_table("slice")
