"""What the observer sees of unfinished batches: samples of their progress, and what limited them last.

Several observers may look at the same batches. A sample belongs to a time on a grid, so that each is stored
once, and a report is replaced only by the observer that read it last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, cast, delete, func, or_, select, text, update

from nightmill.core.batch import TERMINAL, Batch
from nightmill.core.forecast import Sample
from nightmill.core.history import EventKind
from nightmill.core.schedule import OpenBatch
from nightmill.ids import BatchId
from nightmill.store import batch_events
from nightmill.store.batch_watch_schema import batch_event, batch_report, batch_sample
from nightmill.store.batches import BATCH_COLUMNS, as_batch
from nightmill.store.clock import now
from nightmill.store.open_batches import OPEN_BATCH_COLUMNS
from nightmill.store.rows import insert_if_absent
from nightmill.store.schema import IS_LEASED, IS_SENDABLE, batch, segment
from nightmill.store.verbs import Verbs, read, write

SAMPLED_EVERY_S: Final = 5
DENSE_S: Final = 300
"""Samples of so many seconds are kept; older ones only on a coarser grid."""

_RUNNING_IDS = (
    select(segment.c.batch_id)
    .where(text("segment." + IS_LEASED))
    .group_by(segment.c.batch_id)
    .order_by(segment.c.batch_id)
    .limit(bindparam("most"))
)
_RUNNING = select(*BATCH_COLUMNS).where(batch.c.id.in_(_RUNNING_IDS))
_NEXT = (
    select(*BATCH_COLUMNS, batch.c.sequence)
    .where(text("batch." + IS_SENDABLE), batch.c.sequence > bindparam("after"))
    .order_by(batch.c.sequence)
    .limit(bindparam("most"))
)
_SOME = select(*OPEN_BATCH_COLUMNS).where(batch.c.id.in_(bindparam("batch_ids", expanding=True)))
_IS_LEASED = select(batch.c.lease_worker_id).where(batch.c.id == bindparam("of_batch_id"))
_PAUSES = (
    select(batch_event.c.at, batch_event.c.kind, batch_event.c.actor)
    .where(
        batch_event.c.batch_id == bindparam("of_batch_id"),
        batch_event.c.kind.in_([EventKind.PAUSED.value, EventKind.RESUMED.value]),
    )
    .order_by(batch_event.c.sequence.desc())
    .limit(200)
)
_LEASED_OF = select(batch.c.id).where(
    batch.c.id.in_(bindparam("batch_ids", expanding=True)), batch.c.lease_worker_id.is_not(None)
)
_SAMPLES = (
    select(
        batch_sample.c.at,
        batch_sample.c.completed + batch_sample.c.failed,
        batch_sample.c.input_tokens,
        batch_sample.c.output_tokens,
        batch_sample.c.in_flight,
    )
    .where(batch_sample.c.batch_id == bindparam("of_batch_id"))
    .order_by(batch_sample.c.at.desc())
    .limit(400)
)
_PROGRESS = (
    select(
        batch_sample.c.at,
        batch_sample.c.completed,
        batch_sample.c.failed,
        batch_sample.c.input_tokens,
        batch_sample.c.output_tokens,
        batch_sample.c.in_flight,
    )
    .where(batch_sample.c.batch_id == bindparam("of_batch_id"))
    .order_by(batch_sample.c.at.desc())
    .limit(400)
)
_PAUSES_OF = (
    select(batch_event.c.batch_id, batch_event.c.at, batch_event.c.kind, batch_event.c.actor)
    .where(
        batch_event.c.batch_id.in_(bindparam("batch_ids", expanding=True)),
        batch_event.c.kind.in_([EventKind.PAUSED.value, EventKind.RESUMED.value]),
    )
    .order_by(batch_event.c.sequence)
)
_NUMBERED = (
    select(
        batch_sample,
        func.row_number()
        .over(partition_by=batch_sample.c.batch_id, order_by=batch_sample.c.at.desc())
        .label("number"),
    )
    .where(batch_sample.c.batch_id.in_(bindparam("batch_ids", expanding=True)))
    .subquery("numbered")
)
_SOME_SAMPLES_OF = (
    select(
        _NUMBERED.c.batch_id,
        _NUMBERED.c.at,
        _NUMBERED.c.completed + _NUMBERED.c.failed,
        _NUMBERED.c.input_tokens,
        _NUMBERED.c.output_tokens,
        _NUMBERED.c.in_flight,
    )
    .where(or_(_NUMBERED.c.number <= 12, _NUMBERED.c.number % 8 == 0))
    .order_by(_NUMBERED.c.batch_id, _NUMBERED.c.at)
)
_COLUMNS = ("batch_id", "at", "completed", "failed", "input_tokens", "output_tokens", "in_flight")
_ADD_SAMPLE = insert_if_absent(batch_sample, {name: bindparam(f"new_{name}") for name in _COLUMNS})
_THIN = delete(batch_sample).where(
    batch_sample.c.batch_id == bindparam("of_batch_id"),
    batch_sample.c.at < bindparam("before"),
    cast(batch_sample.c.at, BigInteger) % bindparam("grid_s", type_=BigInteger) != 0,
)
_SAMPLED = (
    select(batch_sample.c.batch_id)
    .where(batch_sample.c.batch_id > bindparam("after"))
    .group_by(batch_sample.c.batch_id)
    .order_by(batch_sample.c.batch_id)
    .limit(bindparam("most"))
)
_NEWEST = func.coalesce(
    batch.c.completed_at, batch.c.failed_at, batch.c.expired_at, batch.c.cancelled_at, batch.c.created_at
)
_REPORTED = (
    select(batch_report.c.batch_id)
    .where(batch_report.c.batch_id > bindparam("after"))
    .order_by(batch_report.c.batch_id)
    .limit(bindparam("most"))
)
_ENDED_LONG_AGO = select(batch.c.id).where(
    batch.c.id.in_(bindparam("batch_ids", expanding=True)),
    batch.c.status.in_([status.value for status in TERMINAL]),
    now() - bindparam("kept_s") > _NEWEST,
)
_FORGET_SAMPLES = delete(batch_sample).where(
    batch_sample.c.batch_id.in_(bindparam("batch_ids", expanding=True))
)
_FORGET_REPORTS = delete(batch_report).where(
    batch_report.c.batch_id.in_(bindparam("batch_ids", expanding=True))
)
_REPORTS = select(batch_report.c.batch_id, batch_report.c.document, batch_report.c.reported_at).where(
    batch_report.c.batch_id.in_(bindparam("batch_ids", expanding=True))
)
_ADD_REPORT = insert_if_absent(
    batch_report,
    {"batch_id": bindparam("of_batch_id"), "document": bindparam("new_document"), "reported_at": now()},
)
_REPLACE_REPORT = (
    update(batch_report)
    .where(
        batch_report.c.batch_id == bindparam("of_batch_id"),
        batch_report.c.document == bindparam("old_document"),
    )
    .values(document=bindparam("new_document"), reported_at=now())
)


@dataclass(frozen=True, slots=True)
class Around:
    """What is stored around one batch.

    Args:
        is_leased: whether a role works on the batch itself: intake or a finalizer.
        pauses: begin and end of each pause, the oldest first; the end is None while it lasts.
        paused_by: the actor of the pause that lasts.
        samples: the newest ones, in the order of time.
    """

    is_leased: bool
    pauses: Sequence[tuple[float, float | None]]
    paused_by: str | None
    samples: Sequence[Sample]


class StoredSample(NamedTuple):
    """How far a batch was at a time (Unix seconds), as it is stored; the counts are sums since its start."""

    at: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    in_flight: int


class BatchWatch(Verbs):
    """Samples and reports of batches, and the queries by which batches are looked at."""

    @read
    @staticmethod
    def running(connection: Connection, *, most: int) -> Sequence[Batch]:
        """Batches with leased segments."""
        return [as_batch(row) for row in connection.execute(_RUNNING, {"most": most})]

    @read
    @staticmethod
    def next_in_progress(connection: Connection, *, after: int, most: int) -> tuple[Sequence[Batch], int]:
        """Some batches in progress that are not paused, and the sequence to go on with; 0 at the end.

        Args:
            after: those created after the batch with this sequence.
        """
        rows = connection.execute(_NEXT, {"after": after, "most": most}).all()
        return [as_batch(row) for row in rows], rows[-1].sequence if len(rows) == most else 0

    @read
    @staticmethod
    def some(connection: Connection, batch_ids: Sequence[str]) -> Sequence[OpenBatch]:
        """Those of these batches that exist."""
        if not batch_ids:
            return []
        return [OpenBatch(*row) for row in connection.execute(_SOME, {"batch_ids": list(batch_ids)})]

    @read
    @staticmethod
    def around(connection: Connection, batch_id: BatchId) -> Around:
        """What the forecast of one batch needs, and who paused it."""
        given = {"of_batch_id": batch_id}
        holder = connection.execute(_IS_LEASED, given).scalar_one_or_none()
        rows = connection.execute(_PAUSES, given).all()
        samples = [Sample(*row) for row in connection.execute(_SAMPLES, given)]
        is_paused = bool(rows) and rows[0].kind == EventKind.PAUSED.value
        return Around(
            is_leased=holder is not None,
            pauses=_pauses([(row.at, row.kind) for row in reversed(rows)]),
            paused_by=rows[0].actor if is_paused else None,
            samples=samples[::-1],
        )

    @read
    @staticmethod
    def samples(connection: Connection, batch_id: BatchId) -> Sequence[StoredSample]:
        """The samples of a batch in the order of time; none from a week after its end on."""
        rows = connection.execute(_PROGRESS, {"of_batch_id": batch_id})
        return [StoredSample(*row) for row in rows][::-1]

    @read
    @staticmethod
    def around_page(connection: Connection, batch_ids: Sequence[BatchId]) -> Mapping[BatchId, Around]:
        """As `around` for the batches of one page of a list, each with only some of its samples."""
        if not batch_ids:
            return {}
        given = {"batch_ids": list(batch_ids)}
        leased = set(connection.execute(_LEASED_OF, given).scalars())
        moves: dict[str, list[tuple[float, str]]] = {}
        paused_by: dict[str, str | None] = {}
        for row in connection.execute(_PAUSES_OF, given):
            moves.setdefault(row.batch_id, []).append((row.at, row.kind))
            paused_by[row.batch_id] = row.actor if row.kind == EventKind.PAUSED.value else None
        samples: dict[str, list[Sample]] = {}
        for batch_id, *sample in connection.execute(_SOME_SAMPLES_OF, given):
            samples.setdefault(batch_id, []).append(Sample(*sample))
        return {
            batch_id: Around(
                is_leased=batch_id in leased,
                pauses=_pauses(moves.get(batch_id, [])),
                paused_by=paused_by.get(batch_id),
                samples=samples.get(batch_id, ()),
            )
            for batch_id in batch_ids
        }

    @write
    @staticmethod
    def add_samples(connection: Connection, batches: Sequence[tuple[Batch, int]], *, at: int) -> None:
        """Stores a sample of each batch, with its attempts in flight, unless there is one of that time."""
        rows = [
            {
                "new_batch_id": one.id,
                "new_at": at,
                "new_completed": one.tally.completed,
                "new_failed": one.tally.failed,
                "new_input_tokens": one.tally.usage.input_tokens,
                "new_output_tokens": one.tally.usage.output_tokens,
                "new_in_flight": in_flight,
            }
            for one, in_flight in batches
        ]
        if rows:
            connection.execute(_ADD_SAMPLE[connection.dialect.name], rows)

    @write
    @staticmethod
    def thin_samples(connection: Connection, grids_s: Mapping[BatchId, int], *, before: float) -> None:
        """Deletes samples older than `before` that are not on the grid of their batch."""
        for batch_id, grid_s in grids_s.items():
            connection.execute(_THIN, {"of_batch_id": batch_id, "before": before, "grid_s": grid_s})

    @write
    @staticmethod
    def forget_ended(connection: Connection, *, after: str, most: int, kept_s: float) -> str:
        """Deletes samples and reports of batches that ended more than `kept_s` ago.

        Args:
            after: the id after which the search goes on; at most `most` batches are looked at.

        Returns:
            The id to go on with; empty at the end.
        """
        page = {"after": after, "most": most}
        found = {
            *connection.execute(_SAMPLED, page).scalars(),
            *connection.execute(_REPORTED, page).scalars(),
        }
        ids = sorted(found)[:most]
        if ids:
            given = {"batch_ids": ids, "kept_s": kept_s}
            ended = list(connection.execute(_ENDED_LONG_AGO, given).scalars())
            if ended:
                connection.execute(_FORGET_SAMPLES, {"batch_ids": ended})
                connection.execute(_FORGET_REPORTS, {"batch_ids": ended})
        return ids[-1] if len(ids) == most else ""

    @read
    @staticmethod
    def reports(connection: Connection, batch_ids: Sequence[BatchId]) -> Mapping[BatchId, str]:
        """The stored documents of these batches."""
        if not batch_ids:
            return {}
        rows = connection.execute(_REPORTS, {"batch_ids": list(batch_ids)})
        return {BatchId(row.batch_id): row.document for row in rows}

    @write
    @staticmethod
    def put_report(
        connection: Connection,
        batch_id: BatchId,
        document: str,
        *,
        before: str | None,
        detail: Mapping[str, Any] | None,
    ) -> bool:
        """Replaces the document of a batch. False if another observer did so before.

        Args:
            before: the document that is replaced; None if there is none yet.
            detail: of the entry in the batch's history, in the same transaction; None for no entry.
        """
        given = {"of_batch_id": batch_id, "new_document": document}
        if before is None:
            changed = connection.execute(_ADD_REPORT[connection.dialect.name], given).rowcount
        else:
            changed = connection.execute(_REPLACE_REPORT, {**given, "old_document": before}).rowcount
        if changed != 1:
            return False
        if detail is not None:
            batch_events.record(connection, batch_id, EventKind.LIMITED, detail=detail)
        return True


def _pauses(moves: Sequence[tuple[float, str]]) -> list[tuple[float, float | None]]:
    pauses: list[tuple[float, float | None]] = []
    for at, kind in moves:
        if kind == EventKind.PAUSED.value:
            if not pauses or pauses[-1][1] is not None:
                pauses.append((at, None))
        elif pauses and pauses[-1][1] is None:
            pauses[-1] = (pauses[-1][0], at)
    return pauses
