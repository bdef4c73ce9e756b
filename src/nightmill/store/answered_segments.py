"""Reads which segments of a running batch have answers, for a client that follows the batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, bindparam, select

from nightmill.core.segment import PinnedPart, Segment
from nightmill.ids import BatchId
from nightmill.store.schema import DONE, IN_PROGRESS, LEASED, batch, segment
from nightmill.store.tallies import load_parts
from nightmill.store.verbs import Verbs, read

_ANSWERED = (
    select(
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
    .where(
        segment.c.batch_id == bindparam("of_batch_id"),
        segment.c.number >= bindparam("first_number"),
        segment.c.number < bindparam("end_number"),
        segment.c.token > 0,
    )
    .order_by(segment.c.number)
)
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
        rows = cast("Iterable[Any]", connection.execute(_ANSWERED, given))
        return [
            AnsweredSegment(
                segment=Segment(*row[:4]),
                token=row.token,
                pinned=load_parts(row.pinned),
                answered=row.answered,
                is_leased=bool(row.is_leased),
                is_done=bool(row.is_done),
            )
            for row in rows
        ]

    @read
    @staticmethod
    def is_unchanged(connection: Connection, batch_id: BatchId, number: int, *, token: int) -> bool:
        """Whether the batch is in progress and the segment was not leased again since `token`.

        Then each later holder of the segment, and the finalizer, looks for parts after this moment, so that
        they find at least the records that are durable now.
        """
        given = {"of_batch_id": batch_id, "of_number": number, "seen_token": token}
        return connection.execute(_STANDS, given).first() is not None
