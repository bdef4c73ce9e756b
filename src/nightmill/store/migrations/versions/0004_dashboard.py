"""What the dashboard needs: the secret that signs its cookies, and counts and texts of batches."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, MetaData, PrimaryKeyConstraint, Table, Text, text

from nightmill.store.batch_index_schema import FILL, create_triggers
from nightmill.store.migrate import create_tables

revision = "0004"
down_revision = "0003"

_metadata = MetaData()

Table("secret", _metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

# --- counts and texts of batches ---

_IS_UNFINISHED = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
_GROUP = ("project_id", "status", "is_paused", "endpoint", "model")
_COMPARED = ("status", "paused_at", "endpoint", "model", "priority")


def _group_columns() -> list[Column[Any]]:
    return [Column(name, BigInteger if name == "is_paused" else Text, nullable=False) for name in _GROUP]


Table(
    "batch_count",
    _metadata,
    *_group_columns(),
    Column("count", BigInteger, nullable=False),
    PrimaryKeyConstraint(*_GROUP),
)

Table(
    "batch_count_change",
    _metadata,
    Column("sequence", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    *_group_columns(),
    Column("change", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

Table(
    "batch_text",
    _metadata,
    Column("created_at", BigInteger, nullable=False),
    Column("batch_sequence", BigInteger, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("text", Text, nullable=False),
    PrimaryKeyConstraint("created_at", "batch_sequence"),
    sqlite_with_rowid=False,
)


def _count_and_index_batches() -> None:
    op.drop_index("batch_by_age", "batch")
    op.create_index("batch_by_age", "batch", ["project_id", "created_at", "sequence", *_COMPARED])
    op.create_index("batch_by_time", "batch", ["created_at", "sequence", *_COMPARED])
    op.drop_index("batch_open", "batch")
    op.create_index(
        "batch_open",
        "batch",
        ["project_id", "created_at", "sequence"],
        sqlite_where=text(_IS_UNFINISHED),
        postgresql_where=text(_IS_UNFINISHED),
    )
    for statement in FILL:
        op.execute(statement)
    create_triggers(op.get_bind())


def upgrade() -> None:
    create_tables(op.get_bind(), _metadata)
    _count_and_index_batches()
