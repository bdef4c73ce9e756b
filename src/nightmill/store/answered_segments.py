"""Reads which segments of a running batch have answers, for a client that follows the batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, bindparam, case, select

from nightmill.core.segment import PinnedPart, Segment
from nightmill.ids import BatchId
from nightmill.store.schema import DONE, IN_PROGRESS, LEASED, batch, segment
from nightmill.store.tallies import load_parts
from nightmill.store.verbs import Verbs, read

_COLUMNS = (
    segment.c.batch_id,
    segment.c.number,
    segment.c.first,
    segment.c.count,
    segment.c.token,
    segment.c.pinned,
    (segment.c.completed + segment.c.failed).label("answered"),
    (segment.c.state == LEASED).label("is_leased"),
    (segment.c.state == DONE).label("is_done"),
)
_ANSWERED = (
    select(*_COLUMNS)
    .where(
        segment.c.batch_id == bindparam("of_batch_id"),
        segment.c.number >= bindparam("first_number"),
        segment.c.number < bindparam("end_number"),
        segment.c.token > 0,
    )
    .order_by(segment.c.number)
)
_NEWEST = (
    select(*_COLUMNS)
    .where(segment.c.batch_id == bindparam("of_batch_id"), segment.c.token > 0)
    .order_by(case((segment.c.state == LEASED, 0), else_=1), segment.c.number.desc())
    .limit(bindparam("most"))
)
_NEWEST_FAILED = _NEWEST.where(segment.c.failed > 0)
_STANDS = (
    select(segment.c.number)
    .join(batch, batch.c.id == segment.c.batch_id)
    .where(
        segment.c.batch_id == bindparam("of_batch_id"),
        segment.c.number == bindparam("of_number"),
        segment.c.token == bindparam("seen_token"),
        batch.c.status == IN_PROGRESS,
    )
)


@dataclass(frozen=True, slots=True)
class AnsweredSegment:
    """A segment that was leased at least once.

    `answered` counts the lines that were reported as durably answered; more may be.
    """

    segment: Segment
    token: int
    pinned: tuple[PinnedPart, ...]
    answered: int
    is_leased: bool
    is_done: bool


class AnsweredSegments(Verbs):
    """Segments as a reader of a running batch sees them. No verb here writes."""

    @read
    @staticmethod
    def list(
        connection: Connection, batch_id: BatchId, *, first: int, count: int
    ) -> Sequence[AnsweredSegment]:
        """Of the segments `first` to `first + count`, those that were ever leased."""
        given = {"of_batch_id": batch_id, "first_number": first, "end_number": first + count}
        return _segments(connection.execute(_ANSWERED, given))

    @read
    @staticmethod
    def newest(connection: Connection, batch_id: BatchId, *, most: int) -> Sequence[AnsweredSegment]:
        """Segments that were ever leased: those with a lease first, then those with the highest numbers,
        which were leased last."""
        return _segments(connection.execute(_NEWEST, {"of_batch_id": batch_id, "most": most}))

    @read
    @staticmethod
    def newest_failed(connection: Connection, batch_id: BatchId, *, most: int) -> Sequence[AnsweredSegment]:
        """As `newest`, of the segments for which failed lines were reported."""
        return _segments(connection.execute(_NEWEST_FAILED, {"of_batch_id": batch_id, "most": most}))

    @read
    @staticmethod
    def is_unchanged(connection: Connection, batch_id: BatchId, number: int, *, token: int) -> bool:
        """Whether the batch is in progress and the segment was not leased again since `token`.

        Then each later holder of the segment, and the finalizer, looks for parts after this moment, so that
        they find at least the records that are durable now.
        """
        given = {"of_batch_id": batch_id, "of_number": number, "seen_token": token}
        return connection.execute(_STANDS, given).first() is not None


def _segments(rows: object) -> Sequence[AnsweredSegment]:
    return [
        AnsweredSegment(
            segment=Segment(*row[:4]),
            token=row.token,
            pinned=load_parts(row.pinned),
            answered=row.answered,
            is_leased=bool(row.is_leased),
            is_done=bool(row.is_done),
        )
        for row in cast("Iterable[Any]", rows)
    ]
