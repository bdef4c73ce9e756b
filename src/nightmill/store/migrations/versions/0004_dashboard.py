"""What the dashboard needs: the secret that signs its cookies, counts and texts of batches, and
actions on many batches.
"""

from typing import Any

from alembic import op
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

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


# --- actions on many batches ---

_IS_OPEN_ACTION = "state IN ('pending', 'running', 'undoing')"
_HAS_KEY = "client_key IS NOT NULL"
_RESULTS = "'changed', 'unchanged', 'refused', 'not_found', 'undone'"
_ACTION_COUNTERS = ("matched", "total", "place", "changed", "unchanged", "refused", "not_found", "undone")

Table(
    "bulk_action",
    _metadata,
    Column(
        "sequence",
        BigInteger().with_variant(Integer(), "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("id", Text, nullable=False, unique=True),
    Column("project_id", Text, nullable=False),
    Column("client_key", Text),
    Column("action", Text, nullable=False),
    Column("wanted", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("undo_actor", Text),
    Column("created_at", Double, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("ended_at", Double),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in _ACTION_COUNTERS),
    Column("note", Text),
    Column("runner_id", Text),
    Column("lease_expires_at", Double),
    CheckConstraint(
        "state IN ('pending', 'running', 'done', 'cancelled', 'undoing', 'undone')", name="bulk_action_state"
    ),
    CheckConstraint("total >= 0 AND total <= matched", name="bulk_action_total"),
    CheckConstraint("(runner_id IS NULL) = (lease_expires_at IS NULL)", name="bulk_action_lease"),
    Index(
        "bulk_action_open",
        "due_at",
        sqlite_where=text(_IS_OPEN_ACTION),
        postgresql_where=text(_IS_OPEN_ACTION),
    ),
    Index("bulk_action_by_project", "project_id", "sequence"),
    Index(
        "bulk_action_by_key",
        "project_id",
        "client_key",
        unique=True,
        sqlite_where=text(_HAS_KEY),
        postgresql_where=text(_HAS_KEY),
    ),
    sqlite_autoincrement=True,
)

Table(
    "bulk_action_item",
    _metadata,
    Column("action_id", Text, nullable=False),
    Column("batch_sequence", BigInteger, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("result", Text),
    Column("message", Text),
    Column("earlier", Text),
    Column("retry_id", Text),
    PrimaryKeyConstraint("action_id", "batch_sequence"),
    CheckConstraint(f"result IS NULL OR result IN ({_RESULTS})", name="bulk_action_item_result"),
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
