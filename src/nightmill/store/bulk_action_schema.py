"""The tables of bulk actions: what was ordered, and what became of each batch.

The rows of the batches are added with the order, so that it stays the same batches however long it takes.
"""

from sqlalchemy import CheckConstraint, Column, Index, PrimaryKeyConstraint, Table, Text, text

from nightmill.core.bulk_action import BulkActionState, ItemResult
from nightmill.store.columns import (
    counter_column,
    metadata,
    number_column,
    one_of,
    optional_text,
    partial_index,
    seconds_column,
    sequence_column,
    text_column,
)

IS_OPEN = "state IN ('pending', 'running', 'undoing')"
HAS_KEY = "client_key IS NOT NULL"
COUNTED = tuple(result.value for result in ItemResult)

# `wanted`, `actor` and `undo_actor` are JSON. A runner holds the lease while it retries lines of one batch.
bulk_action = Table(
    "bulk_action",
    metadata,
    sequence_column(),
    Column("id", Text, nullable=False, unique=True),
    text_column("project_id"),
    optional_text("client_key"),
    text_column("action"),
    text_column("wanted"),
    text_column("state"),
    text_column("actor"),
    optional_text("undo_actor"),
    seconds_column("created_at"),
    seconds_column("due_at"),
    seconds_column("ended_at", nullable=True),
    counter_column("matched"),
    counter_column("total"),
    counter_column("place"),
    *(counter_column(name) for name in COUNTED),
    optional_text("note"),
    optional_text("runner_id"),
    seconds_column("lease_expires_at", nullable=True),
    CheckConstraint(one_of("state", BulkActionState), name="bulk_action_state"),
    CheckConstraint("total >= 0 AND total <= matched", name="bulk_action_total"),
    CheckConstraint("(runner_id IS NULL) = (lease_expires_at IS NULL)", name="bulk_action_lease"),
    partial_index("bulk_action_open", "due_at", where=IS_OPEN),
    Index("bulk_action_by_project", "project_id", "sequence"),
    Index(
        "bulk_action_by_key",
        "project_id",
        "client_key",
        unique=True,
        sqlite_where=text(HAS_KEY),
        postgresql_where=text(HAS_KEY),
    ),
    sqlite_autoincrement=True,
)

# `earlier` is JSON: for each value that was changed, what it was and what it became.
bulk_action_item = Table(
    "bulk_action_item",
    metadata,
    text_column("action_id"),
    number_column("batch_sequence"),
    text_column("batch_id"),
    optional_text("result"),
    optional_text("message"),
    optional_text("earlier"),
    optional_text("retry_id"),
    PrimaryKeyConstraint("action_id", "batch_sequence"),
    CheckConstraint(f"result IS NULL OR {one_of('result', ItemResult)}", name="bulk_action_item_result"),
    sqlite_with_rowid=False,
)
