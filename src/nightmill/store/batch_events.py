"""The history of batches: rows are only added, in the transaction of what they record."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from nightmill.core.audit import Actor
from nightmill.core.history import BatchEvent, EventKind
from nightmill.ids import BatchId
from nightmill.store.batch_watch_schema import batch_event
from nightmill.store.clock import now
from nightmill.store.verbs import Verbs, read, write

_ADD = insert(batch_event).values(
    batch_id=bindparam("of_batch_id"),
    at=now(),
    kind=bindparam("what"),
    actor=bindparam("by_actor"),
    detail=bindparam("more"),
)
_PAGE = (
    select(
        batch_event.c.sequence,
        batch_event.c.batch_id,
        batch_event.c.at,
        batch_event.c.kind,
        batch_event.c.actor,
        batch_event.c.detail,
    )
    .where(batch_event.c.batch_id == bindparam("of_batch_id"), batch_event.c.sequence > bindparam("after"))
    .order_by(batch_event.c.sequence)
    .limit(bindparam("page_rows"))
)
_NEWEST = (
    select(*_PAGE.selected_columns)
    .where(batch_event.c.batch_id == bindparam("of_batch_id"), batch_event.c.sequence < bindparam("before"))
    .order_by(batch_event.c.sequence.desc())
    .limit(bindparam("page_rows"))
)
_AFTER_ALL = 1 << 62


class BatchEvents(Verbs):
    """The history of each batch."""

    @write
    @staticmethod
    def add(
        connection: Connection, batch_id: BatchId, kind: EventKind, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Records what changes nothing else in the store."""
        record(connection, batch_id, kind, detail=detail)

    @read
    @staticmethod
    def list(
        connection: Connection, batch_id: BatchId, *, after: int = 0, limit: int = 100
    ) -> Sequence[BatchEvent]:
        """The oldest entries whose sequence is higher than `after`."""
        given = {"of_batch_id": batch_id, "after": after, "page_rows": limit}
        return [_event(row) for row in connection.execute(_PAGE, given)]

    @read
    @staticmethod
    def newest(
        connection: Connection, batch_id: BatchId, *, before: int | None = None, limit: int = 100
    ) -> Sequence[BatchEvent]:
        """The newest entries, the newest first.

        Args:
            before: only those whose sequence is lower; None for the very newest.
        """
        given = {
            "of_batch_id": batch_id,
            "before": _AFTER_ALL if before is None else before,
            "page_rows": limit,
        }
        return [_event(row) for row in connection.execute(_NEWEST, given)]


def record(
    connection: Connection,
    batch_id: BatchId,
    kind: EventKind,
    *,
    by: Actor | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Records an event in the transaction of the caller.

    Args:
        by: None for nightmill itself.
        detail: JSON values, without prompts and answers.
    """
    given = {
        "of_batch_id": batch_id,
        "what": kind.value,
        "by_actor": None if by is None else by.name,
        "more": json.dumps(dict(detail)) if detail else None,
    }
    connection.execute(_ADD, given)


def _event(row: Any) -> BatchEvent:
    return BatchEvent(
        row.sequence,
        BatchId(row.batch_id),
        row.at,
        EventKind(row.kind),
        row.actor,
        {} if row.detail is None else json.loads(row.detail),
    )
