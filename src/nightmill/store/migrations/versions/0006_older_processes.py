"""After the deploy: counts what processes of the release before left out.

They published batches without counting usage, kept and deleted files without counting bytes, and opened
batches without saying how large they are.
"""

from alembic import op

revision = "0006"
down_revision = "0005"

_TALLY = "completed, failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens, total_tokens"
_COLUMNS = ("batches", "requests", *_TALLY.split(", "))
_ENDED_DAY = "COALESCE(completed_at, expired_at, cancelled_at) / 86400"
_UNCOUNTED = "usage_day IS NULL AND status IN ('completed', 'expired', 'cancelled')"
_STORED = "SELECT SUM(size_bytes) FROM file WHERE file.project_id = project.id AND deleted_at IS NULL"
_INPUT = "SELECT size_bytes FROM file WHERE file.id = batch.input_file_id"


def upgrade() -> None:
    sums = ", ".join(f"SUM({name})" for name in _TALLY.split(", "))
    added = ", ".join(f"{name} = usage.{name} + excluded.{name}" for name in _COLUMNS)
    op.execute(
        f"INSERT INTO usage (project_id, model, day, {', '.join(_COLUMNS)})"  # noqa: S608 - names from above
        f" SELECT project_id, COALESCE(model, ''), {_ENDED_DAY}, COUNT(*), SUM(total), {sums}"
        f" FROM batch WHERE {_UNCOUNTED} GROUP BY project_id, COALESCE(model, ''), {_ENDED_DAY}"
        f" ON CONFLICT (project_id, model, day) DO UPDATE SET {added}"
    )
    op.execute(f"UPDATE batch SET usage_day = {_ENDED_DAY} WHERE {_UNCOUNTED}")  # noqa: S608 - as above
    op.execute(
        f"UPDATE batch SET input_bytes = COALESCE(({_INPUT}), 0),"  # noqa: S608 - as above
        f" enqueued_tokens = CASE WHEN total > 0 THEN (COALESCE(({_INPUT}), 0) + 3) / 4 ELSE 0 END"
        " WHERE input_bytes = 0 AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
    )
    if op.get_bind().dialect.name == "postgresql":
        # Whoever counts a file from here on waits, and adds to what is counted below.
        op.execute("LOCK TABLE project IN EXCLUSIVE MODE")
    op.execute(
        "INSERT INTO project (id) SELECT DISTINCT project_id FROM file"
        " WHERE deleted_at IS NULL AND project_id NOT IN (SELECT id FROM project)"
    )
    op.execute(f"UPDATE project SET stored_bytes = COALESCE(({_STORED}), 0)")  # noqa: S608 - as above


def downgrade() -> None:
    """What was counted stays right."""
