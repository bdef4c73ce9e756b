"""Bulk actions as they are ordered, read, called off and undone (see `core.bulk_action`).

The order is one transaction that also stores which batches are meant. The work itself is in
`bulk_action_pages`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from nightmill.core.audit import Actor
from nightmill.core.batch import TERMINAL, Batch, Status
from nightmill.core.bulk_action import BulkAction, BulkActionItem, BulkActionState, ItemResult
from nightmill.core.steering import STEERABLE, BatchFilter, SteeringAction
from nightmill.errors import ConflictError, NotFoundError
from nightmill.ids import ProjectId
from nightmill.store.batch_matches import Matches
from nightmill.store.batch_watch_schema import batch_origin
from nightmill.store.batches import BATCH_COLUMNS, as_batch
from nightmill.store.bulk_action_schema import bulk_action, bulk_action_item
from nightmill.store.clock import now
from nightmill.store.paging import Page
from nightmill.store.rows import insert_if_absent, portions
from nightmill.store.schema import batch
from nightmill.store.verbs import Verbs, read, write

RETRYABLE: Final = frozenset({Status.COMPLETED, Status.EXPIRED, Status.CANCELLED})
_OPEN: Final = frozenset(Status) - TERMINAL

_ACTION_COLUMNS = tuple(bulk_action.c)
_ONE = select(*_ACTION_COLUMNS).where(bulk_action.c.id == bindparam("of_action_id"))
_BY_KEY = select(*_ACTION_COLUMNS).where(
    bulk_action.c.project_id == bindparam("of_project_id"), bulk_action.c.client_key == bindparam("of_key")
)
_LOCKED = (
    select(*_ACTION_COLUMNS, now().label("store_now"))
    .where(bulk_action.c.id == bindparam("of_action_id"))
    .with_for_update(of=bulk_action)
)
_NEW_FIELDS = ("id", "project_id", "client_key", "action", "wanted", "actor")
_ADD = insert_if_absent(
    bulk_action,
    {
        **{name: bindparam(f"new_{name}") for name in _NEW_FIELDS},
        "state": BulkActionState.PENDING.value,
        "created_at": now(),
        "due_at": now() + bindparam("delay_s"),
    },
)
_SET_TOTALS = (
    update(bulk_action)
    .where(bulk_action.c.id == bindparam("of_action_id"))
    .values(matched=bindparam("new_matched"), total=bindparam("new_total"))
)
ITEMS = (
    select(
        bulk_action_item.c.batch_sequence,
        bulk_action_item.c.batch_id,
        bulk_action_item.c.result,
        bulk_action_item.c.message,
        bulk_action_item.c.earlier,
        bulk_action_item.c.retry_id,
    )
    .where(
        bulk_action_item.c.action_id == bindparam("of_action_id"),
        bulk_action_item.c.batch_sequence > bindparam("after"),
    )
    .order_by(bulk_action_item.c.batch_sequence)
    .limit(bindparam("page_rows"))
)
"""The batches of an action behind a place, in the order of their sequences."""
_OLD = select(bulk_action.c.id).where(bulk_action.c.ended_at <= now() - bindparam("kept_s")).limit(1)
_ITEMS_AT_ONCE: Final = 5_000


@dataclass(frozen=True, slots=True)
class Chosen:
    """The batches that an order means.

    Args:
        project_id: None for all projects.
        batches: a filter, or ids.
    """

    project_id: ProjectId | None
    batches: BatchFilter | Sequence[str]

    def select(self, connection: Connection, *columns: Any) -> Select[*tuple[Any, ...]]:
        """A query of these batches."""
        if isinstance(self.batches, BatchFilter):
            return Matches(connection, self.project_id, self.batches).select(*columns)
        ids = or_(*(batch.c.id.in_(portion) for portion in portions(dict.fromkeys(self.batches))))
        query = select(*columns).where(ids)
        return query if self.project_id is None else query.where(batch.c.project_id == self.project_id)


@dataclass(frozen=True, slots=True)
class ChosenCounts:
    """How many batches are chosen, and of which kinds.

    Args:
        kinds: by status, whether paused, and whether the action would change them: how many batches, how many
            of their lines failed, and how many are not done yet.
    """

    kinds: Mapping[tuple[Status, bool, bool], tuple[int, int, int]]

    @property
    def matched(self) -> int:
        return sum(count for count, _, _ in self.kinds.values())

    @property
    def total(self) -> int:
        """Those that the action would change."""
        return sum(count for (*_, is_meant), (count, _, _) in self.kinds.items() if is_meant)


class BulkActions(Verbs):
    """Orders of one action on many batches."""

    @read
    @staticmethod
    def preview(
        connection: Connection,
        action: SteeringAction,
        values: Mapping[str, Any],
        chosen: Chosen,
        *,
        first: int,
    ) -> tuple[ChosenCounts, Sequence[Batch]]:
        """What the order would change: the counts, and the newest of the batches."""
        is_meant = _is_meant(action, values, is_filter=isinstance(chosen.batches, BatchFilter))
        rows = connection.execute(
            chosen.select(connection, *BATCH_COLUMNS)
            .where(is_meant)
            .order_by(batch.c.created_at.desc(), batch.c.sequence.desc())
            .limit(first)
        )
        newest = [as_batch(row) for row in rows]
        return _counted(connection, chosen, is_meant), newest

    @write
    @staticmethod
    def order(
        connection: Connection,
        action_id: str,
        project_id: ProjectId,
        action: SteeringAction,
        values: Mapping[str, Any],
        chosen: Chosen,
        *,
        delay_s: float,
        by: Actor,
        key: str | None = None,
    ) -> BulkAction:
        """Stores an action on the batches that exist now, to be done after `delay_s` seconds.

        Args:
            project_id: of the key that orders the action.
            key: a second order with the same key changes nothing and returns the first.
        """
        given = {
            "new_id": action_id,
            "new_project_id": project_id,
            "new_client_key": key,
            "new_action": action.value,
            "new_wanted": msgspec.json.encode(values).decode(),
            "new_actor": msgspec.json.encode(by).decode(),
            "delay_s": delay_s,
        }
        if connection.execute(_ADD[connection.dialect.name], given).rowcount != 1:
            first = {"of_project_id": project_id, "of_key": key}
            return as_action(connection.execute(_BY_KEY, first).one())
        is_meant = _is_meant(action, values, is_filter=isinstance(chosen.batches, BatchFilter))
        counts = _counted(connection, chosen, is_meant)
        source = (
            chosen.select(connection, literal(action_id), batch.c.sequence, batch.c.id)
            .where(is_meant)
            .order_by(batch.c.sequence)
        )
        added = connection.execute(
            insert(bulk_action_item).from_select(["action_id", "batch_sequence", "batch_id"], source)
        ).rowcount
        # On Postgres the two statements see two states of the table.
        totals = {"new_matched": max(counts.matched, added), "new_total": added}
        connection.execute(_SET_TOTALS, {"of_action_id": action_id, **totals})
        return as_action(connection.execute(_ONE, {"of_action_id": action_id}).one())

    @read
    @staticmethod
    def get(
        connection: Connection, project_id: ProjectId | None, action_id: str
    ) -> tuple[BulkAction, float] | None:
        """The action, and the store's time; None when the project has no such action.

        Args:
            project_id: None for an action of any project, here and in other verbs.
        """
        query = _ONE.add_columns(now().label("store_now"))
        row = _of_project(connection.execute(query, {"of_action_id": action_id}).one_or_none(), project_id)
        return None if row is None else (as_action(row), float(row.store_now))

    @read
    @staticmethod
    def list(
        connection: Connection, project_id: ProjectId, *, after: str | None = None, limit: int = 20
    ) -> Page[tuple[BulkAction, float]]:
        """Newest first, each with the store's time.

        Raises:
            NotFoundError: the project has no action `after`.
        """
        query = select(*_ACTION_COLUMNS, now().label("store_now")).where(
            bulk_action.c.project_id == project_id
        )
        if after is not None:
            row = connection.execute(_ONE, {"of_action_id": after}).one_or_none()
            if row is None or row.project_id != project_id:
                raise NotFoundError(f"No action found with id '{after}' to list after.", param="after")
            query = query.where(bulk_action.c.sequence < row.sequence)
        rows = connection.execute(query.order_by(bulk_action.c.sequence.desc()).limit(limit + 1)).all()
        return Page(
            tuple((as_action(row), row.store_now) for row in rows[:limit]), has_more=len(rows) > limit
        )

    @read
    @staticmethod
    def items(
        connection: Connection,
        action_id: str,
        *,
        results: Sequence[ItemResult] = (),
        after: int = 0,
        limit: int = 100,
    ) -> Page[BulkActionItem]:
        """The batches of an action, the oldest first.

        Args:
            results: only those with one of these; all if empty.
            after: the sequence of the last item of the page before.
        """
        query = ITEMS
        if results:
            query = query.where(bulk_action_item.c.result.in_([result.value for result in results]))
        given = {"of_action_id": action_id, "after": after, "page_rows": limit + 1}
        rows = connection.execute(query, given).all()
        return Page(tuple(as_action_item(row) for row in rows[:limit]), has_more=len(rows) > limit)

    @write
    @staticmethod
    def undo(
        connection: Connection, project_id: ProjectId | None, action_id: str, *, by: Actor
    ) -> BulkAction | None:
        """Calls the action off, or undoes it, or ends it where it is; None when the project has no such
        action. The same action if that was done already.

        Raises:
            ConflictError: it is too late.
        """
        row = _of_project(locked(connection, action_id), project_id)
        if row is None:
            return None
        action = as_action(row)
        if action.state in (BulkActionState.CANCELLED, BulkActionState.UNDOING, BulkActionState.UNDONE):
            return action
        if action.undo_until(row.store_now) is None:
            verb = "undone any more" if action.is_reversible else "undone: what it did stays"
            raise ConflictError(f"The action '{action_id}' has ended and can't be {verb}.")
        values: dict[str, Any] = {"undo_actor": msgspec.json.encode(by).decode(), "note": None}
        if action.state is BulkActionState.PENDING or not action.is_reversible:
            values |= {"state": BulkActionState.CANCELLED.value, "ended_at": row.store_now}
            values |= {"runner_id": None, "lease_expires_at": None}
        else:
            values |= {"state": BulkActionState.UNDOING.value, "ended_at": None, "place": 0}
            values |= {"due_at": row.store_now}
        return written(connection, action_id, values)

    @write
    @staticmethod
    def start(connection: Connection, project_id: ProjectId | None, action_id: str) -> BulkAction | None:
        """Ends the wait of an action; None when the project has no such action."""
        row = _of_project(locked(connection, action_id), project_id)
        if row is None:
            return None
        if row.state != BulkActionState.PENDING.value:
            return as_action(row)
        return written(connection, action_id, {"due_at": min(row.due_at, row.store_now)})

    @write
    @staticmethod
    def delete_old(connection: Connection, *, kept_s: float) -> int:
        """Deletes some rows of an action that ended so many seconds ago; 0 when there is none."""
        old = connection.execute(_OLD, {"kept_s": kept_s}).scalar_one_or_none()
        if old is None:
            return 0
        is_of_it = bulk_action_item.c.action_id == old
        some = select(bulk_action_item.c.batch_sequence).where(is_of_it).limit(_ITEMS_AT_ONCE)
        deleted = connection.execute(
            delete(bulk_action_item).where(is_of_it, bulk_action_item.c.batch_sequence.in_(some))
        ).rowcount
        return deleted or connection.execute(delete(bulk_action).where(bulk_action.c.id == old)).rowcount


def locked(connection: Connection, action_id: str) -> Any:
    """The row of an action, under a lock, with the store's time as `store_now`; None if it is gone."""
    return connection.execute(_LOCKED, {"of_action_id": action_id}).one_or_none()


def written(connection: Connection, action_id: str, values: Mapping[str, Any]) -> BulkAction:
    """Changes the row of an action, which the caller has locked."""
    statement = update(bulk_action).where(bulk_action.c.id == bindparam("of_action_id")).values(**values)
    connection.execute(statement, {"of_action_id": action_id})
    return as_action(connection.execute(_ONE, {"of_action_id": action_id}).one())


def as_action(row: Any) -> BulkAction:
    undo_actor = row.undo_actor
    return BulkAction(
        id=row.id,
        project_id=row.project_id,
        action=SteeringAction(row.action),
        values=msgspec.json.decode(row.wanted),
        state=BulkActionState(row.state),
        by=msgspec.json.decode(row.actor, type=Actor),
        undone_by=None if undo_actor is None else msgspec.json.decode(undo_actor, type=Actor),
        created_at=row.created_at,
        due_at=row.due_at,
        ended_at=row.ended_at,
        matched=row.matched,
        total=row.total,
        place=row.place,
        counts={result: getattr(row, result.value) for result in ItemResult},
        note=row.note,
    )


def as_action_item(row: Any) -> BulkActionItem:
    earlier: dict[str, list[int | None]] = {} if row.earlier is None else msgspec.json.decode(row.earlier)
    return BulkActionItem(
        sequence=row.batch_sequence,
        batch_id=row.batch_id,
        result=None if row.result is None else ItemResult(row.result),
        message=row.message,
        earlier={name: (before, made) for name, (before, made) in earlier.items()},
        retry_id=row.retry_id,
    )


def _of_project(row: Any, project_id: ProjectId | None) -> Any:
    return None if row is None or project_id not in (None, row.project_id) else row


def _is_meant(action: SteeringAction, values: Mapping[str, Any], *, is_filter: bool) -> ColumnElement[bool]:
    """Whether the action would change a batch; the others are left alone."""
    match action:
        case SteeringAction.PAUSE:
            return and_(_has(STEERABLE), batch.c.paused_at.is_(None))
        case SteeringAction.RESUME:
            return and_(_has(STEERABLE), batch.c.paused_at.is_not(None))
        case SteeringAction.PRIORITIZE:
            return and_(_has(_OPEN), batch.c.priority != values["priority"])
        case SteeringAction.DEADLINE | SteeringAction.LIMIT | SteeringAction.CANCEL:
            return _has(STEERABLE)
        case SteeringAction.RETRY:
            has_lines = (
                batch.c.error_file_id.is_not(None)
                if values.get("codes") or values.get("outcomes")
                else batch.c.failed > 0
            )
            # Of all that match, lines that are repeated already are not repeated once more.
            has_retry = exists().where(batch_origin.c.origin_id == batch.c.id)
            return and_(_has(RETRYABLE), has_lines, *([~has_retry] if is_filter else []))


def _has(statuses: frozenset[Status]) -> ColumnElement[bool]:
    return batch.c.status.in_(sorted(status.value for status in statuses))


def _counted(connection: Connection, chosen: Chosen, is_meant: ColumnElement[bool]) -> ChosenCounts:
    kind = (
        batch.c.status.label("status"),
        case((batch.c.paused_at.is_not(None), 1), else_=0).label("paused"),
        case((is_meant, 1), else_=0).label("meant"),
    )
    query = (
        chosen.select(
            connection,
            *kind,
            func.count().label("batches"),
            func.sum(batch.c.failed).label("failed"),
            func.sum(batch.c.total - batch.c.completed - batch.c.failed).label("left"),
        )
    ).group_by(*kind)
    return ChosenCounts(
        {
            (Status(row.status), bool(row.paused), bool(row.meant)): (
                row.batches,
                int(row.failed),
                int(row.left),
            )
            for row in connection.execute(query)
        }
    )
