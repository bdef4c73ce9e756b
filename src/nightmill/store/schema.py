"""The tables of the store, with a CHECK for every rule a single row can break.

One metadata serves SQLite and Postgres; the migrations produce exactly this schema (a test compares them).

`sequence` counts insertions and orders rows that were created in the same second. A row that a cursor may
name is never deleted: files stay as tombstones (`deleted_at`), with `blob_key` NULL once their bytes are
gone. Statuses in index conditions are literals on purpose: SQLite uses a partial index only for a literal
match.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    column,
    desc,
    literal_column,
)

from nightmill.core.api_key import Scope
from nightmill.core.batch import HIGHEST_PRIORITY, LOWEST_PRIORITY, Status
from nightmill.core.file import Purpose, UploadStatus
from nightmill.core.legal_hold import HoldKind
from nightmill.store.columns import (
    counter_column,
    metadata,
    number_column,
    one_of,
    optional_number,
    optional_text,
    partial_index,
    seconds_column,
    sequence_column,
    text_column,
)
from nightmill.store.steps import COMPATIBILITY_TABLE

WAITING = literal_column("'waiting'", Text())
LEASED = literal_column("'leased'", Text())
DONE = literal_column("'done'", Text())
PENDING = literal_column("'pending'", Text())
IN_PROGRESS = literal_column("'in_progress'", Text())

IS_WAITING = "state = 'waiting'"
IS_LEASED = "state = 'leased'"
IS_SENDABLE = "status = 'in_progress' AND paused_at IS NULL"
IS_PAUSED = "status = 'in_progress' AND paused_at IS NOT NULL"
IS_SETTLED = "status = 'in_progress' AND segments_left = 0"
IS_LEASABLE = "status IN ('validating', 'finalizing', 'cancelling')"
IS_UNFINISHED = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
IS_OPEN_SLICE = "state <> 'done'"
IS_LIVE = "deleted_at IS NULL"
IS_TOMBSTONE_WITH_BLOB = "deleted_at IS NOT NULL AND blob_key IS NOT NULL"
IS_FINISHED_WITH_INDEX = (
    "status IN ('failed', 'completed', 'expired', 'cancelled') AND index_blob_key IS NOT NULL"
)
HAS_CANARY = "status = 'in_progress' AND canary_segments IS NOT NULL"
HAS_REPORT = "report_blob_key IS NOT NULL"


def _optional_limit(name: str) -> Column[int]:
    return Column(name, BigInteger, CheckConstraint(f"{name} >= 0", name=f"project_{name}"), nullable=True)


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
    sequence_column(),
    Column("id", Text, nullable=False, unique=True),
    text_column("project_id"),
    text_column("purpose"),
    text_column("filename"),
    number_column("size_bytes"),
    number_column("created_at"),
    optional_number("expires_at"),
    optional_text("blob_key"),
    optional_number("deleted_at"),
    CheckConstraint(one_of("purpose", Purpose), name="file_purpose"),
    CheckConstraint("size_bytes >= 0", name="file_size"),
    CheckConstraint("deleted_at IS NOT NULL OR blob_key IS NOT NULL", name="file_blob"),
    partial_index("file_by_age", "project_id", "created_at", "sequence", where=IS_LIVE),
    partial_index("file_by_purpose", "project_id", "purpose", "created_at", "sequence", where=IS_LIVE),
    partial_index("file_by_expiry", "expires_at", where=IS_LIVE),
    partial_index("file_unused", "sequence", where=IS_TOMBSTONE_WITH_BLOB),
    Index("file_by_blob", "blob_key"),
    sqlite_autoincrement=True,
)

upload = Table(
    "upload",
    metadata,
    sequence_column(),
    Column("id", Text, nullable=False, unique=True),
    text_column("project_id"),
    text_column("purpose"),
    text_column("filename"),
    text_column("mime_type"),
    number_column("size_bytes"),
    number_column("created_at"),
    number_column("expires_at"),
    text_column("status"),
    optional_number("file_expires_after_s"),
    optional_text("file_id"),
    CheckConstraint(one_of("purpose", Purpose), name="upload_purpose"),
    CheckConstraint(one_of("status", UploadStatus), name="upload_status"),
    CheckConstraint("size_bytes >= 0", name="upload_size"),
    CheckConstraint("(status = 'completed') = (file_id IS NOT NULL)", name="upload_file"),
    partial_index("upload_pending", "expires_at", where="status = 'pending'"),
    sqlite_autoincrement=True,
)

upload_part = Table(
    "upload_part",
    metadata,
    sequence_column(),
    Column("id", Text, nullable=False, unique=True),
    Column("upload_id", Text, ForeignKey("upload.id"), nullable=False),
    number_column("size_bytes"),
    number_column("created_at"),
    optional_text("blob_key"),
    CheckConstraint("size_bytes >= 0", name="upload_part_size"),
    Index("upload_part_by_upload", "upload_id"),
    partial_index("upload_part_by_blob", "blob_key", where="blob_key IS NOT NULL"),
    sqlite_autoincrement=True,
)

# A file's `blob_key` may name a list of blobs, its pieces. When it is deleted, `of_blob_key` is NULL.
piece = Table(
    "piece",
    metadata,
    Column("blob_key", Text, primary_key=True),
    optional_text("of_blob_key"),
    Index("piece_by_whole", "of_blob_key"),
)

batch = Table(
    "batch",
    metadata,
    sequence_column(),
    Column("id", Text, nullable=False, unique=True),
    text_column("project_id"),
    text_column("endpoint"),
    text_column("input_file_id"),
    text_column("input_blob_key"),
    optional_text("index_blob_key"),
    text_column("completion_window"),
    number_column("created_at"),
    number_column("expires_at"),
    text_column("status"),
    optional_text("model"),
    optional_text("metadata"),
    optional_number("output_expires_after_s"),
    optional_text("errors"),
    optional_text("output_file_id"),
    optional_text("error_file_id"),
    counter_column("total"),
    *(counter_column(name) for name in TALLY_COLUMNS),
    optional_number("in_progress_at"),
    optional_number("finalizing_at"),
    optional_number("completed_at"),
    optional_number("failed_at"),
    optional_number("expired_at"),
    optional_number("cancelling_at"),
    optional_number("cancelled_at"),
    counter_column("segments_left"),
    counter_column("lease_token"),
    optional_text("lease_worker_id"),
    seconds_column("lease_expires_at", nullable=True),
    counter_column("input_bytes"),
    counter_column("enqueued_tokens"),
    optional_number("usage_day"),
    counter_column("priority", CheckConstraint(_PRIORITY_IS_ALLOWED, name="batch_priority")),
    optional_text("options"),
    optional_number("paused_at"),
    Column(
        "concurrency", BigInteger, CheckConstraint("concurrency > 0", name="batch_concurrency"), nullable=True
    ),
    optional_number("canary_segments"),
    optional_text("stop_reason"),
    counter_column("invalid", CheckConstraint("invalid >= 0", name="batch_invalid")),
    optional_text("report_blob_key"),
    counter_column("retries"),
    seconds_column("lines_wanted_until", nullable=True),
    CheckConstraint(one_of("status", Status), name="batch_status"),
    CheckConstraint(_TALLY_IS_POSITIVE, name="batch_tally"),
    CheckConstraint("total >= 0 AND completed + failed <= total", name="batch_total"),
    CheckConstraint("status <> 'completed' OR completed + failed = total", name="batch_complete"),
    CheckConstraint("status <> 'in_progress' OR index_blob_key IS NOT NULL", name="batch_index"),
    CheckConstraint("segments_left >= 0", name="batch_segments_left"),
    CheckConstraint("input_bytes >= 0 AND enqueued_tokens >= 0", name="batch_input"),
    CheckConstraint("(lease_worker_id IS NULL) = (lease_expires_at IS NULL)", name="batch_lease"),
    Index("batch_by_input", "input_file_id", "sequence"),
    Index("batch_by_age", "project_id", "created_at", "sequence"),
    partial_index("batch_unfinished", "status", where=IS_UNFINISHED),
    partial_index("batch_open", "project_id", where=IS_UNFINISHED),
    partial_index("batch_in_progress", "sequence", where=IS_SENDABLE),
    partial_index("batch_by_project", "project_id", "sequence", where=IS_SENDABLE),
    partial_index("batch_by_size", "project_id", "input_bytes", "sequence", where=IS_SENDABLE),
    partial_index("batch_by_priority", "project_id", desc(column("priority")), "sequence", where=IS_SENDABLE),
    partial_index("batch_by_model", "model", "sequence", where=IS_SENDABLE),
    partial_index("batch_by_deadline", "expires_at", where=IS_SENDABLE),
    partial_index("batch_paused", "expires_at", where=IS_PAUSED),
    partial_index("batch_settled", "sequence", where=IS_SETTLED),
    partial_index("batch_leasable", "sequence", where=IS_LEASABLE),
    partial_index("batch_pins", "input_blob_key", where=IS_UNFINISHED),
    partial_index("batch_index_unused", "index_blob_key", where=IS_FINISHED_WITH_INDEX),
    partial_index("batch_by_report", "report_blob_key", where=HAS_REPORT),
    partial_index("batch_with_canary", "sequence", where=HAS_CANARY),
    sqlite_autoincrement=True,
)

segment = Table(
    "segment",
    metadata,
    Column("batch_id", Text, ForeignKey("batch.id"), nullable=False),
    number_column("number"),
    number_column("first"),
    number_column("count"),
    text_column("state"),
    counter_column("token"),
    optional_text("worker_id"),
    seconds_column("lease_expires_at", nullable=True),
    text_column("pinned"),
    *(counter_column(name) for name in TALLY_COLUMNS),
    PrimaryKeyConstraint("batch_id", "number"),
    CheckConstraint("state IN ('waiting', 'leased', 'done')", name="segment_state"),
    CheckConstraint("number >= 0 AND first >= 0 AND count > 0 AND token >= 0", name="segment_range"),
    CheckConstraint(_TALLY_IS_POSITIVE, name="segment_tally"),
    CheckConstraint("completed + failed <= count", name="segment_answered"),
    CheckConstraint("state <> 'done' OR completed + failed = count", name="segment_done"),
    CheckConstraint(_LEASE_IS_WHOLE, name="segment_lease"),
    partial_index("segment_waiting", "batch_id", "number", where=IS_WAITING),
    partial_index("segment_leased", "batch_id", "worker_id", where=IS_LEASED),
    partial_index("segment_held", "worker_id", where=IS_LEASED),
    sqlite_with_rowid=False,
    # Renewing a lease changes no indexed column, so with room on its page a row is renewed in place.
    postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.01},
)

# Only a huge batch has slices, until it is published. They reference what was joined meanwhile.
slice_ = Table(
    "slice",
    metadata,
    Column("batch_id", Text, ForeignKey("batch.id"), nullable=False),
    number_column("number"),
    number_column("first"),
    number_column("count"),
    text_column("state"),
    counter_column("token"),
    optional_text("worker_id"),
    seconds_column("lease_expires_at", nullable=True),
    optional_text("output_blob_key"),
    counter_column("output_bytes"),
    optional_text("error_blob_key"),
    counter_column("error_bytes"),
    counter_column("lines"),
    counter_column("missing"),
    *(counter_column(name) for name in TALLY_COLUMNS),
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
    partial_index("slice_open", "batch_id", "number", where=IS_OPEN_SLICE),
    partial_index("slice_output", "output_blob_key", where="output_blob_key IS NOT NULL"),
    partial_index("slice_error", "error_blob_key", where="error_blob_key IS NOT NULL"),
)

api_key = Table(
    "api_key",
    metadata,
    sequence_column(),
    Column("id", Text, nullable=False, unique=True),
    text_column("project_id"),
    text_column("name"),
    Column("digest", Text, nullable=False, unique=True),
    text_column("hint"),
    number_column("created_at"),
    optional_number("revoked_at"),
    text_column("scope"),
    CheckConstraint(one_of("scope", Scope), name="api_key_scope"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    text_column("project_id"),
    text_column("operation"),
    text_column("key"),
    text_column("fingerprint"),
    text_column("object_id"),
    seconds_column("created_at"),
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
    counter_column("stored_bytes"),
    CheckConstraint("stored_bytes >= 0", name="project_stored_bytes"),
)

hold = Table(
    "hold",
    metadata,
    text_column("kind"),
    text_column("subject_id"),
    optional_text("reason"),
    number_column("created_at"),
    PrimaryKeyConstraint("kind", "subject_id"),
    CheckConstraint(one_of("kind", HoldKind), name="hold_kind"),
)

usage = Table(
    "usage",
    metadata,
    text_column("project_id"),
    text_column("model"),
    number_column("day"),
    *(counter_column(name) for name in USAGE_COLUMNS),
    PrimaryKeyConstraint("project_id", "model", "day"),
    CheckConstraint(" AND ".join(f"{name} >= 0" for name in USAGE_COLUMNS), name="usage_positive"),
    Index("usage_by_day", "day"),
)

audit = Table(
    "audit",
    metadata,
    sequence_column(),
    seconds_column("at"),
    text_column("actor"),
    optional_text("hint"),
    text_column("action"),
    optional_text("project_id"),
    text_column("subject_id"),
    optional_text("address"),
    optional_text("request_id"),
    optional_text("detail"),
    Index("audit_by_project", "project_id", "sequence"),
    Index("audit_by_age", "at"),
    sqlite_autoincrement=True,
)

# Random texts that all processes of one store share, such as the one that signs the cookies of the dashboard.
secret = Table("secret", metadata, Column("name", Text, primary_key=True), text_column("value"))

schema_compatibility = Table(COMPATIBILITY_TABLE, metadata, Column("oldest", Text, primary_key=True))
