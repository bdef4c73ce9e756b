"""Tenants: limits, holds, usage, an audit log. Who may work here. Beats that renew a row in place."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SECONDS: sa.Double[float] = sa.Double()
_IS_UNFINISHED = sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')")
_IS_LEASED = sa.text("state = 'leased'")
_OPTIONAL = (
    "open_batches_limit",
    "open_lines_limit",
    "open_bytes_limit",
    "stored_bytes_limit",
    "enqueued_tokens_limit",
    "input_ttl_s",
    "output_ttl_s",
)
_USAGE = (
    *("batches", "requests", "completed", "failed", "input_tokens", "cached_tokens"),
    *("output_tokens", "reasoning_tokens", "total_tokens"),
)


def upgrade() -> None:
    op.create_table(
        "schema_compatibility",
        sa.Column("oldest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("oldest"),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.Text(), nullable=False),
        *(
            sa.Column(
                name,
                sa.BigInteger(),
                sa.CheckConstraint(f"{name} >= 0", name=f"project_{name}"),
                nullable=True,
            )
            for name in _OPTIONAL
        ),
        _counter("stored_bytes"),
        sa.CheckConstraint("stored_bytes >= 0", name="project_stored_bytes"),
        sa.PrimaryKeyConstraint("id"),
    )
    # What older processes add and delete from here on is counted by the step after the deploy.
    op.execute(
        "INSERT INTO project (id, stored_bytes) SELECT project_id, SUM(size_bytes) FROM file"
        " WHERE deleted_at IS NULL GROUP BY project_id"
    )
    op.create_table(
        "hold",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('project', 'file', 'batch')", name="hold_kind"),
        sa.PrimaryKeyConstraint("kind", "subject_id"),
    )
    op.create_table(
        "usage",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("day", sa.BigInteger(), nullable=False),
        *(_counter(name) for name in _USAGE),
        sa.CheckConstraint(" AND ".join(f"{name} >= 0" for name in _USAGE), name="usage_positive"),
        sa.PrimaryKeyConstraint("project_id", "model", "day"),
    )
    op.create_index("usage_by_day", "usage", ["day"])
    op.create_table(
        "audit",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("at", _SECONDS, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("sequence"),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_by_age", "audit", ["at"])
    op.create_index("audit_by_project", "audit", ["project_id", "sequence"])
    op.add_column(
        "api_key",
        sa.Column(
            "scope",
            sa.Text(),
            sa.CheckConstraint("scope IN ('project', 'admin')", name="api_key_scope"),
            server_default=sa.text("'project'"),
            nullable=False,
        ),
    )
    for name in ("input_bytes", "enqueued_tokens"):
        op.add_column("batch", _counter(name, sa.CheckConstraint(f"{name} >= 0", name=f"batch_{name}")))
    op.add_column("batch", sa.Column("usage_day", sa.BigInteger(), nullable=True))
    op.create_index(
        "batch_open",
        "batch",
        ["project_id"],
        sqlite_where=_IS_UNFINISHED,
        postgresql_where=_IS_UNFINISHED,
    )
    # Without the lease's end, which every beat moves.
    op.drop_index("segment_leased", "segment")
    op.create_index(
        "segment_leased", "segment", ["batch_id"], sqlite_where=_IS_LEASED, postgresql_where=_IS_LEASED
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE segment SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01)")


def _counter(name: str, *rules: sa.CheckConstraint) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), *rules, server_default=sa.text("0"), nullable=False)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE segment RESET (fillfactor, autovacuum_vacuum_scale_factor)")
    op.drop_index("segment_leased", "segment")
    op.create_index(
        "segment_leased",
        "segment",
        ["batch_id", "lease_expires_at"],
        sqlite_where=_IS_LEASED,
        postgresql_where=_IS_LEASED,
    )
    op.drop_index("batch_open", "batch")
    for name in ("usage_day", "enqueued_tokens", "input_bytes"):
        op.drop_column("batch", name)
    op.drop_column("api_key", "scope")
    for name in ("audit", "usage", "hold", "project", "schema_compatibility"):
        op.drop_table(name)
