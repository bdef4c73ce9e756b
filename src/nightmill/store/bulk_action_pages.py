"""The work on bulk actions: a page of batches in one transaction with the place that the action has reached.

Any process may do the next page: the row of the action is locked while it is done. A retry writes a file
before its transaction, which takes time, so its runner holds a lease. The lease only saves work: a retry is
stored in the transaction that moves the place on, so no line is repeated twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, or_, select, text, update

from nightmill.core.audit import Actor
from nightmill.core.batch import Batch, Event
from nightmill.core.bulk_action import (
    BulkAction,
    BulkActionItem,
    BulkActionState,
    Earlier,
    ItemResult,
    changes_of,
    earlier_values,
    undoing,
)
from nightmill.core.file import File
from nightmill.core.limits import NO_LIMITS, Limits
from nightmill.core.steering import STEERABLE, SteeringAction
from nightmill.errors import RequestError
from nightmill.store.batch_origins import BatchOrigin, BatchOrigins
from nightmill.store.batches import BATCH_COLUMNS, Batches, as_batch
from nightmill.store.bulk_action_schema import IS_OPEN, bulk_action, bulk_action_item
from nightmill.store.bulk_actions import ITEMS, as_action, as_action_item, locked, written
from nightmill.store.clock import now
from nightmill.store.schema import batch
from nightmill.store.steering import Steering
from nightmill.store.verbs import Verbs, read, write

_DUE: Final = (
    select(bulk_action.c.id)
    .where(
        text(IS_OPEN),
        bulk_action.c.due_at <= now(),
        or_(
            bulk_action.c.runner_id.is_(None),
            bulk_action.c.lease_expires_at <= now(),
            bulk_action.c.runner_id == bindparam("own_runner_id"),
        ),
    )
    .order_by(bulk_action.c.due_at, bulk_action.c.sequence)
    .limit(bindparam("most"))
)
# In the order of their sequences, so that two actions never wait for each other.
_BATCHES: Final = (
    select(*BATCH_COLUMNS)
    .where(batch.c.sequence.in_(bindparam("sequences", expanding=True)))
    .order_by(batch.c.sequence)
    .with_for_update(of=batch)
)
_WRITE_ITEM: Final = (
    update(bulk_action_item)
    .where(
        bulk_action_item.c.action_id == bindparam("of_action_id"),
        bulk_action_item.c.batch_sequence == bindparam("of_sequence"),
    )
    .values(
        result=bindparam("new_result"),
        message=bindparam("new_message"),
        earlier=bindparam("new_earlier"),
        retry_id=bindparam("new_retry_id"),
    )
)
_NO_LEASE: Final[dict[str, Any]] = {"runner_id": None, "lease_expires_at": None}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one batch."""

    result: ItemResult | None
    message: str | None = None
    earlier: Earlier | None = None
    moved: Batch | None = None


@dataclass(frozen=True, slots=True)
class ActionPage:
    """What one transaction did.

    Args:
        action: as it is afterwards.
        changed: how many batches it changed.
        moved: batches whose status it moved.
    """

    action: BulkAction
    changed: int = 0
    moved: Sequence[Batch] = ()


@dataclass(frozen=True, slots=True)
class NewRetry:
    """A retry to be stored: the batch, its input file, and which lines of which batches it repeats."""

    batch: Batch
    file: File
    origins: Sequence[BatchOrigin]
    limits: Limits = NO_LIMITS


class BulkActionPages(Verbs):
    """Which actions are due, and their next pages."""

    @read
    @staticmethod
    def due(connection: Connection, runner_id: str, *, most: int = 20) -> Sequence[str]:
        """Actions whose time has come and which no other runner holds."""
        return connection.execute(_DUE, {"own_runner_id": runner_id, "most": most}).scalars().all()

    @write
    @staticmethod
    def turn_page(connection: Connection, action_id: str, *, most: int) -> ActionPage | None:
        """Deals with the next batches of an action that is due, or ends it when there are none.

        None when there is nothing to do, or when each batch takes a step of its own (`lease_retry`).
        """
        row = locked(connection, action_id)
        if row is None:
            return None
        action = as_action(row)
        is_retry = action.action is SteeringAction.RETRY
        if not action.state.is_open or action.due_at > row.store_now or is_retry:
            return None
        is_undo = action.state is BulkActionState.UNDOING
        items = _next_items(connection, action, most)
        if not items:
            state = BulkActionState.UNDONE if is_undo else BulkActionState.DONE
            values = {"state": state.value, "ended_at": row.store_now}
            return ActionPage(written(connection, action_id, values))
        sequences = [item.sequence for item in items]
        rows = connection.execute(_BATCHES, {"sequences": sequences}).all()
        found = {str(stored.id): stored for stored in map(as_batch, rows)}
        outcomes = [
            _undo_one(connection, item, found.get(item.batch_id), by=action.undone_by)
            if is_undo
            else _do_one(connection, action, found.get(item.batch_id), at=row.store_now)
            for item in items
        ]
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome.result is not item.result or outcome.message is not None:
                _write(connection, action_id, item, outcome)
        state = BulkActionState.UNDOING if is_undo else BulkActionState.RUNNING
        counts = _added(action, items, outcomes)
        values = {"state": state.value, "place": sequences[-1], "note": None, **counts}
        return ActionPage(
            written(connection, action_id, values),
            sum(outcome.result in (ItemResult.CHANGED, ItemResult.UNDONE) for outcome in outcomes),
            [outcome.moved for outcome in outcomes if outcome.moved is not None],
        )

    @write
    @staticmethod
    def lease_retry(
        connection: Connection, action_id: str, runner_id: str, *, ttl_s: float
    ) -> tuple[BulkAction, BulkActionItem | None] | None:
        """The next batch of a retry that is due, leased; without a batch when the action has ended.

        None when it is not due, or another runner has the lease.
        """
        row = locked(connection, action_id)
        if row is None:
            return None
        action = as_action(row)
        is_held = row.runner_id not in (None, runner_id) and row.lease_expires_at > row.store_now
        if not action.state.is_open or action.due_at > row.store_now or is_held:
            return None
        items = _next_items(connection, action, 1)
        if not items:
            ended = {"state": BulkActionState.DONE.value, "ended_at": row.store_now, **_NO_LEASE}
            return written(connection, action_id, ended), None
        lease = {"runner_id": runner_id, "lease_expires_at": row.store_now + ttl_s, "note": None}
        running = {"state": BulkActionState.RUNNING.value, **lease}
        return written(connection, action_id, running), items[0]

    @write
    @staticmethod
    def finish_retry(
        connection: Connection,
        action_id: str,
        item: BulkActionItem,
        new: NewRetry | None,
        *,
        result: ItemResult,
        message: str | None = None,
    ) -> bool:
        """Stores the retry of one batch, if there is one, and what became of the batch.

        False, and nothing is stored, when the batch was dealt with already or the action was called off.

        Raises:
            RequestError: the retry can't be stored; nothing is.
        """
        row = locked(connection, action_id)
        if row is None or row.state != BulkActionState.RUNNING.value or row.place >= item.sequence:
            return False
        action = as_action(row)
        if new is not None:
            BatchOrigins.create(connection, new.batch, new.file, new.origins, limits=new.limits, by=action.by)
        given = {
            "of_action_id": action_id,
            "of_sequence": item.sequence,
            "new_result": result.value,
            "new_message": message,
            "new_earlier": None,
            "new_retry_id": None if new is None else new.batch.id,
        }
        connection.execute(_WRITE_ITEM, given)
        values = {"place": item.sequence, **_added(action, [item], [_Outcome(result)]), **_NO_LEASE}
        written(connection, action_id, values)
        return True

    @write
    @staticmethod
    def put_off(connection: Connection, action_id: str, *, delay_s: float, note: str) -> None:
        """Goes on with an action later, and says why."""
        row = locked(connection, action_id)
        if row is not None and as_action(row).state.is_open:
            values = {"due_at": row.store_now + delay_s, "note": note, **_NO_LEASE}
            written(connection, action_id, values)


def _next_items(connection: Connection, action: BulkAction, most: int) -> list[BulkActionItem]:
    given = {"of_action_id": action.id, "after": action.place, "page_rows": most}
    return [as_action_item(row) for row in connection.execute(ITEMS, given)]


def _do_one(connection: Connection, action: BulkAction, found: Batch | None, *, at: float) -> _Outcome:
    if found is None:
        return _Outcome(ItemResult.NOT_FOUND)
    try:
        if action.action is SteeringAction.CANCEL:
            return _cancel(connection, found, action.by, at)
        changed = Steering.change(
            connection, found.project_id, found.id, changes_of(action.action, action.values), by=action.by
        )
    except RequestError as error:
        return _Outcome(ItemResult.REFUSED, error.message)
    if changed is None:
        return _Outcome(ItemResult.NOT_FOUND)
    after, has_changed = changed
    if not has_changed:
        return _Outcome(ItemResult.UNCHANGED)
    return _Outcome(ItemResult.CHANGED, earlier=earlier_values(found, after))


def _cancel(connection: Connection, found: Batch, by: Actor | None, at: float) -> _Outcome:
    if found.status not in STEERABLE and not found.status.is_terminal:
        return _Outcome(ItemResult.UNCHANGED)
    after = found.after(Event.CANCEL_REQUESTED, now=at)
    if not Batches.move(connection, after, expected=found.status, by=by):
        return _Outcome(ItemResult.UNCHANGED)
    return _Outcome(ItemResult.CHANGED, moved=after)


def _undo_one(
    connection: Connection, item: BulkActionItem, found: Batch | None, *, by: Actor | None
) -> _Outcome:
    if item.result is not ItemResult.CHANGED:
        return _Outcome(item.result)
    if found is None:
        return _Outcome(item.result, "The batch is gone.")
    changes = undoing(found, item.earlier)
    if not changes:
        return _Outcome(item.result, "It was changed again meanwhile and stays so.", item.earlier)
    try:
        Steering.change(connection, found.project_id, found.id, changes, by=by)
    except RequestError as error:
        return _Outcome(item.result, error.message, item.earlier)
    return _Outcome(ItemResult.UNDONE, earlier=item.earlier)


def _write(connection: Connection, action_id: str, item: BulkActionItem, outcome: _Outcome) -> None:
    earlier = outcome.earlier
    given = {
        "of_action_id": action_id,
        "of_sequence": item.sequence,
        "new_result": None if outcome.result is None else outcome.result.value,
        "new_message": outcome.message,
        "new_earlier": None if not earlier else msgspec.json.encode(earlier).decode(),
        "new_retry_id": item.retry_id,
    }
    connection.execute(_WRITE_ITEM, given)


def _added(
    action: BulkAction, items: Sequence[BulkActionItem], outcomes: Sequence[_Outcome]
) -> Mapping[str, int]:
    """The counts once these batches have these results in place of the ones that they had."""
    counts = dict(action.counts)
    for item, outcome in zip(items, outcomes, strict=True):
        if outcome.result is not None and outcome.result is not item.result:
            counts[outcome.result] += 1
    return {result.value: count for result, count in counts.items()}
