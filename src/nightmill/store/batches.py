"""Batches: rows, pages, and the one statement that writes a status."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Update, bindparam, func, insert, select, text, update

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.batch import TERMINAL, Batch, LineError, Status
from nightmill.core.limits import Limits, refusal_to_create
from nightmill.ids import BatchId, ProjectId
from nightmill.store import audit, projects, schema
from nightmill.store.clock import now
from nightmill.store.idempotent import first_object
from nightmill.store.paging import named_place, place, place_of
from nightmill.store.protocol import Backlog, Idempotency, Page
from nightmill.store.schema import TALLY_COLUMNS, batch, segment
from nightmill.store.tallies import TALLY_WIDTH, tally_of, tally_values

_STAMPS = tuple(f"{status}_at" for status in Status if status is not Status.VALIDATING)
_BEFORE_TALLY = (
    "id",
    "project_id",
    "endpoint",
    "input_file_id",
    "input_blob_key",
    "completion_window",
    "created_at",
    "expires_at",
    "status",
    "model",
    "metadata",
    "output_expires_after_s",
    "errors",
    "output_file_id",
    "error_file_id",
    "total",
    "input_bytes",
    "enqueued_tokens",
)
BATCH_COLUMNS = tuple(batch.c[name] for name in (*_BEFORE_TALLY, *TALLY_COLUMNS, *_STAMPS))
BATCH_WIDTH = len(BATCH_COLUMNS)
_TALLY_ENDS = len(_BEFORE_TALLY) + TALLY_WIDTH

_BATCH = select(*BATCH_COLUMNS)
_ANY_BATCH = _BATCH.where(batch.c.id == bindparam("batch_id"))
_ONE_BATCH = _ANY_BATCH.where(batch.c.project_id == bindparam("project_id"))
_PAGE = (
    _BATCH.where(batch.c.project_id == bindparam("project_id"))
    .order_by(batch.c.created_at.desc(), batch.c.sequence.desc())
    .limit(bindparam("page_rows"))
)
_NEXT_PAGE = _PAGE.where(place(batch) < named_place())
_CREATED_SINCE = select(func.count()).where(
    batch.c.project_id == bindparam("project_id"), batch.c.created_at >= bindparam("since")
)
_ADD = insert(batch)
_OVERDUE = _BATCH.where(text(schema.IS_IN_PROGRESS), batch.c.expires_at <= now()).order_by(batch.c.expires_at)
_ENDED = select(batch.c.id).where(
    batch.c.id.in_(bindparam("batch_ids", expanding=True)),
    batch.c.status.in_([status.value for status in TERMINAL]),
)
_SETTLED = _BATCH.where(text(schema.IS_SETTLED)).order_by(batch.c.sequence)
_BY_STATUS = select(batch.c.status, func.count()).where(text(schema.IS_UNFINISHED)).group_by(batch.c.status)
# Counted without a look at what waits, which may be a million: what is left, less what is leased of it.
_LEFT = (
    select(func.coalesce(func.sum(batch.c.segments_left), 0))
    .where(text("batch." + schema.IS_IN_PROGRESS))
    .scalar_subquery()
)
_LEASED = select(func.count()).select_from(segment).where(text("segment." + schema.IS_LEASED))
_LEASED_OF_THEM = _LEASED.join(batch, batch.c.id == segment.c.batch_id).where(
    text("batch." + schema.IS_IN_PROGRESS)
)
_SEGMENTS = select(
    (_LEFT - _LEASED_OF_THEM.scalar_subquery()).label("waiting"), _LEASED.scalar_subquery().label("leased")
)


def as_batch(row: Sequence[Any]) -> Batch:
    """From the columns of `BATCH_COLUMNS`, and whatever may stand behind them."""
    (
        batch_id,
        project_id,
        endpoint,
        input_file_id,
        input_blob_key,
        completion_window,
        created_at,
        expires_at,
        status,
        model,
        metadata,
        output_expires_after_s,
        errors,
        output_file_id,
        error_file_id,
        total,
        input_bytes,
        enqueued_tokens,
    ) = row[: len(_BEFORE_TALLY)]
    return Batch(
        id=batch_id,
        project_id=project_id,
        endpoint=endpoint,
        input_file_id=input_file_id,
        input_blob_key=input_blob_key,
        completion_window=completion_window,
        created_at=created_at,
        expires_at=expires_at,
        status=Status(status),
        model=model,
        metadata=None if metadata is None else json.loads(metadata),
        output_expires_after_s=output_expires_after_s,
        errors=() if errors is None else tuple(LineError(*error) for error in json.loads(errors)),
        output_file_id=output_file_id,
        error_file_id=error_file_id,
        total=total,
        input_bytes=input_bytes,
        enqueued_tokens=enqueued_tokens,
        tally=tally_of(row[len(_BEFORE_TALLY) : _TALLY_ENDS]),
        **dict(zip(_STAMPS, row[_TALLY_ENDS:BATCH_WIDTH], strict=True)),
    )


def dump_errors(errors: Sequence[LineError]) -> str | None:
    if not errors:
        return None
    return json.dumps([[error.code, error.message, error.param, error.line] for error in errors])


def _dump_metadata(metadata: Mapping[str, str] | None) -> str | None:
    return None if metadata is None else json.dumps(dict(metadata))


def _batch_row(it: Batch) -> dict[str, Any]:
    return {
        "id": it.id,
        "project_id": it.project_id,
        "endpoint": it.endpoint,
        "input_file_id": it.input_file_id,
        "input_blob_key": it.input_blob_key,
        "completion_window": it.completion_window,
        "created_at": it.created_at,
        "expires_at": it.expires_at,
        "status": it.status.value,
        "model": it.model,
        "metadata": _dump_metadata(it.metadata),
        "output_expires_after_s": it.output_expires_after_s,
        "errors": dump_errors(it.errors),
        "output_file_id": it.output_file_id,
        "error_file_id": it.error_file_id,
        "total": it.total,
        "input_bytes": it.input_bytes,
        "enqueued_tokens": it.enqueued_tokens,
        **tally_values(it.tally),
        **{stamp: getattr(it, stamp) for stamp in _STAMPS},
    }


def create_batch(
    connection: Connection, it: Batch, idempotency: Idempotency | None, limits: Limits, by: Actor | None
) -> Batch:
    first_id = first_object(
        connection,
        project_id=it.project_id,
        operation="create_batch",
        idempotency=idempotency,
        object_id=it.id,
    )
    if first_id != it.id:
        return as_batch(connection.execute(_ANY_BATCH, {"batch_id": first_id}).one())
    limits = projects.limits_of(connection, it.project_id, limits)
    if limits.open_batches or limits.open_bytes or limits.open_lines:
        projects.locked_bytes(connection, it.project_id)
        opened = projects.open_of(connection, it.project_id)
        refusal = refusal_to_create(limits, opened, project_id=it.project_id, size_bytes=it.input_bytes)
        if refusal is not None:
            raise refusal
    connection.execute(_ADD, _batch_row(it))
    audit.record(connection, by, AuditAction.BATCH_CREATED, it.id, project_id=it.project_id)
    return it


def find_batch(connection: Connection, project_id: ProjectId, batch_id: BatchId) -> Batch | None:
    row = connection.execute(_ONE_BATCH, {"batch_id": batch_id, "project_id": project_id}).one_or_none()
    return None if row is None else as_batch(row)


def list_batches(
    connection: Connection, project_id: ProjectId, after: BatchId | None, limit: int
) -> Page[Batch]:
    given: dict[str, Any] = {"project_id": project_id, "page_rows": limit + 1}
    query = _PAGE
    if after is not None:
        created_at, sequence = place_of(connection, batch, project_id, after)
        given |= {"after_created_at": created_at, "after_sequence": sequence}
        query = _NEXT_PAGE
    rows = connection.execute(query, given).all()
    return Page(tuple(as_batch(row) for row in rows[:limit]), has_more=len(rows) > limit)


def batches_created_since(connection: Connection, project_id: ProjectId, since: int) -> int:
    return connection.execute(_CREATED_SINCE, {"project_id": project_id, "since": since}).scalar_one()


def overdue_batches(connection: Connection) -> Sequence[Batch]:
    return [as_batch(row) for row in connection.execute(_OVERDUE)]


def settled_batches(connection: Connection) -> Sequence[Batch]:
    return [as_batch(row) for row in connection.execute(_SETTLED)]


def ended_among(connection: Connection, batch_ids: Sequence[BatchId]) -> Sequence[BatchId]:
    return [BatchId(row.id) for row in connection.execute(_ENDED, {"batch_ids": list(batch_ids)})]


def backlog(connection: Connection) -> Backlog:
    segments = connection.execute(_SEGMENTS).one()
    return Backlog(
        batches={Status(status): count for status, count in connection.execute(_BY_STATUS)},
        waiting_segments=int(segments.waiting),
        leased_segments=int(segments.leased),
    )


# --- the one statement that writes a status --------------------------------------------------------------

_MOVE = (
    update(batch)
    .where(batch.c.id == bindparam("batch_id"), batch.c.status == bindparam("expected"))
    .values(
        status=bindparam("new_status"),
        **{stamp: bindparam(f"new_{stamp}") for stamp in _STAMPS},
        # A duty is the right to move a batch on from one status: it ends with the status.
        lease_worker_id=None,
        lease_expires_at=None,
    )
)
HOLDS_DUTY: tuple[ColumnElement[bool], ...] = (
    batch.c.lease_token == bindparam("held_token"),
    batch.c.lease_worker_id.is_not(None),
)


def moving(*, fenced_by: Sequence[ColumnElement[bool]] = (), **values: Any) -> Update:
    """The statement with more conditions and columns; run it with `move`."""
    return _MOVE.where(*fenced_by).values(**values)


_PLAIN_MOVE = moving()


def move(
    connection: Connection, statement: Update, after: Batch, *, expected: Status, **parameters: Any
) -> bool:
    """Whether the batch was still in `expected` and the statement's other conditions held."""
    given = {
        "batch_id": after.id,
        "expected": expected.value,
        "new_status": after.status.value,
        **{f"new_{stamp}": getattr(after, stamp) for stamp in _STAMPS},
        **parameters,
    }
    return connection.execute(statement, given).rowcount == 1


def move_batch(connection: Connection, after: Batch, expected: Status, by: Actor | None = None) -> bool:
    if not move(connection, _PLAIN_MOVE, after, expected=expected):
        return False
    if after.status is Status.CANCELLING:
        audit.record(connection, by, AuditAction.BATCH_CANCELLED, after.id, project_id=after.project_id)
    return True
