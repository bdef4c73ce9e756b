"""The tables of the store, with a CHECK for every rule a single row can break.

One metadata serves SQLite and Postgres; the migrations produce exactly this schema (a test compares them).

`sequence` counts insertions and orders rows that were created in the same second. A row that a cursor may
name is never deleted: files stay as tombstones (`deleted_at`), with `blob_key` NULL once their bytes are
gone. Statuses in index conditions are literals on purpose: SQLite uses a partial index only for a literal
match.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    column,
    desc,
    literal_column,
    text,
)

from nightmill.core.api_key import Scope
from nightmill.core.batch import HIGHEST_PRIORITY, LOWEST_PRIORITY, Status
from nightmill.core.file import Purpose, UploadStatus
from nightmill.core.legal_hold import HoldKind
from nightmill.core.upstream_setting import UpstreamState
from nightmill.store.steps import COMPATIBILITY_TABLE

WAITING = literal_column("'waiting'", Text())
LEASED = literal_column("'leased'", Text())
DONE = literal_column("'done'", Text())
PENDING = literal_column("'pending'", Text())
IN_PROGRESS = literal_column("'in_progress'", Text())

IS_WAITING = "state = 'waiting'"
IS_LEASED = "state = 'leased'"
IS_IN_PROGRESS = "status = 'in_progress'"
IS_SETTLED = "status = 'in_progress' AND segments_left = 0"
IS_LEASABLE = "status IN ('validating', 'finalizing', 'cancelling')"
IS_UNFINISHED = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
IS_OPEN_SLICE = "state <> 'done'"
IS_LIVE = "deleted_at IS NULL"
IS_TOMBSTONE_WITH_BLOB = "deleted_at IS NOT NULL AND blob_key IS NOT NULL"
IS_FINISHED_WITH_INDEX = (
    "status IN ('failed', 'completed', 'expired', 'cancelled') AND index_blob_key IS NOT NULL"
)

metadata = MetaData()

_Sequence = BigInteger().with_variant(Integer(), "sqlite")


def _one_of(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def _sequence() -> Column[int]:
    return Column("sequence", _Sequence, primary_key=True, autoincrement=True)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _optional_text(name: str) -> Column[str]:
    return Column(name, Text, nullable=True)


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _counter(name: str, *rules: CheckConstraint) -> Column[int]:
    return Column(name, BigInteger, *rules, nullable=False, server_default=text("0"))


def _optional_number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=True)


def _optional_limit(name: str) -> Column[int]:
    return Column(name, BigInteger, CheckConstraint(f"{name} >= 0", name=f"project_{name}"), nullable=True)


def _seconds(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


def _partial_index(name: str, *columns: str | ColumnElement[Any], where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


TALLY_COLUMNS = (
    "completed",
    "failed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "total_tokens",
)
USAGE_COLUMNS = ("batches", "requests", *TALLY_COLUMNS)
LIMIT_COLUMNS = (
    "open_batches_limit",
    "open_lines_limit",
    "open_bytes_limit",
    "stored_bytes_limit",
    "enqueued_tokens_limit",
)
_LEASE_IS_WHOLE = (
    "(state = 'leased') = (worker_id IS NOT NULL) AND (state = 'leased') = (lease_expires_at IS NOT NULL)"
)
_PRIORITY_IS_ALLOWED = f"priority BETWEEN {LOWEST_PRIORITY} AND {HIGHEST_PRIORITY}"
_TALLY_IS_POSITIVE = " AND ".join(f"{name} >= 0" for name in TALLY_COLUMNS)

file = Table(
    "file",
    metadata,
    _sequence(),
    Column("id", Text, nullable=False, unique=True),
    _text("project_id"),
    _text("purpose"),
    _text("filename"),
    _number("size_bytes"),
    _number("created_at"),
    _optional_number("expires_at"),
    _optional_text("blob_key"),
    _optional_number("deleted_at"),
    CheckConstraint(_one_of("purpose", Purpose), name="file_purpose"),
    CheckConstraint("size_bytes >= 0", name="file_size"),
    CheckConstraint("deleted_at IS NOT NULL OR blob_key IS NOT NULL", name="file_blob"),
    _partial_index("file_by_age", "project_id", "created_at", "sequence", where=IS_LIVE),
    _partial_index("file_by_purpose", "project_id", "purpose", "created_at", "sequence", where=IS_LIVE),
    _partial_index("file_by_expiry", "expires_at", where=IS_LIVE),
    _partial_index("file_unused", "sequence", where=IS_TOMBSTONE_WITH_BLOB),
    Index("file_by_blob", "blob_key"),
    sqlite_autoincrement=True,
)

upload = Table(
    "upload",
    metadata,
    _sequence(),
    Column("id", Text, nullable=False, unique=True),
    _text("project_id"),
    _text("purpose"),
    _text("filename"),
    _text("mime_type"),
    _number("size_bytes"),
    _number("created_at"),
    _number("expires_at"),
    _text("status"),
    _optional_number("file_expires_after_s"),
    _optional_text("file_id"),
    CheckConstraint(_one_of("purpose", Purpose), name="upload_purpose"),
    CheckConstraint(_one_of("status", UploadStatus), name="upload_status"),
    CheckConstraint("size_bytes >= 0", name="upload_size"),
    CheckConstraint("(status = 'completed') = (file_id IS NOT NULL)", name="upload_file"),
    _partial_index("upload_pending", "expires_at", where="status = 'pending'"),
    sqlite_autoincrement=True,
)

upload_part = Table(
    "upload_part",
    metadata,
    _sequence(),
    Column("id", Text, nullable=False, unique=True),
    Column("upload_id", Text, ForeignKey("upload.id"), nullable=False),
    _number("size_bytes"),
    _number("created_at"),
    _optional_text("blob_key"),
    CheckConstraint("size_bytes >= 0", name="upload_part_size"),
    Index("upload_part_by_upload", "upload_id"),
    _partial_index("upload_part_by_blob", "blob_key", where="blob_key IS NOT NULL"),
    sqlite_autoincrement=True,
)

# A file's `blob_key` may name a list of blobs, its pieces. When it is deleted, `of_blob_key` is NULL.
piece = Table(
    "piece",
    metadata,
    Column("blob_key", Text, primary_key=True),
    _optional_text("of_blob_key"),
    Index("piece_by_whole", "of_blob_key"),
)

batch = Table(
    "batch",
    metadata,
    _sequence(),
    Column("id", Text, nullable=False, unique=True),
    _text("project_id"),
    _text("endpoint"),
    _text("input_file_id"),
    _text("input_blob_key"),
    _optional_text("index_blob_key"),
    _text("completion_window"),
    _number("created_at"),
    _number("expires_at"),
    _text("status"),
    _optional_text("model"),
    _optional_text("metadata"),
    _optional_number("output_expires_after_s"),
    _optional_text("errors"),
    _optional_text("output_file_id"),
    _optional_text("error_file_id"),
    _counter("total"),
    *(_counter(name) for name in TALLY_COLUMNS),
    _optional_number("in_progress_at"),
    _optional_number("finalizing_at"),
    _optional_number("completed_at"),
    _optional_number("failed_at"),
    _optional_number("expired_at"),
    _optional_number("cancelling_at"),
    _optional_number("cancelled_at"),
    _counter("segments_left"),
    _counter("lease_token"),
    _optional_text("lease_worker_id"),
    _seconds("lease_expires_at", nullable=True),
    _counter("input_bytes"),
    _counter("enqueued_tokens"),
    _optional_number("usage_day"),
    _counter("priority", CheckConstraint(_PRIORITY_IS_ALLOWED, name="batch_priority")),
    CheckConstraint(_one_of("status", Status), name="batch_status"),
    CheckConstraint(_TALLY_IS_POSITIVE, name="batch_tally"),
    CheckConstraint("total >= 0 AND completed + failed <= total", name="batch_total"),
    CheckConstraint("status <> 'completed' OR completed + failed = total", name="batch_complete"),
    CheckConstraint("status <> 'in_progress' OR index_blob_key IS NOT NULL", name="batch_index"),
    CheckConstraint("segments_left >= 0", name="batch_segments_left"),
    CheckConstraint("input_bytes >= 0 AND enqueued_tokens >= 0", name="batch_input"),
    CheckConstraint("(lease_worker_id IS NULL) = (lease_expires_at IS NULL)", name="batch_lease"),
    Index("batch_by_age", "project_id", "created_at", "sequence"),
    _partial_index("batch_unfinished", "status", where=IS_UNFINISHED),
    _partial_index("batch_open", "project_id", where=IS_UNFINISHED),
    _partial_index("batch_in_progress", "sequence", where=IS_IN_PROGRESS),
    _partial_index("batch_by_project", "project_id", "sequence", where=IS_IN_PROGRESS),
    _partial_index("batch_by_size", "project_id", "input_bytes", "sequence", where=IS_IN_PROGRESS),
    _partial_index(
        "batch_by_priority", "project_id", desc(column("priority")), "sequence", where=IS_IN_PROGRESS
    ),
    _partial_index("batch_by_model", "model", "sequence", where=IS_IN_PROGRESS),
    _partial_index("batch_by_deadline", "expires_at", where=IS_IN_PROGRESS),
    _partial_index("batch_settled", "sequence", where=IS_SETTLED),
    _partial_index("batch_leasable", "sequence", where=IS_LEASABLE),
    _partial_index("batch_pins", "input_blob_key", where=IS_UNFINISHED),
    _partial_index("batch_index_unused", "index_blob_key", where=IS_FINISHED_WITH_INDEX),
    sqlite_autoincrement=True,
)

segment = Table(
    "segment",
    metadata,
    Column("batch_id", Text, ForeignKey("batch.id"), nullable=False),
    _number("number"),
    _number("first"),
    _number("count"),
    _text("state"),
    _counter("token"),
    _optional_text("worker_id"),
    _seconds("lease_expires_at", nullable=True),
    _text("pinned"),
    *(_counter(name) for name in TALLY_COLUMNS),
    PrimaryKeyConstraint("batch_id", "number"),
    CheckConstraint("state IN ('waiting', 'leased', 'done')", name="segment_state"),
    CheckConstraint("number >= 0 AND first >= 0 AND count > 0 AND token >= 0", name="segment_range"),
    CheckConstraint(_TALLY_IS_POSITIVE, name="segment_tally"),
    CheckConstraint("completed + failed <= count", name="segment_answered"),
    CheckConstraint("state <> 'done' OR completed + failed = count", name="segment_done"),
    CheckConstraint(_LEASE_IS_WHOLE, name="segment_lease"),
    _partial_index("segment_waiting", "batch_id", "number", where=IS_WAITING),
    _partial_index("segment_leased", "batch_id", where=IS_LEASED),
    _partial_index("segment_held", "worker_id", where=IS_LEASED),
    sqlite_with_rowid=False,
    # Renewing a lease changes no indexed column, so with room on its page a row is renewed in place.
    postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.01},
)

# Only a huge batch has slices, until it is published. They reference what was joined meanwhile.
slice_ = Table(
    "slice",
    metadata,
    Column("batch_id", Text, ForeignKey("batch.id"), nullable=False),
    _number("number"),
    _number("first"),
    _number("count"),
    _text("state"),
    _counter("token"),
    _optional_text("worker_id"),
    _seconds("lease_expires_at", nullable=True),
    _optional_text("output_blob_key"),
    _counter("output_bytes"),
    _optional_text("error_blob_key"),
    _counter("error_bytes"),
    _counter("lines"),
    _counter("missing"),
    *(_counter(name) for name in TALLY_COLUMNS),
    PrimaryKeyConstraint("batch_id", "number"),
    CheckConstraint("state IN ('waiting', 'leased', 'done')", name="slice_state"),
    CheckConstraint("number >= 0 AND first >= 0 AND count > 0 AND token >= 0", name="slice_range"),
    CheckConstraint(_TALLY_IS_POSITIVE, name="slice_tally"),
    CheckConstraint("completed + failed + missing = lines AND missing >= 0", name="slice_lines"),
    CheckConstraint("(state = 'done') = (lines > 0)", name="slice_done"),
    CheckConstraint(
        "(output_bytes > 0) = (output_blob_key IS NOT NULL)"
        " AND (error_bytes > 0) = (error_blob_key IS NOT NULL)",
        name="slice_pieces",
    ),
    CheckConstraint(_LEASE_IS_WHOLE, name="slice_lease"),
    _partial_index("slice_open", "batch_id", "number", where=IS_OPEN_SLICE),
    _partial_index("slice_output", "output_blob_key", where="output_blob_key IS NOT NULL"),
    _partial_index("slice_error", "error_blob_key", where="error_blob_key IS NOT NULL"),
)

api_key = Table(
    "api_key",
    metadata,
    _sequence(),
    Column("id", Text, nullable=False, unique=True),
    _text("project_id"),
    _text("name"),
    Column("digest", Text, nullable=False, unique=True),
    _text("hint"),
    _number("created_at"),
    _optional_number("revoked_at"),
    _text("scope"),
    CheckConstraint(_one_of("scope", Scope), name="api_key_scope"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    _text("project_id"),
    _text("operation"),
    _text("key"),
    _text("fingerprint"),
    _text("object_id"),
    _seconds("created_at"),
    PrimaryKeyConstraint("project_id", "operation", "key"),
    CheckConstraint("operation IN ('add_file', 'create_batch')", name="idempotency_operation"),
    Index("idempotency_by_age", "created_at"),
)

# What the operator has set for a project (NULL: as the settings say), and how much it stores. The row is also
# the lock for decisions about the project.
project = Table(
    "project",
    metadata,
    Column("id", Text, primary_key=True),
    *(_optional_limit(name) for name in LIMIT_COLUMNS),
    _optional_limit("input_ttl_s"),
    _optional_limit("output_ttl_s"),
    _counter("stored_bytes"),
    CheckConstraint("stored_bytes >= 0", name="project_stored_bytes"),
)

hold = Table(
    "hold",
    metadata,
    _text("kind"),
    _text("subject_id"),
    _optional_text("reason"),
    _number("created_at"),
    PrimaryKeyConstraint("kind", "subject_id"),
    CheckConstraint(_one_of("kind", HoldKind), name="hold_kind"),
)

usage = Table(
    "usage",
    metadata,
    _text("project_id"),
    _text("model"),
    _number("day"),
    *(_counter(name) for name in USAGE_COLUMNS),
    PrimaryKeyConstraint("project_id", "model", "day"),
    CheckConstraint(" AND ".join(f"{name} >= 0" for name in USAGE_COLUMNS), name="usage_positive"),
    Index("usage_by_day", "day"),
)

audit = Table(
    "audit",
    metadata,
    _sequence(),
    _seconds("at"),
    _text("actor"),
    _optional_text("hint"),
    _text("action"),
    _optional_text("project_id"),
    _text("subject_id"),
    _optional_text("address"),
    _optional_text("request_id"),
    _optional_text("detail"),
    Index("audit_by_project", "project_id", "sequence"),
    Index("audit_by_age", "at"),
    sqlite_autoincrement=True,
)

schema_compatibility = Table(COMPATIBILITY_TABLE, metadata, Column("oldest", Text, primary_key=True))

# The row is the lock for the slot requests of all workers. `limit_state` is the JSON of a `LimitState`.
upstream = Table("upstream", metadata, Column("name", Text, primary_key=True), _optional_text("limit_state"))

upstream_grant = Table(
    "upstream_grant",
    metadata,
    Column("upstream", Text, ForeignKey("upstream.name"), nullable=False),
    _text("worker_id"),
    _number("slots"),
    _number("wanted"),
    _seconds("expires_at"),
    PrimaryKeyConstraint("upstream", "worker_id"),
    CheckConstraint("slots >= 0 AND wanted >= 0", name="upstream_grant_size"),
    Index("upstream_grant_by_worker", "worker_id"),
)

# `document` is the JSON of the upstream's settings, its key included; NULL means as in the settings file.
upstream_setting = Table(
    "upstream_setting",
    metadata,
    Column("name", Text, primary_key=True),
    _optional_text("document"),
    _text("state"),
    _number("revision"),
    _seconds("changed_at"),
    CheckConstraint(_one_of("state", UpstreamState), name="upstream_setting_state"),
    CheckConstraint("revision > 0", name="upstream_setting_revision"),
)

# `document` is the JSON of an `UpstreamReport`.
upstream_report = Table(
    "upstream_report",
    metadata,
    _text("upstream"),
    _text("worker_id"),
    _text("document"),
    _seconds("reported_at"),
    PrimaryKeyConstraint("upstream", "worker_id"),
    Index("upstream_report_by_time", "reported_at"),
)
