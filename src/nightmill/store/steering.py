"""Batches as they are chosen by a filter, and changes of a running batch (see `core.steering`).

A change, its entry in the history and its entry in the audit log are one transaction. It reads the batch
under a lock, so that of two changes at the same time the second one sees the first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.batch import Batch
from nightmill.core.history import EventKind
from nightmill.core.steering import BatchFilter, BatchOrder, Change, record_of, steered
from nightmill.ids import BatchId, ProjectId
from nightmill.store import audit, batch_events
from nightmill.store.batch_matches import Matches, page_of_matching
from nightmill.store.batches import BATCH_COLUMNS, as_batch
from nightmill.store.clock import now
from nightmill.store.paging import Page
from nightmill.store.schema import batch
from nightmill.store.verbs import Verbs, read, write

_LOCKED = (
    select(now().label("store_now"), *BATCH_COLUMNS)
    .where(batch.c.id == bindparam("of_batch_id"), batch.c.project_id == bindparam("of_project_id"))
    .with_for_update(of=batch)
)
_STEER = (
    update(batch)
    .where(batch.c.id == bindparam("of_batch_id"))
    .values(
        paused_at=bindparam("new_paused_at"),
        priority=bindparam("new_priority"),
        expires_at=bindparam("new_expires_at"),
        concurrency=bindparam("new_concurrency"),
    )
)


class Steering(Verbs):
    """What clients see of all batches of a project, and what they change while a batch runs."""

    @read
    @staticmethod
    def list(
        connection: Connection,
        project_id: ProjectId | None,
        wanted: BatchFilter,
        *,
        order: BatchOrder = BatchOrder.NEWEST,
        after: str | None = None,
        limit: int = 20,
    ) -> Page[Batch]:
        """The batches that match. The cursor of the page is the `after` of the next one.

        Args:
            project_id: None for all projects.
            after: a cursor, or the id of a batch.

        Raises:
            NotFoundError: there never was the batch `after`.
        """
        return page_of_matching(connection, project_id, wanted, order=order, after=after, limit=limit)

    @read
    @staticmethod
    def count(connection: Connection, project_id: ProjectId | None, wanted: BatchFilter) -> int:
        """How many batches match."""
        query = Matches(connection, project_id, wanted).select(func.count())
        return connection.execute(query).scalar_one()

    @write
    @staticmethod
    def change(
        connection: Connection,
        project_id: ProjectId,
        batch_id: BatchId,
        changes: Sequence[Change],
        by: Actor | None = None,
    ) -> tuple[Batch, bool] | None:
        """Makes all changes or none. Returns the batch and whether it has changed; None when the project has
        no such batch.

        Raises:
            ConflictError: the status of the batch does not admit a change.
            RequestError: a change is not possible now.
        """
        row = connection.execute(
            _LOCKED, {"of_batch_id": batch_id, "of_project_id": project_id}
        ).one_or_none()
        if row is None:
            return None
        before = after = as_batch(row[1:])
        records: list[tuple[EventKind, AuditAction, Mapping[str, Any]]] = []
        for change in changes:
            changed = steered(after, change, now=row.store_now)
            if changed != after:
                records.append(record_of(change, after))
            after = changed
        if not records:
            return before, False
        given = {
            "of_batch_id": batch_id,
            "new_paused_at": after.paused_at,
            "new_priority": after.priority,
            "new_expires_at": after.expires_at,
            "new_concurrency": after.concurrency,
        }
        connection.execute(_STEER, given)
        for kind, action, detail in records:
            batch_events.record(connection, batch_id, kind, by=by, detail=detail)
            value = next(iter(detail.values()), None)
            audit.record(
                connection,
                by,
                action,
                batch_id,
                project_id=project_id,
                detail=None if value is None else str(value),
            )
        return after, True
