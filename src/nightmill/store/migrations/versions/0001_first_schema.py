"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SECONDS: sa.Double[float] = sa.Double()
_TALLY_IS_POSITIVE = (
    "completed >= 0 AND failed >= 0 AND input_tokens >= 0 AND cached_tokens >= 0"
    " AND output_tokens >= 0 AND reasoning_tokens >= 0 AND total_tokens >= 0"
)


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("digest"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "batch",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("input_blob_key", sa.Text(), nullable=False),
        sa.Column("index_blob_key", sa.Text(), nullable=True),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("output_expires_after_s", sa.BigInteger(), nullable=True),
        sa.Column("errors", sa.Text(), nullable=True),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        sa.Column("total", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("completed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("in_progress_at", sa.BigInteger(), nullable=True),
        sa.Column("finalizing_at", sa.BigInteger(), nullable=True),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.Column("failed_at", sa.BigInteger(), nullable=True),
        sa.Column("expired_at", sa.BigInteger(), nullable=True),
        sa.Column("cancelling_at", sa.BigInteger(), nullable=True),
        sa.Column("cancelled_at", sa.BigInteger(), nullable=True),
        sa.Column("segments_left", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("duty_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("duty_worker", sa.Text(), nullable=True),
        sa.Column("duty_expires_at", _SECONDS, nullable=True),
        sa.CheckConstraint("status <> 'completed' OR completed + failed = total", name="batch_complete"),
        sa.CheckConstraint("status <> 'in_progress' OR index_blob_key IS NOT NULL", name="batch_index"),
        sa.CheckConstraint(
            "status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired',"
            " 'cancelling', 'cancelled')",
            name="batch_status",
        ),
        sa.CheckConstraint("(duty_worker IS NULL) = (duty_expires_at IS NULL)", name="batch_duty"),
        sa.CheckConstraint(_TALLY_IS_POSITIVE, name="batch_tally"),
        sa.CheckConstraint("segments_left >= 0", name="batch_segments_left"),
        sa.CheckConstraint("total >= 0 AND completed + failed <= total", name="batch_total"),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("batch_by_age", "batch", ["project_id", "created_at", "sequence"], unique=False)
    op.create_index(
        "batch_by_deadline",
        "batch",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("status = 'in_progress'"),
        postgresql_where=sa.text("status = 'in_progress'"),
    )
    op.create_index(
        "batch_unfinished",
        "batch",
        ["status"],
        unique=False,
        sqlite_where=sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
        postgresql_where=sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    )
    op.create_index(
        "batch_in_progress",
        "batch",
        ["sequence"],
        unique=False,
        sqlite_where=sa.text("status = 'in_progress'"),
        postgresql_where=sa.text("status = 'in_progress'"),
    )
    op.create_index(
        "batch_index_unused",
        "batch",
        ["index_blob_key"],
        unique=False,
        sqlite_where=sa.text(
            "status IN ('failed', 'completed', 'expired', 'cancelled') AND index_blob_key IS NOT NULL"
        ),
        postgresql_where=sa.text(
            "status IN ('failed', 'completed', 'expired', 'cancelled') AND index_blob_key IS NOT NULL"
        ),
    )
    op.create_index(
        "batch_pins",
        "batch",
        ["input_blob_key"],
        unique=False,
        sqlite_where=sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
        postgresql_where=sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    )
    op.create_index(
        "batch_settled",
        "batch",
        ["sequence"],
        unique=False,
        sqlite_where=sa.text("status = 'in_progress' AND segments_left = 0"),
        postgresql_where=sa.text("status = 'in_progress' AND segments_left = 0"),
    )
    op.create_index(
        "batch_with_duty",
        "batch",
        ["sequence"],
        unique=False,
        sqlite_where=sa.text("status IN ('validating', 'finalizing', 'cancelling')"),
        postgresql_where=sa.text("status IN ('validating', 'finalizing', 'cancelling')"),
    )
    op.create_table(
        "file",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("blob_key", sa.Text(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "purpose IN ('fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals', 'batch_output')",
            name="file_purpose",
        ),
        sa.CheckConstraint("deleted_at IS NOT NULL OR blob_key IS NOT NULL", name="file_blob"),
        sa.CheckConstraint("size_bytes >= 0", name="file_size"),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "file_by_age",
        "file",
        ["project_id", "created_at", "sequence"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index("file_by_blob", "file", ["blob_key"], unique=False)
    op.create_index(
        "file_by_expiry",
        "file",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "file_by_purpose",
        "file",
        ["project_id", "purpose", "created_at", "sequence"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "file_unused",
        "file",
        ["sequence"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NOT NULL AND blob_key IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL AND blob_key IS NOT NULL"),
    )
    op.create_table(
        "idempotency",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("created_at", _SECONDS, nullable=False),
        sa.CheckConstraint("operation IN ('add_file', 'create_batch')", name="idempotency_operation"),
        sa.PrimaryKeyConstraint("project_id", "operation", "key"),
    )
    op.create_index("idempotency_by_age", "idempotency", ["created_at"], unique=False)
    op.create_table(
        "upload",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("file_expires_after_s", sa.BigInteger(), nullable=True),
        sa.Column("file_id", sa.Text(), nullable=True),
        sa.CheckConstraint("(status = 'completed') = (file_id IS NOT NULL)", name="upload_file"),
        sa.CheckConstraint(
            "purpose IN ('fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals', 'batch_output')",
            name="upload_purpose",
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'completed', 'cancelled', 'expired')", name="upload_status"
        ),
        sa.CheckConstraint("size_bytes >= 0", name="upload_size"),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "upload_pending",
        "upload",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_table(
        "segment",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", _SECONDS, nullable=True),
        sa.Column("pinned", sa.Text(), nullable=False),
        sa.Column("completed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "(state = 'leased') = (worker_id IS NOT NULL)"
            " AND (state = 'leased') = (lease_expires_at IS NOT NULL)",
            name="segment_lease",
        ),
        sa.CheckConstraint("state <> 'done' OR completed + failed = count", name="segment_done"),
        sa.CheckConstraint("state IN ('waiting', 'leased', 'done')", name="segment_state"),
        sa.CheckConstraint("completed + failed <= count", name="segment_answered"),
        sa.CheckConstraint(_TALLY_IS_POSITIVE, name="segment_tally"),
        sa.CheckConstraint("number >= 0 AND first >= 0 AND count > 0 AND token >= 0", name="segment_range"),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["batch.id"],
        ),
        sa.PrimaryKeyConstraint("batch_id", "number"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "segment_held",
        "segment",
        ["worker_id"],
        unique=False,
        sqlite_where=sa.text("state = 'leased'"),
        postgresql_where=sa.text("state = 'leased'"),
    )
    op.create_index(
        "segment_leased",
        "segment",
        ["batch_id", "lease_expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'leased'"),
        postgresql_where=sa.text("state = 'leased'"),
    )
    op.create_index(
        "segment_waiting",
        "segment",
        ["batch_id", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_table(
        "upload_part",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("blob_key", sa.Text(), nullable=True),
        sa.CheckConstraint("size_bytes >= 0", name="upload_part_size"),
        sa.ForeignKeyConstraint(
            ["upload_id"],
            ["upload.id"],
        ),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "upload_part_by_blob",
        "upload_part",
        ["blob_key"],
        unique=False,
        sqlite_where=sa.text("blob_key IS NOT NULL"),
        postgresql_where=sa.text("blob_key IS NOT NULL"),
    )
    op.create_index("upload_part_by_upload", "upload_part", ["upload_id"], unique=False)
