"""What the dashboard needs: the secret that signs its cookies, counts and texts of batches, actions on many
batches, samples of upstreams, what processes are, keys that may only read, and webhooks that are disabled.
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


# --- the scopes of keys -------------------------------------------------------------------------------------

_SCOPE_IS_KNOWN = "scope IN ('project', 'admin', 'read')"
_COPY = """
INSERT INTO api_key (sequence, id, project_id, name, digest, hint, created_at, revoked_at, scope)
SELECT sequence, id, project_id, name, digest, hint, created_at, revoked_at, scope FROM old_api_key"""
_keys = MetaData()

Table(
    "api_key",
    _keys,
    Column("sequence", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("project_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("scope", Text, nullable=False),
    CheckConstraint(_SCOPE_IS_KNOWN, name="api_key_scope"),
    sqlite_autoincrement=True,
)

# --- samples of upstreams ---

_SAMPLE_COUNTS = ("in_flight", "waiting", "answered", "refused", "failed", "output_tokens")

Table(
    "upstream_sample",
    _metadata,
    Column("upstream", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("concurrency_limit", BigInteger),
    Column("rule", Text),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in _SAMPLE_COUNTS),
    Column("engine_running", BigInteger),
    Column("engine_waiting", BigInteger),
    Column("kv_use", Double),
    PrimaryKeyConstraint("upstream", "at"),
    Index("upstream_sample_by_time", "at"),
)


def upgrade() -> None:
    create_tables(op.get_bind(), _metadata)
    _count_and_index_batches()
    _allow_keys_that_read()
    # Which batches use a file.
    op.create_index("batch_by_input", "batch", ["input_file_id", "sequence"])
    op.add_column("webhook_endpoint", Column("disabled_at", BigInteger))
    op.add_column("process_counts", Column("about", Text))


def _allow_keys_that_read() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint("api_key_scope", "api_key")
        op.create_check_constraint("api_key_scope", "api_key", _SCOPE_IS_KNOWN)
        return
    # SQLite can't change a rule of a table.
    op.execute("ALTER TABLE api_key RENAME TO old_api_key")
    create_tables(op.get_bind(), _keys)
    op.execute(_COPY)
    op.drop_table("old_api_key")
