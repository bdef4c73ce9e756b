"""What is seen of a running batch, how it is steered, and webhooks."""

from collections.abc import Sequence

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
    TextClause,
    text,
)

from nightmill.store.migrate import create_tables

revision = "0003"
down_revision = "0002"

_HAS_CANARY = "status = 'in_progress' AND canary_segments IS NOT NULL"
_HAS_REPORT = "report_blob_key IS NOT NULL"
_IS_PENDING = "state = 'pending'"
_HAS_ENDED = "state <> 'pending'"
# A column with its rule in one statement: SQLite can't add a rule to a table.
_ADD_CONCURRENCY = (
    "ALTER TABLE batch ADD COLUMN concurrency BIGINT CONSTRAINT batch_concurrency CHECK (concurrency > 0)"
)
_ADD_INVALID = (
    "ALTER TABLE batch ADD COLUMN invalid BIGINT DEFAULT 0 NOT NULL"
    " CONSTRAINT batch_invalid CHECK (invalid >= 0)"
)

_IS_SENDABLE = "status = 'in_progress' AND paused_at IS NULL"
_IS_LEASED = "state = 'leased'"
_IS_PAUSED = "status = 'in_progress' AND paused_at IS NOT NULL"
# Of the batches in progress only those that are not paused are in these indexes.
_SENDABLE_INDEXES = {
    "batch_in_progress": ["sequence"],
    "batch_by_project": ["project_id", "sequence"],
    "batch_by_size": ["project_id", "input_bytes", "sequence"],
    "batch_by_priority": ["project_id", text("priority DESC"), "sequence"],
    "batch_by_model": ["model", "sequence"],
    "batch_by_deadline": ["expires_at"],
}

_metadata = MetaData()
_SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")


def _sequence() -> Column[int]:
    return Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _counter(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


Table(
    "batch_event",
    _metadata,
    _sequence(),
    _text("batch_id"),
    Column("at", Double, nullable=False),
    _text("kind"),
    Column("actor", Text),
    Column("detail", Text),
    Index("batch_event_by_batch", "batch_id", "sequence"),
    sqlite_autoincrement=True,
)

Table(
    "batch_sample",
    _metadata,
    _text("batch_id"),
    Column("at", Double, nullable=False),
    *(_counter(name) for name in ("completed", "failed", "input_tokens", "output_tokens", "in_flight")),
    PrimaryKeyConstraint("batch_id", "at"),
)

Table(
    "batch_report",
    _metadata,
    _text("batch_id"),
    _text("document"),
    Column("reported_at", Double, nullable=False),
    PrimaryKeyConstraint("batch_id"),
)

Table(
    "line_report",
    _metadata,
    _text("batch_id"),
    _number("number"),
    _number("token"),
    _text("document"),
    Column("reported_at", Double, nullable=False),
    PrimaryKeyConstraint("batch_id", "number"),
)

Table(
    "batch_origin",
    _metadata,
    _text("batch_id"),
    _text("origin_id"),
    _number("first"),
    _number("count"),
    PrimaryKeyConstraint("batch_id", "origin_id"),
    Index("batch_origin_by_origin", "origin_id"),
)

Table(
    "process_counts",
    _metadata,
    Column("process_id", Text, primary_key=True),
    _text("document"),
    Column("reported_at", Double, nullable=False),
)

Table(
    "webhook_endpoint",
    _metadata,
    _sequence(),
    Column("id", Text, nullable=False, unique=True),
    _text("project_id"),
    _text("name"),
    _text("url"),
    _text("event_types"),
    _number("created_at"),
    Column("updated_at", BigInteger),
    Column("deleted_at", BigInteger),
    _text("signing_secret"),
    Column("old_signing_secret", Text),
    Column("old_secret_expires_at", BigInteger),
    Index("webhook_endpoint_by_age", "project_id", "created_at", "sequence"),
    sqlite_autoincrement=True,
)

Table(
    "webhook_delivery",
    _metadata,
    _sequence(),
    Column("id", Text, nullable=False, unique=True),
    _text("endpoint_id"),
    _text("event_id"),
    _text("event_type"),
    Column("batch_id", Text),
    _text("payload"),
    _number("created_at"),
    _text("state"),
    _counter("attempt_count"),
    Column("attempts", Text),
    Column("next_at", Double, nullable=False),
    Column("retry_until", Double, nullable=False),
    _counter("token"),
    Column("worker_id", Text),
    Column("lease_expires_at", Double),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="webhook_delivery_state"),
    CheckConstraint("(worker_id IS NULL) = (lease_expires_at IS NULL)", name="webhook_delivery_lease"),
    Index("webhook_delivery_by_endpoint", "endpoint_id", "sequence"),
    Index(
        "webhook_delivery_pending",
        "next_at",
        sqlite_where=text(_IS_PENDING),
        postgresql_where=text(_IS_PENDING),
    ),
    Index(
        "webhook_delivery_ended",
        "created_at",
        sqlite_where=text(_HAS_ENDED),
        postgresql_where=text(_HAS_ENDED),
    ),
    sqlite_autoincrement=True,
)


def upgrade() -> None:
    create_tables(op.get_bind(), _metadata)
    op.add_column("batch", Column("options", Text))
    op.add_column("batch", Column("paused_at", BigInteger))
    op.execute(_ADD_CONCURRENCY)
    op.add_column("batch", Column("canary_segments", BigInteger))
    op.add_column("batch", Column("stop_reason", Text))
    op.execute(_ADD_INVALID)
    op.add_column("batch", Column("report_blob_key", Text))
    op.add_column("batch", _counter("retries"))
    op.add_column("batch", Column("lines_wanted_until", Double))
    _create_index("batch_by_report", ["report_blob_key"], _HAS_REPORT)
    _create_index("batch_with_canary", ["sequence"], _HAS_CANARY)
    for name, columns in _SENDABLE_INDEXES.items():
        op.drop_index(name, "batch")
        _create_index(name, columns, _IS_SENDABLE)
    _create_index("batch_paused", ["expires_at"], _IS_PAUSED)
    op.drop_index("segment_leased", "segment")
    _create_index("segment_leased", ["batch_id", "worker_id"], _IS_LEASED, table="segment")


def _create_index(
    name: str, columns: Sequence[str | TextClause], where: str, *, table: str = "batch"
) -> None:
    op.create_index(name, table, columns, sqlite_where=text(where), postgresql_where=text(where))
