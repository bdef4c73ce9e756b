"""Reads the output lines of a batch for a client that follows it, each line once.

While the batch runs, lines come from the parts, as they are durable; once it has ended, from its output and
error files. The cursor says which lines the client has; a line is in the cursor before it is yielded.

Why a line that is read from a part stands. A later holder of the segment, and the finalizer, first look for
parts and then count what they found. What they found includes what was read here if they look after this
reader did. They look after their lease, and a lease raises the token. So the reader finds the parts, then
asks the store whether the token is still the same and the batch still in progress, and only then reads the
records it found. Of a leased segment, only pinned parts and the holder's own part are read: a part of an
earlier token may grow behind the length that the holder has found and not pinned yet, and the holder's own
part has none of the lines that it found. While the batch is being ended, only pinned parts are read.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, cast

from nightmill.api.context import ApiContext
from nightmill.core.batch import Batch, Status, Tally
from nightmill.core.file import File
from nightmill.core.result_cursor import ResultCursor, ResultPhase
from nightmill.core.result_filter import LineOutcome, ResultFilter, ordinal_of
from nightmill.core.segment import PinnedPart
from nightmill.errors import DamageError, NotFoundError, RequestError, UnavailableError
from nightmill.ids import BatchId, FileId, ProjectId
from nightmill.parts import PartRecord, PartTail
from nightmill.parts.record import part_key
from nightmill.store.answered_segments import AnsweredSegment

_READ_BYTES: Final = 1 << 20
_LOOK_SEGMENTS: Final = 256
# While the cursor has this many gaps, only segments that are done are read: lines in flight make the gaps.
_MOST_RUNS: Final = 256
# Lines that are in no segment leave gaps for good; with so many, all other lines wait for the batch's end.
_MOST_RUNS_OF_DONE: Final = 4_096


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One output line, without its line break."""

    outcome: LineOutcome
    text: bytes


@dataclass(slots=True)
class _KnownSegment:
    """What this reader has read of a segment that is not done.

    Attributes:
        parts: those that were read to their length.
        tail: how far the part of the holder was read.
        state: token, answered lines and pinned parts when all of that was read.
    """

    parts: set[PinnedPart] = field(default_factory=set)
    tail: PartTail | None = None
    state: tuple[int, int, Sequence[PinnedPart]] | None = None


class ResultReader:
    """The lines of one batch for one client.

    Attributes:
        batch: as it was read last.
        cursor: what the client has, with the line yielded last.
    """

    def __init__(
        self, context: ApiContext, batch: Batch, *, cursor: ResultCursor, wanted: ResultFilter
    ) -> None:
        self.batch = batch
        self.cursor = cursor
        self._store = context.store
        self._blobs = context.blobs
        self._parts = context.parts
        self._wanted = wanted
        self._seen: tuple[Status, Tally] | None = None
        self._known: dict[int, _KnownSegment] = {}
        self._is_leased_again = False

    @property
    def is_complete(self) -> bool:
        """Whether the batch has ended and every line was given."""
        return self.cursor.phase is ResultPhase.END

    async def ready(self) -> AsyncGenerator[ResultLine]:
        """The lines that can be read now and that the client does not have. Ends without waiting for more.

        Raises:
            NotFoundError: the batch or one of its files was deleted.
            UnavailableError: the storage cannot be reached.
        """
        self.batch = await self._batch_now(self.batch.project_id, self.batch.id)
        lines = self._from_files() if self.batch.status.is_terminal else self._from_parts()
        async with aclosing(lines):
            async for line in lines:
                yield line

    async def _batch_now(self, project: ProjectId, batch_id: BatchId) -> Batch:
        batch = await self._store.batches.get(project, batch_id)
        if batch is None:
            raise NotFoundError(f"The batch '{batch_id}' was deleted.")
        return batch

    # --- while the batch runs ------------------------------------------------------------------------

    async def _from_parts(self) -> AsyncGenerator[ResultLine]:
        batch = self.batch
        seen = batch.status, batch.tally
        if seen == self._seen:
            return  # no answer was reported since
        is_whole = True
        first = self.cursor.segments.missing_from(0)
        while found := await self._store.answered_segments.list(batch.id, first=first, count=_LOOK_SEGMENTS):
            for it in found:
                if it.segment.number in self.cursor.segments or not self._may_read(it):
                    continue
                async with aclosing(self._of_segment(it)) as lines:
                    async for line in lines:
                        yield line
                if self._is_leased_again:
                    is_whole = False
            first = self.cursor.segments.missing_from(first + _LOOK_SEGMENTS)
        if is_whole:
            self._seen = seen

    def _may_read(self, it: AnsweredSegment) -> bool:
        runs = self.cursor.lines.run_count
        return runs < (_MOST_RUNS_OF_DONE if it.is_done else _MOST_RUNS)

    async def _of_segment(self, it: AnsweredSegment) -> AsyncGenerator[ResultLine]:
        self._is_leased_again = False
        try:
            async with aclosing(self._records(it)) as groups:
                async for records in groups:
                    for record in records:
                        # Parts are read in order, so the first record of a line is the one that stands.
                        if not self.cursor.lines.add(record.ordinal):
                            continue
                        outcome = LineOutcome.FAILED if record.output.is_error else LineOutcome.COMPLETED
                        if self._wanted.matches(record.output.text, outcome):
                            yield ResultLine(outcome, record.output.text[:-1])
        except DamageError as error:
            batch = await self._batch_now(self.batch.project_id, self.batch.id)
            if batch.status.is_terminal:
                return  # its parts were deleted; the next look reads the files
            message = f"Segment {it.segment.number} of '{batch.id}' cannot be read now."
            raise UnavailableError(message) from error
        if it.is_done:
            self.cursor.segments.add(it.segment.number)
            self._known.pop(it.segment.number, None)

    async def _records(self, it: AnsweredSegment) -> AsyncGenerator[Sequence[PartRecord]]:
        """The records that stand and were not read before by this reader, many at a time."""
        known = self._known.setdefault(it.segment.number, _KnownSegment())
        state = it.token, it.answered, it.pinned
        if not it.is_done and known.state == state:
            return  # no answer was reported since
        async with aclosing(self._of_parts(it.pinned, known)) as groups:
            async for records in groups:
                yield records
        if it.is_done or self.batch.status is not Status.IN_PROGRESS:
            known.state = state
            return
        further = self._of_holder(it, known) if it.is_leased else self._of_earlier(it, known)
        async with aclosing(further) as groups:
            async for records in groups:
                yield records
        if not self._is_leased_again:
            known.state = state

    async def _of_parts(
        self, parts: Sequence[PinnedPart], known: "_KnownSegment"
    ) -> AsyncGenerator[Sequence[PartRecord]]:
        for part in parts:
            if part in known.parts:
                continue
            reading = cast("AsyncGenerator[Sequence[PartRecord]]", self._parts.read([part]))
            async with aclosing(reading) as groups:
                async for records in groups:
                    yield records
            known.parts.add(part)

    async def _of_earlier(
        self, it: AnsweredSegment, known: "_KnownSegment"
    ) -> AsyncGenerator[Sequence[PartRecord]]:
        """The parts of a segment without a holder."""
        found = await self._parts.find(it.segment, below=it.token + 1, pinned=it.pinned)
        if not await self._is_unchanged(it):
            return
        async with aclosing(self._of_parts(found, known)) as groups:
            async for records in groups:
                yield records

    async def _of_holder(
        self, it: AnsweredSegment, known: "_KnownSegment"
    ) -> AsyncGenerator[Sequence[PartRecord]]:
        """The part of the holder, behind what was read of it."""
        key = part_key(it.segment, it.token)
        if known.tail is None or known.tail.key != key:
            known.tail = PartTail(key)
        while True:
            records, tail = await self._parts.tail(known.tail)
            if not records or not await self._is_unchanged(it):
                return
            yield records
            known.tail = tail

    async def _is_unchanged(self, it: AnsweredSegment) -> bool:
        batch_id, number = it.segment.batch_id, it.segment.number
        is_unchanged = await self._store.answered_segments.is_unchanged(batch_id, number, token=it.token)
        self._is_leased_again = not is_unchanged
        return is_unchanged

    # --- after the batch has ended -------------------------------------------------------------------

    async def _from_files(self) -> AsyncGenerator[ResultLine]:
        cursor, batch = self.cursor, self.batch
        if cursor.phase is ResultPhase.PARTS:
            has_all = batch.status is Status.FAILED or len(cursor.lines) >= batch.total
            cursor.enter(ResultPhase.END if has_all else ResultPhase.OUTPUT)
        if cursor.phase is ResultPhase.OUTPUT:
            async with aclosing(self._of_file(batch.output_file_id, LineOutcome.COMPLETED)) as lines:
                async for line in lines:
                    yield line
            cursor.enter(ResultPhase.ERROR)
        if cursor.phase is ResultPhase.ERROR:
            async with aclosing(self._of_file(batch.error_file_id, LineOutcome.FAILED)) as lines:
                async for line in lines:
                    yield line
            cursor.enter(ResultPhase.END)

    async def _of_file(self, file_id: FileId | None, outcome: LineOutcome) -> AsyncGenerator[ResultLine]:
        if file_id is None or not self._wanted.wants(outcome):
            return
        cursor = self.cursor
        file = await self._store.files.get(self.batch.project_id, file_id)
        if file is None:
            raise self._deleted(outcome)
        if cursor.offset > file.size_bytes:
            message = "'after' is not a cursor. Send one that this server has returned, unchanged."
            raise RequestError(message, param="after", code="invalid_cursor")
        rest = b""
        while cursor.offset + len(rest) < file.size_bytes:
            rest += await self._next_bytes(file, cursor.offset + len(rest), len(rest), outcome)
            *whole, rest = rest.split(b"\n")
            for text in whole:
                cursor.offset += len(text) + 1
                if ordinal_of(text) not in cursor.lines and self._wanted.matches(text, outcome):
                    yield ResultLine(outcome, text)

    async def _next_bytes(self, file: File, start: int, kept_bytes: int, outcome: LineOutcome) -> bytes:
        """At least as many bytes as are kept of an unfinished line, so that a long line is copied seldom."""
        try:
            chunk = await self._blobs.read(file.blob_key, start, max(_READ_BYTES, kept_bytes))
        except FileNotFoundError:
            raise self._deleted(outcome) from None
        if not chunk:
            raise UnavailableError(f"The file '{file.id}' is shorter than it should be.")
        return chunk

    def _deleted(self, outcome: LineOutcome) -> NotFoundError:
        kind = "output" if outcome is LineOutcome.COMPLETED else "error"
        message = f"The {kind} file of '{self.batch.id}' was deleted or has expired, and its lines with it."
        return NotFoundError(message, code="results_deleted")
