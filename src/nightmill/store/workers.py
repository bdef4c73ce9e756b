"""Which processes of all machines are at work, and which leases each holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, bindparam, func, select, text

from nightmill.core.process_info import ProcessInfo, read_process_info
from nightmill.ids import BatchId, WorkerId
from nightmill.store.clock import now
from nightmill.store.counts import IS_PROCESS
from nightmill.store.schema import IS_LEASABLE, IS_LEASED, IS_OPEN_SLICE, LEASED, batch, segment, slice_
from nightmill.store.upstream_schema import process_counts, upstream_report
from nightmill.store.verbs import Verbs, read

_PROCESSES: Final = (
    select(
        process_counts.c.process_id,
        process_counts.c.about,
        (now() - process_counts.c.reported_at).label("age_s"),
    )
    .where(IS_PROCESS)
    .order_by(process_counts.c.process_id)
    .limit(bindparam("most"))
)
_REPORTED: Final = (
    select(upstream_report.c.worker_id, (now() - func.max(upstream_report.c.reported_at)).label("age_s"))
    .group_by(upstream_report.c.worker_id)
    .limit(bindparam("most"))
)
_SEGMENTS: Final = (
    select(
        segment.c.worker_id,
        segment.c.batch_id,
        func.count(),
        func.sum(segment.c["count"]),
        func.sum(segment.c.completed + segment.c.failed),
        (func.min(segment.c.lease_expires_at) - now()),
    )
    .where(text("segment." + IS_LEASED))
    .group_by(segment.c.worker_id, segment.c.batch_id)
    .order_by(segment.c.worker_id, segment.c.batch_id)
    .limit(bindparam("most"))
)
# Those that are leased are among the oldest: batches are leased in their order.
_OLDEST_LEASABLE = (
    select(batch.c.id, batch.c.status, batch.c.total, batch.c.lease_worker_id, batch.c.lease_expires_at)
    .where(text("batch." + IS_LEASABLE))
    .order_by(batch.c.sequence)
    .limit(bindparam("most"))
    .subquery()
)
_BATCHES: Final = select(
    _OLDEST_LEASABLE.c.lease_worker_id,
    _OLDEST_LEASABLE.c.id,
    _OLDEST_LEASABLE.c.status,
    _OLDEST_LEASABLE.c.total,
    (_OLDEST_LEASABLE.c.lease_expires_at - now()),
).where(_OLDEST_LEASABLE.c.lease_worker_id.is_not(None))
_SLICES: Final = (
    select(
        slice_.c.worker_id,
        slice_.c.batch_id,
        func.count(),
        (func.min(slice_.c.lease_expires_at) - now()),
    )
    .where(text("slice." + IS_OPEN_SLICE), slice_.c.state == LEASED)
    .group_by(slice_.c.worker_id, slice_.c.batch_id)
    .order_by(slice_.c.worker_id, slice_.c.batch_id)
    .limit(bindparam("most"))
)


class LeaseKind(StrEnum):
    """What a process holds of a batch."""

    SEGMENTS = "segments"
    """Lines, to be sent to upstreams."""
    BATCH = "batch"
    """The batch itself, to validate its input or to write its files."""
    SLICES = "slices"
    """Pieces of the files of a huge batch, to be written."""


@dataclass(frozen=True, slots=True)
class KnownProcess:
    """A process that has reported lately.

    Args:
        info: what it says of itself; None if it is of an older version.
        silent_s: seconds since its last report.
    """

    id: WorkerId
    info: ProcessInfo | None
    silent_s: float


@dataclass(frozen=True, slots=True)
class HeldLease:
    """What one process holds of one batch.

    Args:
        status: of the batch, where the batch itself is held.
        count: of segments or slices; 1 for the batch itself.
        lines: lines of all of them; 0 for slices.
        answered: those of the lines that are answered.
        expires_in_s: seconds until the first of the leases expires, unless it is renewed.
    """

    holder: WorkerId
    kind: LeaseKind
    batch_id: BatchId
    status: str | None
    count: int
    lines: int
    answered: int
    expires_in_s: float


class Workers(Verbs):
    """Processes and leases of the whole fleet."""

    @read
    @staticmethod
    def processes(connection: Connection, *, most: int) -> Sequence[KnownProcess]:
        """The processes that have not ended, by id. A report on upstreams counts as a sign of life."""
        reported = {row[0]: row[1] for row in connection.execute(_REPORTED, {"most": most})}
        return [
            KnownProcess(
                WorkerId(process_id),
                read_process_info(about),
                max(0.0, min(age_s, reported.get(process_id, age_s))),
            )
            for process_id, about, age_s in connection.execute(_PROCESSES, {"most": most})
        ]

    @read
    @staticmethod
    def leases(connection: Connection, *, most: int) -> Sequence[HeldLease]:
        """What is leased, by holder and batch; of each kind at most so many."""
        given = {"most": most}
        return [
            *(
                HeldLease(
                    WorkerId(holder),
                    LeaseKind.SEGMENTS,
                    BatchId(batch_id),
                    None,
                    count,
                    int(lines),
                    int(answered),
                    left_s,
                )
                for holder, batch_id, count, lines, answered, left_s in connection.execute(_SEGMENTS, given)
            ),
            *(
                HeldLease(WorkerId(holder), LeaseKind.BATCH, BatchId(batch_id), status, 1, total, 0, left_s)
                for holder, batch_id, status, total, left_s in connection.execute(_BATCHES, given)
            ),
            *(
                HeldLease(WorkerId(holder), LeaseKind.SLICES, BatchId(batch_id), None, count, 0, 0, left_s)
                for holder, batch_id, count, left_s in connection.execute(_SLICES, given)
            ),
        ]
