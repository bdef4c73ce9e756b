"""Retries: batches that repeat lines of other batches, and their origins."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, select

from nightmill.core.audit import Actor
from nightmill.core.batch import Batch
from nightmill.core.file import File
from nightmill.core.history import EventKind
from nightmill.core.limits import NO_LIMITS, Limits
from nightmill.ids import BatchId
from nightmill.store import batch_events
from nightmill.store.batch_watch_schema import batch_origin
from nightmill.store.batches import BATCH_COLUMNS, BATCH_WIDTH, Batches, as_batch
from nightmill.store.files import Files
from nightmill.store.idempotency_keys import Idempotency
from nightmill.store.schema import batch
from nightmill.store.verbs import Verbs, read, write

_ORIGIN = (batch_origin.c.batch_id, batch_origin.c.origin_id, batch_origin.c.first, batch_origin.c.count)
_ADD = insert(batch_origin)
_ORIGINS = (
    select(*_ORIGIN).where(batch_origin.c.batch_id == bindparam("of_batch_id")).order_by(batch_origin.c.first)
)
_RETRIES = (
    select(*BATCH_COLUMNS, batch.c.sequence, *_ORIGIN)
    .join(batch_origin, batch_origin.c.batch_id == batch.c.id)
    .where(batch_origin.c.origin_id == bindparam("of_batch_id"))
    .order_by(batch.c.sequence)
)


@dataclass(frozen=True, slots=True)
class BatchOrigin:
    """A run of a retry's lines that repeat lines of another batch, in the order of that batch.

    Args:
        batch_id: the retry.
        origin_id: the batch whose lines it repeats.
        first: the ordinal in the retry of the first repeated line.
        count: how many lines are repeated.
    """

    batch_id: BatchId
    origin_id: BatchId
    first: int
    count: int

    @property
    def ordinals(self) -> range:
        """The ordinals in the retry."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True)
class Retry:
    """A batch that repeats lines of an origin; a higher `sequence` is of a newer batch."""

    batch: Batch
    sequence: int
    origin: BatchOrigin


class BatchOrigins(Verbs):
    """Which batches repeat lines of which."""

    @write
    @staticmethod
    def create(
        connection: Connection,
        new: Batch,
        file: File,
        origins: Sequence[BatchOrigin],
        idempotency: Idempotency | None = None,
        *,
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> Batch:
        """The stored retry: `new`, or the batch that was first created with the idempotency key.

        Adds the input file, the batch and its links, and records the retry in the history of each origin.

        Raises:
            ConflictError: the key was used for a request with another fingerprint.
            QuotaError: the project has as much open as it may.
            RequestError: the project stores as much as it may.
        """
        stored = Batches.create(connection, new, idempotency, limits=limits, by=by)
        if stored.id != new.id:
            return stored
        Files.add(connection, file, limits=limits, by=by)
        for origin in origins:
            row = {
                "batch_id": origin.batch_id,
                "origin_id": origin.origin_id,
                "first": origin.first,
                "count": origin.count,
            }
            connection.execute(_ADD, row)
            detail = {"batch_id": origin.batch_id, "lines": origin.count}
            batch_events.record(connection, origin.origin_id, EventKind.RETRIED, by=by, detail=detail)
        return stored

    @read
    @staticmethod
    def origins(connection: Connection, batch_id: BatchId) -> Sequence[BatchOrigin]:
        """The batches whose lines `batch_id` repeats, in the order of its lines; none if it is no retry."""
        return [BatchOrigin(*row) for row in connection.execute(_ORIGINS, {"of_batch_id": batch_id})]

    @read
    @staticmethod
    def retries(connection: Connection, batch_id: BatchId) -> Sequence[Retry]:
        """The batches that repeat lines of `batch_id`, oldest first."""
        rows = connection.execute(_RETRIES, {"of_batch_id": batch_id})
        return [Retry(as_batch(row), row[BATCH_WIDTH], BatchOrigin(*row[BATCH_WIDTH + 1 :])) for row in rows]
