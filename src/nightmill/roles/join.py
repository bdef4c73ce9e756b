"""Joins the answers of a run of segments, in the order of the input, into an output and an error file.

Every request line of the run is written exactly once, to one of the two files, and joining the same run
again produces the same bytes. Memory use is that of a few segments of short answers: long texts beyond
`_READ_BYTES` are left in the parts and read again when their turn comes. The finalizer decides which process
joins which run, and publishes the files.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from nightmill.blobs import Blobs, BlobWriter
from nightmill.core.batch import Batch, Status, Tally, Usage
from nightmill.core.output_line import OutputLine, unanswered
from nightmill.core.request_line import slice_line
from nightmill.core.segment import INDEX_RECORD_BYTES, IndexedLine, Segment, SegmentResult, unpack_lines
from nightmill.errors import LeaseLost
from nightmill.failpoints import failpoint
from nightmill.ids import output_line_id
from nightmill.parts import Parts, TextPlace, counted_parts, standing_records
from nightmill.roles.skipped_lines import SkippedLines
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
    """The result of a join. `lines` counts all lines, `missing` those without an answer; `tally` the rest."""

    tally: Tally
    missing: int
    lines: int


class _SegmentRows(NamedTuple):
    """The rows of a segment in the order of the input.

    Args:
        lines: what the rows answer.
        missing_count: how many of the lines have no answer.
        places: where the texts lie that are not in memory, by the row's place in `rows`.
    """

    lines: Sequence[IndexedLine]
    rows: list[OutputLine]
    missing_count: int
    places: Mapping[int, TextPlace]


class Joiner:
    """Reads answers from the parts, and writes the files to the blobs.

    Args:
        monotonic: seconds, to measure the time since the lease was last renewed.
    """

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
        renew: Callable[[], Awaitable[bool]],
        renew_s: float,
    ) -> Joined:
        """Writes and commits both files.

        Args:
            renew: renews the lease on the run every `renew_s`; returns False when the lease is lost.

        Raises:
            LeaseLost: the lease was lost. Neither file is committed then.
            RuntimeError: a segment that is done lacks answers.
        """
        await output.delete_leftovers()
        await error.delete_leftovers()
        try:
            joined = await self._write(batch, index_blob_key, pages, output, error, renew, renew_s)
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
        renew: Callable[[], Awaitable[bool]],
        renew_s: float,
    ) -> Joined:
        tally, missing, lines = Tally(), 0, 0
        skipped = await self._skipped(batch, index_blob_key, await pages.peek())
        last: SegmentResult | None = None
        renewed_at = self._monotonic()
        while results := await pages.next():
            last = results[-1]
            for group in _groups(results, at_once=self._parts.reads_at_once):
                for indexed, rows, missing_count, places in await self._rows_of(batch, index_blob_key, group):
                    if skipped is not None:
                        await self._write_between(indexed, rows, places, output, error, skipped)
                    elif places:
                        await self._write_in_turn(rows, places, output, error)
                    else:
                        await output.write([row.text for row in rows if not row.is_error])
                        await error.write([row.text for row in rows if row.is_error])
                    tally = tally.plus(_tally(rows, missing_count=missing_count))
                    missing += missing_count
                    lines += len(rows)
                if self._monotonic() - renewed_at > renew_s:
                    renewed_at = self._monotonic()
                    if not await renew():
                        raise LeaseLost
        if skipped is not None and last is not None:
            await self._write_rest(batch, index_blob_key, last.segment, error, skipped)
            tally = tally.plus(Tally(failed=skipped.count))
            lines += skipped.count
        return Joined(tally, missing, lines)

    async def _skipped(
        self, batch: Batch, index_blob_key: str, results: Sequence[SegmentResult]
    ) -> SkippedLines | None:
        """The invalid lines of the run; None without any. The run begins behind the line before it."""
        if not batch.invalid or batch.report_blob_key is None or not results:
            return None
        first = results[0].segment.first
        after = (await self._line(index_blob_key, first - 1)).ordinal if first else -1
        return SkippedLines(batch.id, self._blobs.stream(batch.report_blob_key), after=after)

    async def _write_between(
        self,
        lines: Sequence[IndexedLine],
        rows: Sequence[OutputLine],
        places: Mapping[int, TextPlace],
        output: "JoinedFile",
        error: "JoinedFile",
        skipped: SkippedLines,
    ) -> None:
        """Writes rows, and before each error row the invalid lines that lie before it in the input."""
        for number, row in enumerate(rows):
            place = places.get(number)
            text = row.text if place is None else await self._parts.text(place)
            if row.is_error:
                async for before in skipped.before(lines[number].ordinal):
                    await error.write([before])
            await (error if row.is_error else output).write([text])

    async def _write_rest(
        self,
        batch: Batch,
        index_blob_key: str,
        last: Segment,
        error: "JoinedFile",
        skipped: SkippedLines,
    ) -> None:
        """The invalid lines behind the last error row: those before the last line of the run, and behind the
        last line of the input.
        """
        end = last.first + last.count
        is_last = end == batch.total - batch.invalid
        ordinal = None if is_last else (await self._line(index_blob_key, end - 1)).ordinal
        async for row in skipped.before(ordinal):
            await error.write([row])

    async def _rows_of(
        self, batch: Batch, index_blob_key: str, results: Sequence[SegmentResult]
    ) -> Sequence["_SegmentRows"]:
        """The rows of each segment."""
        if len(results) == 1:
            return [await self._rows(batch, index_blob_key, results[0])]
        try:
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(self._rows(batch, index_blob_key, result)) for result in results]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in reading]

    async def _rows(self, batch: Batch, index_blob_key: str, result: SegmentResult) -> "_SegmentRows":
        # The batch lease has voided the token of a segment that is not done: no worker ever held that token.
        counted = await counted_parts(self._parts, result, below=result.token)
        answers: dict[int, OutputLine] = {}
        places: dict[int, TextPlace] = {}
        kept_bytes = 0
        async for record in standing_records(self._parts, counted):
            answers[record.ordinal] = output = record.output
            if record.place is None:
                continue
            kept_bytes += record.place.length_bytes
            if kept_bytes > _READ_BYTES:
                answers[record.ordinal] = OutputLine(b"", output.is_error, output.usage)
                places[record.ordinal] = record.place
        lines = await self._lines(index_blob_key, result)
        missing = [line for line in lines if line.ordinal not in answers]
        if result.is_done and (missing or len(answers) != len(lines)):
            raise _miscount(batch, result, len(answers))
        answers |= await self._unanswered(batch, missing)
        rows = [answers[line.ordinal] for line in lines]
        left_out = {
            number: places[line.ordinal] for number, line in enumerate(lines) if line.ordinal in places
        }
        return _SegmentRows(lines, rows, len(missing), left_out)

    async def _write_in_turn(
        self,
        rows: Sequence[OutputLine],
        places: Mapping[int, TextPlace],
        output: "JoinedFile",
        error: "JoinedFile",
    ) -> None:
        """Writes rows of which some have no text in memory."""
        for number, row in enumerate(rows):
            place = places.get(number)
            text = row.text if place is None else await self._parts.text(place)
            await (error if row.is_error else output).write([text])

    async def _lines(self, index_blob_key: str, result: SegmentResult) -> list[IndexedLine]:
        segment = result.segment
        records = await self._blobs.read(
            index_blob_key, segment.first * INDEX_RECORD_BYTES, segment.count * INDEX_RECORD_BYTES
        )
        return sorted(unpack_lines(records), key=attrgetter("ordinal"))

    async def _line(self, index_blob_key: str, place: int) -> IndexedLine:
        record = await self._blobs.read(index_blob_key, place * INDEX_RECORD_BYTES, INDEX_RECORD_BYTES)
        return next(unpack_lines(record))

    async def _unanswered(self, batch: Batch, lines: list[IndexedLine]) -> dict[int, OutputLine]:
        """Rows of the error file for lines without an answer, by ordinal."""
        if not lines:
            return {}
        start = min(line.offset for line in lines)
        end = max(line.offset + line.length_bytes for line in lines)
        text = await self._blobs.read(batch.input_blob_key, start, end - start)
        code, message = _UNANSWERED[batch.status]
        if batch.stop_reason is not None:
            message = (
                f"This request was not executed because the batch was stopped: {batch.stop_reason.message}"
            )
        rows: dict[int, OutputLine] = {}
        for line in lines:
            offset = line.offset - start
            request = slice_line(text[offset : offset + line.length_bytes])
            line_id = output_line_id(batch.id, line.ordinal).encode()
            rows[line.ordinal] = unanswered(line_id, request, code=code, message=message)
        return rows


class Pages:
    """The segments `first` to `first + count` of a batch, read from the store a page at a time."""

    def __init__(self, store: Store, batch: Batch, *, first: int = 0, count: int = 1 << 62) -> None:
        self._store = store
        self._batch = batch
        self._next = first
        self._end = first + count
        self._page: Sequence[SegmentResult] | None = None

    async def peek(self) -> Sequence[SegmentResult]:
        """The page that `next` will return."""
        if self._page is None:
            limit = min(PAGE_SEGMENTS, self._end - self._next)
            self._page = (
                await self._store.segments.results(self._batch.id, after=self._next - 1, limit=limit)
                if limit
                else ()
            )
        return self._page

    async def next(self) -> Sequence[SegmentResult]:
        """The next page; empty behind the last segment."""
        page = await self.peek()
        self._page = None
        if page:
            self._next = page[-1].segment.number + 1
        return page


class JoinedFile:
    """An output or error file that is being written, or a piece of such a file.

    No blob is opened before the first line. Each token has a key of its own, so that a finalizer that lost
    its lease cannot overwrite the bytes of its successor.

    Args:
        stem: the key without the token.
        token: of the lease on the batch or the slice.
        first_token: the lowest token under which an earlier finalizer may have left a blob.
    """

    def __init__(self, blobs: Blobs, stem: str, *, token: int, first_token: int) -> None:
        self.key = f"{stem}.{token}"
        self.size_bytes = 0
        self._blobs = blobs
        self._earlier_keys = [f"{stem}.{earlier}" for earlier in range(first_token, token)]
        self._writer: BlobWriter | None = None
        self._rows: list[bytes] = []
        self._buffered_bytes = 0

    async def delete_leftovers(self) -> None:
        """Deletes what earlier finalizers that died may have written."""
        for key in self._earlier_keys:
            await self._blobs.delete(key)

    async def write(self, rows: list[bytes]) -> None:
        for row in rows:
            self._rows.append(row)
            self._buffered_bytes += len(row)
            if self._buffered_bytes >= _WRITE_BYTES:
                await self._flush()

    async def commit(self) -> None:
        """Makes the blob durable. Without any line there is no blob, and `size_bytes` is 0."""
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
        self._buffered_bytes = 0
        await self._writer.write(text)
        self.size_bytes += len(text)


def _groups(results: Sequence[SegmentResult], *, at_once: int) -> Iterator[Sequence[SegmentResult]]:
    """Groups of segments to read at once, each limited to `at_once` segments and `_READ_BYTES` of answers."""
    group: list[SegmentResult] = []
    size_bytes = 0
    for result in results:
        result_bytes = sum(part.length_bytes for part in result.pinned)
        if group and (len(group) == at_once or size_bytes + result_bytes > _READ_BYTES):
            yield group
            group, size_bytes = [], 0
        group.append(result)
        size_bytes += result_bytes
    if group:
        yield group


def _tally(rows: list[OutputLine], *, missing_count: int) -> Tally:
    failed = sum(row.is_error for row in rows)
    usages = [row.usage for row in rows if row.usage is not None]
    total = Usage(
        sum(usage.input_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.output_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
        sum(usage.total_tokens for usage in usages),
    )
    return Tally(len(rows) - failed, failed - missing_count, total)


def _miscount(batch: Batch, result: SegmentResult, answered: int) -> RuntimeError:
    number, count = result.segment.number, result.segment.count
    return RuntimeError(
        f"{batch.id} segment {number} is done with {count} lines, but its parts answer {answered}; "
        "run 'nightmill check'"
    )
