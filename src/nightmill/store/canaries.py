"""Canaries: batches of which only the first segments may be leased, until their lines are answered."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, select, text, update

from nightmill.core.batch import Batch, Status
from nightmill.core.canary import Canary
from nightmill.core.history import EventKind
from nightmill.store import batch_events, schema
from nightmill.store.batches import (
    BATCH_COLUMNS,
    BATCH_WIDTH,
    as_batch,
    moving,
    write_stop,
)
from nightmill.store.clock import stamp
from nightmill.store.schema import IN_PROGRESS, batch, segment
from nightmill.store.verbs import Verbs, read, write

_MOST = 1_000
_EVENTS_READ = 100
_OF_CANARY = (segment.c.batch_id == batch.c.id, segment.c.number < batch.c.canary_segments)


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    return select(func.coalesce(func.sum(column), 0)).where(*_OF_CANARY).scalar_subquery()


_COUNTS = (_sum(segment.c.count), _sum(segment.c.completed), _sum(segment.c.failed))
_RUNNING = (
    select(*BATCH_COLUMNS, *_COUNTS)
    .where(text("batch." + schema.HAS_CANARY))
    .order_by(batch.c.sequence)
    .limit(_MOST)
)
_ONE = select(*_COUNTS).where(batch.c.id == bindparam("of_batch_id"), batch.c.canary_segments.is_not(None))
_IS_OPEN = batch.c.canary_segments == bindparam("of_canary_segments")
_PASS = (
    update(batch)
    .where(batch.c.id == bindparam("of_batch_id"), batch.c.status == IN_PROGRESS, _IS_OPEN)
    .values(canary_segments=None)
)
_PASS_AND_PAUSE = _PASS.values(paused_at=func.coalesce(batch.c.paused_at, stamp()))
_STOP = moving(fenced_by=(_IS_OPEN,), stop_reason=bindparam("new_stop_reason"))


class Canaries(Verbs):
    """Batches in progress whose canary is not decided, and what the canary decides."""

    @read
    @staticmethod
    def running(connection: Connection) -> Sequence[tuple[Batch, Canary]]:
        """The oldest batches whose canary is not decided."""
        return [
            (found := as_batch(row), _canary(found, row[BATCH_WIDTH:]))
            for row in connection.execute(_RUNNING)
        ]

    @read
    @staticmethod
    def counted(connection: Connection, of: Batch) -> Canary | None:
        """The canary as it runs, or as it was when it was decided; None if no count is known."""
        for event in batch_events.BatchEvents.list(connection, of.id, limit=_EVENTS_READ):
            if event.kind in (EventKind.CANARY_PASSED, EventKind.STOPPED) and "canary" in event.detail:
                return Canary(**event.detail["canary"])
        row = connection.execute(_ONE, {"of_batch_id": of.id}).one_or_none()
        return None if row is None or not row[0] else _canary(of, row)

    @write
    @staticmethod
    def let_pass(connection: Connection, of: Batch, canary: Canary) -> bool:
        """All lines of the batch may be sent from here on, or once a batch that its options pause now is
        resumed. False when that was decided already."""
        pauses = of.options.canary_pause
        given = {"of_batch_id": of.id, "of_canary_segments": of.canary_segments}
        if connection.execute(_PASS_AND_PAUSE if pauses else _PASS, given).rowcount != 1:
            return False
        batch_events.record(connection, of.id, EventKind.CANARY_PASSED, detail=_detail(canary))
        if pauses and of.paused_at is None:
            batch_events.record(connection, of.id, EventKind.PAUSED)
        return True

    @write
    @staticmethod
    def stop(connection: Connection, after: Batch, canary: Canary) -> bool:
        """in_progress -> cancelling with a reason. False when the batch or its canary has moved on."""
        return write_stop(
            connection,
            _STOP,
            after,
            canary.stop_reason,
            expected=Status.IN_PROGRESS,
            parameters={"of_canary_segments": after.canary_segments},
            detail=_detail(canary),
        )


def _canary(of: Batch, counts: Sequence[Any]) -> Canary:
    lines, completed, failed = counts
    return Canary(int(lines), int(completed), int(failed), of.options.canary_max_failed)


def _detail(canary: Canary) -> Mapping[str, Any]:
    return {
        "canary": {
            "lines": canary.lines,
            "completed": canary.completed,
            "failed": canary.failed,
            "max_failed": canary.max_failed,
        }
    }
