"""Joins the answers of a run of segments, in the order of the input, into an output and an error file.

Promise: every request line of the run stands exactly once in one of the two, whoever joins it and however
often: the bytes are the same each time. Memory is a few segments. Not its duty: whose run it is, and what
becomes of the files (the finalizer).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from nightmill.blobs import Blobs, BlobWriter
from nightmill.core.batch import Batch, Status, Tally, Usage
from nightmill.core.output_line import OutputLine, unanswered
from nightmill.core.request_line import slice_line
from nightmill.core.segment import INDEX_RECORD_BYTES, IndexedLine, SegmentResult, lease_at, unpack_lines
from nightmill.errors import LeaseLost
from nightmill.failpoints import failpoint
from nightmill.ids import output_line_id
from nightmill.parts import Parts
from nightmill.store import Store

_WRITE_BYTES = 1 << 20
_READ_BYTES = 16 << 20
PAGE_SEGMENTS = 200

_UNANSWERED = {
    Status.CANCELLING: (
        "batch_cancelled",
        "This request was not executed because the batch was cancelled.",
    ),
    Status.FINALIZING: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}


@dataclass(frozen=True, slots=True)
class Joined:
    """The tally of the answers that were joined, how many lines nobody answered, and all lines together."""

    tally: Tally
    missing: int
    lines: int


class Joiner:
    def __init__(self, *, store: Store, blobs: Blobs, parts: Parts, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._blobs = blobs
        self._parts = parts
        self._monotonic = monotonic

    async def join(
        self,
        batch: Batch,
        index_blob_key: str,
        pages: "Pages",
        *,
        output: "JoinedFile",
        error: "JoinedFile",
        keep: Callable[[], Awaitable[bool]],
        keep_s: float,
    ) -> Joined:
        """Writes and commits both files.

        Args:
            keep: says every `keep_s` whether it is still ours to do.

        Raises:
            LeaseLost: it no longer is.
        """
        await output.sweep()
        await error.sweep()
        try:
            joined = await self._write(batch, index_blob_key, pages, output, error, keep, keep_s)
            failpoint("finalizer.before_output")
            await output.commit()
            failpoint("finalizer.output_done")
            await error.commit()
            failpoint("finalizer.error_done")
        except BaseException:
            await output.abort()
            await error.abort()
            raise
        return joined

    async def _write(
        self,
        batch: Batch,
        index_blob_key: str,
        pages: "Pages",
        output: "JoinedFile",
        error: "JoinedFile",
        keep: Callable[[], Awaitable[bool]],
        keep_s: float,
    ) -> Joined:
        tally, missing, seen = Tally(), 0, 0
        confirmed = self._monotonic()
        while results := await pages.next():
            for some in _read_together(results, at_once=self._parts.reads_at_once):
                for rows, unsettled_count in await self._rows_of(batch, index_blob_key, some):
                    await output.write([row.text for row in rows if not row.is_error])
                    await error.write([row.text for row in rows if row.is_error])
                    tally = tally.plus(_tally(rows, unanswered_count=unsettled_count))
                    missing += unsettled_count
                    seen += len(rows)
                if self._monotonic() - confirmed > keep_s:
                    confirmed = self._monotonic()
                    if not await keep():
                        raise LeaseLost
        return Joined(tally, missing, seen)

    async def _rows_of(
        self, batch: Batch, index_blob_key: str, results: Sequence[SegmentResult]
    ) -> Sequence[tuple[list[OutputLine], int]]:
        """The rows of each segment in the order of the input, and how many of them nobody answered."""
        if len(results) == 1:
            return [await self._rows(batch, index_blob_key, results[0])]
        try:
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(self._rows(batch, index_blob_key, result)) for result in results]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in reading]

    async def _rows(
        self, batch: Batch, index_blob_key: str, result: SegmentResult
    ) -> tuple[list[OutputLine], int]:
        answers = await self._answers(batch, result)
        lines = await self._lines(index_blob_key, result)
        unsettled = [line for line in lines if line.ordinal not in answers]
        if result.is_done and (unsettled or len(answers) != len(lines)):
            raise _miscount(batch, result, len(answers))
        code, message = _UNANSWERED[batch.status]
        for ordinal, row in await self._unanswered(batch, unsettled, code, message):
            answers[ordinal] = row
        return [answers[line.ordinal] for line in lines], len(unsettled)

    async def _answers(self, batch: Batch, result: SegmentResult) -> dict[int, OutputLine]:
        pinned = result.pinned
        if not result.is_done:
            # Its holder may have died before it could report; the batch's duty made its token void.
            pinned = tuple(await self._parts.find(lease_at(batch, result, token=result.token)))
        answers: dict[int, OutputLine] = {}
        async for record in self._parts.read(pinned):
            answers.setdefault(record.ordinal, record.output)
        return answers

    async def _lines(self, index_blob_key: str, result: SegmentResult) -> list[IndexedLine]:
        segment = result.segment
        records = await self._blobs.read(
            index_blob_key, segment.first * INDEX_RECORD_BYTES, segment.count * INDEX_RECORD_BYTES
        )
        return sorted(unpack_lines(records), key=attrgetter("ordinal"))

    async def _unanswered(
        self, batch: Batch, lines: list[IndexedLine], code: str, message: str
    ) -> list[tuple[int, OutputLine]]:
        if not lines:
            return []
        start = min(line.offset for line in lines)
        end = max(line.offset + line.length_bytes for line in lines)
        text = await self._blobs.read(batch.input_blob_key, start, end - start)
        rows: list[tuple[int, OutputLine]] = []
        for line in lines:
            offset = line.offset - start
            request = slice_line(text[offset : offset + line.length_bytes])
            row = unanswered(
                output_line_id(batch.id, line.ordinal).encode(), request, code=code, message=message
            )
            rows.append((line.ordinal, row))
        return rows


class Pages:
    """The segments of a batch from `first` on, up to `count` of them, a page at a time."""

    def __init__(self, store: Store, batch: Batch, *, first: int = 0, count: int = 1 << 62) -> None:
        self._store = store
        self._batch = batch
        self._next = first
        self._end = first + count
        self._looked_at: Sequence[SegmentResult] | None = None

    async def look(self) -> Sequence[SegmentResult]:
        """The page that `next` gives, without going on."""
        if self._looked_at is None:
            limit = min(PAGE_SEGMENTS, self._end - self._next)
            self._looked_at = (
                await self._store.segments.results(self._batch.id, after=self._next - 1, limit=limit)
                if limit
                else ()
            )
        return self._looked_at

    async def next(self) -> Sequence[SegmentResult]:
        """Empty behind the last segment."""
        page = await self.look()
        self._looked_at = None
        if page:
            self._next = page[-1].segment.number + 1
        return page


class JoinedFile:
    """An output or error file in the making, or a piece of one. No blob is opened before the first line.

    Args:
        stem: of the key; each token has a key of its own, so that one who wakes late can't put its bytes in
            the place of another's.
        first_token: the lowest that may have left something.
    """

    def __init__(self, blobs: Blobs, stem: str, *, token: int, first_token: int) -> None:
        self.key = f"{stem}.{token}"
        self.size_bytes = 0
        self._blobs = blobs
        self._earlier = [f"{stem}.{earlier}" for earlier in range(first_token, token)]
        self._writer: BlobWriter | None = None
        self._rows: list[bytes] = []
        self._waiting_bytes = 0

    async def sweep(self) -> None:
        """Removes what dead finalizers may have left."""
        for key in self._earlier:
            await self._blobs.delete(key)

    async def write(self, rows: list[bytes]) -> None:
        for row in rows:
            self._rows.append(row)
            self._waiting_bytes += len(row)
            if self._waiting_bytes >= _WRITE_BYTES:
                await self._flush()

    async def commit(self) -> None:
        """There is a blob afterwards if `size_bytes` is above 0."""
        if self._rows:
            await self._flush()
        if self._writer is not None:
            await self._writer.commit()
            self._writer = None

    async def abort(self) -> None:
        if self._writer is not None:
            await self._writer.abort()

    async def _flush(self) -> None:
        if self._writer is None:
            self._writer = await self._blobs.open_writer(self.key)
        text = b"".join(self._rows)
        self._rows.clear()
        self._waiting_bytes = 0
        await self._writer.write(text)
        self.size_bytes += len(text)


def _read_together(results: Sequence[SegmentResult], *, at_once: int) -> Iterator[Sequence[SegmentResult]]:
    """Cuts the segments into runs that are read at once, within the memory that their answers may take."""
    some: list[SegmentResult] = []
    size_bytes = 0
    for result in results:
        result_bytes = sum(part.length_bytes for part in result.pinned)
        if some and (len(some) == at_once or size_bytes + result_bytes > _READ_BYTES):
            yield some
            some, size_bytes = [], 0
        some.append(result)
        size_bytes += result_bytes
    if some:
        yield some


def _tally(rows: list[OutputLine], *, unanswered_count: int) -> Tally:
    failed = sum(row.is_error for row in rows)
    usages = [row.usage for row in rows if row.usage is not None]
    total = Usage(
        sum(usage.input_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.output_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
        sum(usage.total_tokens for usage in usages),
    )
    return Tally(len(rows) - failed, failed - unanswered_count, total)


def _miscount(batch: Batch, result: SegmentResult, answered: int) -> RuntimeError:
    number, count = result.segment.number, result.segment.count
    return RuntimeError(
        f"{batch.id} segment {number} is done with {count} lines, but its parts answer {answered}; "
        "run 'nightmill check'"
    )
