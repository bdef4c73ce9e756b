"""Upstreams that are changed at run time, the limit that was found for each, and priorities of batches."""

from alembic import op
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from nightmill.store.migrate import create_tables

revision = "0002"
down_revision = "0001"

_IS_IN_PROGRESS = "status = 'in_progress'"
# A column with its rule in one statement: SQLite can't add a rule to a table.
_ADD_PRIORITY = (
    "ALTER TABLE batch ADD COLUMN priority BIGINT DEFAULT 0 NOT NULL"
    " CONSTRAINT batch_priority CHECK (priority BETWEEN -10 AND 10)"
)

_metadata = MetaData()

Table(
    "upstream_setting",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("document", Text),
    Column("state", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("changed_at", Double, nullable=False),
    CheckConstraint("state IN ('active', 'paused', 'draining', 'removed')", name="upstream_setting_state"),
    CheckConstraint("revision > 0", name="upstream_setting_revision"),
)

Table(
    "upstream_report",
    _metadata,
    Column("upstream", Text, nullable=False),
    Column("worker_id", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("reported_at", Double, nullable=False),
    PrimaryKeyConstraint("upstream", "worker_id"),
    Index("upstream_report_by_time", "reported_at"),
)


def upgrade() -> None:
    create_tables(op.get_bind(), _metadata)
    op.add_column("upstream", Column("limit_state", Text))
    op.execute(_ADD_PRIORITY)
    op.create_index(
        "batch_by_model",
        "batch",
        ["model", "sequence"],
        sqlite_where=text(_IS_IN_PROGRESS),
        postgresql_where=text(_IS_IN_PROGRESS),
    )
    op.create_index(
        "batch_by_priority",
        "batch",
        ["project_id", text("priority DESC"), "sequence"],
        sqlite_where=text(_IS_IN_PROGRESS),
        postgresql_where=text(_IS_IN_PROGRESS),
    )
