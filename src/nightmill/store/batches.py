"""Batches: rows, pages, and the one statement that writes a status."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Update, bindparam, false, func, insert, select, text, update

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.batch import TERMINAL, Batch, LineError, Status
from nightmill.core.batch_options import BatchOptions, StopReason
from nightmill.core.history import EventKind
from nightmill.core.limits import NO_LIMITS, Limits, refusal_to_create
from nightmill.core.segment import BatchTerms
from nightmill.ids import BatchId, ProjectId
from nightmill.store import audit, batch_events, projects, schema, webhooks
from nightmill.store.clock import now
from nightmill.store.idempotency_keys import Idempotency, first_object
from nightmill.store.leased_table import LeasedTable
from nightmill.store.paging import Page, named_place, page_of, place
from nightmill.store.schema import IN_PROGRESS, TALLY_COLUMNS, batch, segment
from nightmill.store.tallies import TALLY_WIDTH, tally_of, tally_values
from nightmill.store.verbs import Verbs, read, write

_STAMPS = tuple(f"{status}_at" for status in Status if status is not Status.VALIDATING)
# Each is a column and the field of `Batch` with the same name.
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
    "priority",
    "options",
    "paused_at",
    "concurrency",
    "canary_segments",
    "stop_reason",
    "invalid",
    "report_blob_key",
    "retries",
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
_NO_OPTIONS = BatchOptions()
_OVERDUE = _BATCH.where(text(schema.IS_SENDABLE), batch.c.expires_at <= now()).order_by(batch.c.expires_at)
_OVERDUE_PAUSED = _BATCH.where(text(schema.IS_PAUSED), batch.c.expires_at <= now()).order_by(
    batch.c.expires_at
)
_ENDED = select(batch.c.id).where(
    batch.c.id.in_(bindparam("batch_ids", expanding=True)),
    batch.c.status.in_([status.value for status in TERMINAL]),
)
_TERMS = select(
    batch.c.id,
    batch.c.status,
    batch.c.paused_at,
    batch.c.expires_at,
    batch.c.concurrency,
    func.coalesce(batch.c.lines_wanted_until > now(), false()).label("are_lines_wanted"),
).where(batch.c.id.in_(bindparam("batch_ids", expanding=True)))
# From the leased segments, which are few, to their batches, which may be many.
_AT_WORK_WITH_OPTIONS = _BATCH.where(
    batch.c.id.in_(select(segment.c.batch_id).where(text("segment." + schema.IS_LEASED))),
    batch.c.status == IN_PROGRESS,
    batch.c.options.is_not(None),
)
_SETTLED = _BATCH.where(text(schema.IS_SETTLED)).order_by(batch.c.sequence)
_BY_STATUS = select(batch.c.status, func.count()).where(text(schema.IS_UNFINISHED)).group_by(batch.c.status)
# Waiting segments may be a million and are not read: they are the segments left, less the leased ones.
_LEFT = (
    select(func.coalesce(func.sum(batch.c.segments_left), 0))
    .where(text("batch." + schema.IS_SENDABLE))
    .scalar_subquery()
)
# Of the batches in progress, which may be many, the first has the lowest sequence.
_OLDEST_OTHER = (
    select(func.min(batch.c.created_at))
    .where(text("batch." + schema.IS_UNFINISHED), batch.c.status != Status.IN_PROGRESS.value)
    .scalar_subquery()
)
_OLDEST_SENDABLE = (
    select(batch.c.created_at)
    .where(text("batch." + schema.IS_SENDABLE))
    .order_by(batch.c.sequence)
    .limit(1)
    .scalar_subquery()
)
_OLDEST = select(_OLDEST_OTHER.label("other"), _OLDEST_SENDABLE.label("in_progress"))
_LEASED = select(func.count()).select_from(segment).where(text("segment." + schema.IS_LEASED))
_LEASED_OF_THEM = _LEASED.join(batch, batch.c.id == segment.c.batch_id).where(
    text("batch." + schema.IS_SENDABLE)
)
_SEGMENTS = select(
    (_LEFT - _LEASED_OF_THEM.scalar_subquery()).label("waiting"), _LEASED.scalar_subquery().label("leased")
)


def as_batch(row: Sequence[Any]) -> Batch:
    """From a row that begins with `BATCH_COLUMNS`."""
    fields: dict[str, Any] = dict(zip(_BEFORE_TALLY, row, strict=False))
    metadata, errors = fields["metadata"], fields["errors"]
    options, stop_reason = fields["options"], fields["stop_reason"]
    fields |= {
        "status": Status(fields["status"]),
        "metadata": None if metadata is None else json.loads(metadata),
        "errors": () if errors is None else tuple(LineError(*error) for error in json.loads(errors)),
        "options": _NO_OPTIONS if options is None else load_options(options),
        "stop_reason": None if stop_reason is None else msgspec.json.decode(stop_reason, type=StopReason),
        "tally": tally_of(row[len(_BEFORE_TALLY) : _TALLY_ENDS]),
        **dict(zip(_STAMPS, row[_TALLY_ENDS:BATCH_WIDTH], strict=True)),
    }
    return Batch(**fields)


def metadata_pair(key: str, value: str) -> str:
    """The text that the metadata of a batch has if, and only if, they have this pair: inside of a text each
    quote is escaped."""
    return f"{json.dumps(key)}: {json.dumps(value)}"


def load_options(text: str) -> BatchOptions:
    return msgspec.json.decode(text, type=BatchOptions)


def dump_errors(errors: Sequence[LineError]) -> str | None:
    if not errors:
        return None
    return json.dumps([[error.code, error.message, error.param, error.line] for error in errors])


def dump_stop_reason(reason: StopReason | None) -> str | None:
    return None if reason is None else msgspec.json.encode(reason).decode()


def _batch_row(new: Batch) -> dict[str, Any]:
    fields = {name: getattr(new, name) for name in (*_BEFORE_TALLY, *_STAMPS)}
    return {
        **fields,
        "status": new.status.value,
        "metadata": None if new.metadata is None else json.dumps(dict(new.metadata)),
        "errors": dump_errors(new.errors),
        "options": None if new.options == _NO_OPTIONS else msgspec.json.encode(new.options).decode(),
        "stop_reason": dump_stop_reason(new.stop_reason),
        **tally_values(new.tally),
    }


# --- the one statement that writes a status --------------------------------------------------------------

LEASES = LeasedTable(
    table=batch,
    row=(batch.c.id == bindparam("of_batch_id"),),
    token="lease_token",  # noqa: S106 - a column
    worker_id="lease_worker_id",
    all_leased=(text(schema.IS_LEASABLE), batch.c.lease_worker_id.is_not(None)),
)
_MOVE = (
    update(batch)
    .where(batch.c.id == bindparam("batch_id"), batch.c.status == bindparam("expected"))
    .values(
        status=bindparam("new_status"),
        **{stamp: bindparam(f"new_{stamp}") for stamp in _STAMPS},
        # A batch lease is the right to move a batch on from one status: it ends with the status.
        **LEASES.released,
    )
)


def moving(*, fenced_by: Sequence[ColumnElement[bool]] = (), **values: Any) -> Update:
    """The statement with more conditions and columns, to be run by `write_status`."""
    return _MOVE.where(*fenced_by).values(**values)


_PLAIN_MOVE = moving()
_LAPSE = moving(fenced_by=(batch.c.expires_at <= now(),))
_STOP = moving(stop_reason=bindparam("new_stop_reason"))


def write_status(
    connection: Connection,
    statement: Update,
    after: Batch,
    *,
    expected: Status,
    by: Actor | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> bool:
    """Writes the status, and records it in the batch's history and for webhooks.

    Args:
        by: the actor that moved the batch; None for nightmill itself.
        parameters: of the statement, besides those of the status and the stamps.

    Returns:
        False when the batch was no longer in `expected`, or another condition of the statement failed.
    """
    given = {
        "batch_id": after.id,
        "expected": expected.value,
        "new_status": after.status.value,
        **{f"new_{stamp}": getattr(after, stamp) for stamp in _STAMPS},
        **(parameters or {}),
    }
    if connection.execute(statement, given).rowcount != 1:
        return False
    batch_events.record(connection, after.id, EventKind(after.status.value), by=by)
    webhooks.enqueue(connection, after)
    return True


def write_stop(
    connection: Connection,
    statement: Update,
    after: Batch,
    reason: StopReason,
    *,
    expected: Status,
    parameters: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
) -> bool:
    """As `write_status`, with the reason why nightmill ends the batch early.

    Args:
        statement: sets `stop_reason` to the parameter `new_stop_reason`.
        detail: of the entry in the history, besides the reason.
    """
    given = {"new_stop_reason": dump_stop_reason(reason), **(parameters or {})}
    if not write_status(connection, statement, after, expected=expected, parameters=given):
        return False
    about = {"code": reason.code, "message": reason.message, **(detail or {})}
    batch_events.record(connection, after.id, EventKind.STOPPED, detail=about)
    return True


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much is unfinished: batches by status, their segments that wait or are leased, and the Unix second
    at which the oldest was created; None without any."""

    batches: dict[Status, int]
    waiting_segments: int
    leased_segments: int
    oldest_created_at: int | None = None


class Batches(Verbs):
    """Batches of a project, and what the roles ask about all batches."""

    @write
    @staticmethod
    def create(
        connection: Connection,
        new: Batch,
        idempotency: Idempotency | None = None,
        *,
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> Batch:
        """The stored batch: `new`, or the batch that was first created with the idempotency key.

        Raises:
            ConflictError: the key was used for a request with another fingerprint.
            QuotaError: the project has as much open as it may.
            RequestError: the batch alone exceeds what the project may have open.
        """
        first_id = first_object(
            connection,
            project_id=new.project_id,
            operation="create_batch",
            idempotency=idempotency,
            object_id=new.id,
        )
        if first_id != new.id:
            return as_batch(connection.execute(_ANY_BATCH, {"batch_id": first_id}).one())
        limits = projects.limits_of(connection, new.project_id, limits)
        if limits.open_batches or limits.open_bytes or limits.open_lines:
            projects.locked_bytes(connection, new.project_id)
            opened = projects.open_of(connection, new.project_id)
            refusal = refusal_to_create(limits, opened, project_id=new.project_id, size_bytes=new.input_bytes)
            if refusal is not None:
                raise refusal
        connection.execute(_ADD, _batch_row(new))
        batch_events.record(connection, new.id, EventKind.CREATED, by=by)
        audit.record(connection, by, AuditAction.BATCH_CREATED, new.id, project_id=new.project_id)
        return new

    @read
    @staticmethod
    def get(connection: Connection, project_id: ProjectId | None, batch_id: BatchId) -> Batch | None:
        """None when the project has no such batch.

        Args:
            project_id: None for a batch of any project.
        """
        query = _ANY_BATCH if project_id is None else _ONE_BATCH
        row = connection.execute(query, {"batch_id": batch_id, "project_id": project_id}).one_or_none()
        return None if row is None else as_batch(row)

    @read
    @staticmethod
    def list(
        connection: Connection, project_id: ProjectId, *, after: BatchId | None = None, limit: int = 20
    ) -> Page[Batch]:
        """Newest first by (created_at, order of insertion).

        Raises:
            NotFoundError: the project never had the batch `after`.
        """
        return page_of(
            connection,
            batch,
            _PAGE,
            _NEXT_PAGE,
            parameters={"project_id": project_id},
            project_id=project_id,
            after=after,
            limit=limit,
            as_item=as_batch,
        )

    @read
    @staticmethod
    def count_since(connection: Connection, project_id: ProjectId, since: int) -> int:
        """How many batches the project created at or after `since` (Unix seconds)."""
        return connection.execute(_CREATED_SINCE, {"project_id": project_id, "since": since}).scalar_one()

    @write
    @staticmethod
    def move(connection: Connection, after: Batch, *, expected: Status, by: Actor | None = None) -> bool:
        """Writes status and stamps of `after`. False when the status is no longer `expected`."""
        if not write_status(connection, _PLAIN_MOVE, after, expected=expected, by=by):
            return False
        if after.status is Status.CANCELLING:
            audit.record(connection, by, AuditAction.BATCH_CANCELLED, after.id, project_id=after.project_id)
        return True

    @write
    @staticmethod
    def lapse(connection: Connection, after: Batch) -> bool:
        """Ends a batch in progress whose deadline has passed. False when it has another status meanwhile, or
        a later deadline."""
        return write_status(connection, _LAPSE, after, expected=Status.IN_PROGRESS)

    @write
    @staticmethod
    def stop(connection: Connection, after: Batch, reason: StopReason, *, expected: Status) -> bool:
        """Writes status, stamps and the reason why nightmill ends the batch early.

        False when the status is no longer `expected`.
        """
        return write_stop(connection, _STOP, after, reason, expected=expected)

    @read
    @staticmethod
    def overdue(connection: Connection) -> Sequence[Batch]:
        """Batches `in_progress` whose deadline has passed by the store's clock."""
        rows = (*connection.execute(_OVERDUE), *connection.execute(_OVERDUE_PAUSED))
        return [as_batch(row) for row in rows]

    @read
    @staticmethod
    def at_work_with_options(connection: Connection) -> Sequence[Batch]:
        """Batches `in_progress` with leased segments that were created with options."""
        return [as_batch(row) for row in connection.execute(_AT_WORK_WITH_OPTIONS)]

    @read
    @staticmethod
    def settled(connection: Connection) -> Sequence[Batch]:
        """Batches `in_progress` whose every segment is done."""
        return [as_batch(row) for row in connection.execute(_SETTLED)]

    @read
    @staticmethod
    def ended(connection: Connection, batch_ids: Sequence[BatchId]) -> Sequence[BatchId]:
        """Those of `batch_ids` whose status is terminal."""
        return [BatchId(row.id) for row in connection.execute(_ENDED, {"batch_ids": list(batch_ids)})]

    @read
    @staticmethod
    def terms(connection: Connection, batch_ids: Collection[BatchId]) -> dict[BatchId, BatchTerms]:
        """What the workers that hold segments of these batches have to follow."""
        rows = connection.execute(_TERMS, {"batch_ids": sorted(batch_ids)})
        return {
            BatchId(row.id): BatchTerms(
                Status(row.status),
                row.paused_at is not None,
                row.expires_at,
                row.concurrency,
                bool(row.are_lines_wanted),
            )
            for row in rows
        }

    @read
    @staticmethod
    def backlog(connection: Connection) -> Backlog:
        segments = connection.execute(_SEGMENTS).one()
        return Backlog(
            batches={Status(status): count for status, count in connection.execute(_BY_STATUS)},
            waiting_segments=int(segments.waiting),
            leased_segments=int(segments.leased),
            oldest_created_at=min(
                (at for at in connection.execute(_OLDEST).one() if at is not None), default=None
            ),
        )
