"""Joins the pinned parts, in the order of the input, into the output file and the error file.

Promise: every request line of the batch stands exactly once in one of the two files, and whoever reads the
final status can download both at once (contract 2.3, 9.6). It may die at any instruction: the next one
makes the files again, and only a publish under the newest token counts. Each token has blob keys of its own,
so that one who wakes late can't put its bytes in the place of those that were published. Not its duty: who
answers lines, and until when.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from operator import attrgetter

from nightmill.batch import Batch, Event, Status, Tally, Usage
from nightmill.blobs import Blobs, BlobWriter
from nightmill.crash import point
from nightmill.errors import LeaseLost, UnavailableError
from nightmill.file import File, Purpose
from nightmill.ids import BatchId, FileId, WorkerId, new_file_id, output_line_id
from nightmill.line import OutputLine, slice_line, unanswered
from nightmill.parts import Parts
from nightmill.roles.loop import Bell
from nightmill.segment import INDEX_RECORD_BYTES, IndexedLine, Lease, SegmentResult, unpack_lines
from nightmill.settings import Settings
from nightmill.store import Duty, Store
from nightmill.telemetry import BatchMoved, Emit

_DUTY_TTL_S = 60.0
_WRITE_BYTES = 1 << 20
_READ_BYTES = 16 << 20
_WAIT_S = 1.0

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


class Finalizer:
    name = "finalizer"

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        parts: Parts,
        settings: Settings,
        worker_id: WorkerId,
        bell: Bell,
        emit: Emit,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._parts = parts
        self._output_ttl_s = settings.limits.output_ttl_s
        self._worker_id = worker_id
        self._bell = bell
        self._emit = emit
        self._clock = clock
        self._monotonic = monotonic

    async def turn(self) -> float:
        await self._close_settled_batches()
        duty = await self._store.lease_duty(
            (Status.FINALIZING, Status.CANCELLING), self._worker_id, ttl_s=_DUTY_TTL_S
        )
        if duty is None:
            return _WAIT_S
        try:
            await self._finalize(duty)
        except LeaseLost:
            return 0
        except (UnavailableError, asyncio.CancelledError):
            # Anything else keeps the duty until it lapses, so that one odd batch can't hold up the others.
            with suppress(UnavailableError):
                await self._store.release_duty(duty)
            raise
        return 0

    async def _close_settled_batches(self) -> None:
        for batch in await self._store.settled_batches():
            after = batch.after(Event.SETTLED, now=self._clock())
            point("finalizer.before_settle")
            if await self._store.move_batch(after, expected=batch.status):
                point("finalizer.settled")
                self._emit(BatchMoved(after))

    async def _finalize(self, duty: Duty) -> None:
        point("finalizer.leased")
        batch = duty.batch
        output = _JoinedFile(self._blobs, joined_file_id(batch.id, "output"), duty.token)
        error = _JoinedFile(self._blobs, joined_file_id(batch.id, "error"), duty.token)
        await output.sweep()
        await error.sweep()
        try:
            tally, missing = await self._join(duty, output, error)
            point("finalizer.before_output")
            has_output = await output.commit()
            point("finalizer.output_done")
            has_error = await error.commit()
            point("finalizer.error_done")
        except BaseException:
            await output.abort()
            await error.abort()
            raise
        rules = await self._store.project_rules(batch.project_id)
        ttl_s = batch.output_expires_after_s or rules.output_ttl_s or self._output_ttl_s
        files = [
            self._file(batch, joined, suffix, ttl_s)
            for joined, suffix, is_there in ((output, "output", has_output), (error, "error", has_error))
            if is_there
        ]
        if batch.status is Status.CANCELLING:
            event = Event.CANCELLED
        else:
            event = Event.EXPIRED if missing else Event.COMPLETED
        after = replace(
            batch.after(event, now=self._clock()),
            tally=tally,
            output_file_id=output.file_id if output.size_bytes else None,
            error_file_id=error.file_id if error.size_bytes else None,
        )
        point("finalizer.before_publish")
        if not await self._store.publish_batch(duty, after, files=files):
            for file in files:
                await self._blobs.delete(file.blob_key)
            raise LeaseLost
        point("finalizer.published")
        self._emit(BatchMoved(after))
        self._bell.ring()

    async def _join(self, duty: Duty, output: "_JoinedFile", error: "_JoinedFile") -> tuple[Tally, int]:
        """Writes both files; returns the tally of the answers in them and how many lines have none."""
        batch = duty.batch
        tally, missing, seen = Tally(), 0, 0
        confirmed = self._monotonic()
        after = -1
        while duty.index_blob_key and (
            results := await self._store.segment_results(batch.id, after=after, limit=200)
        ):
            after = results[-1].segment.number
            for some in _read_together(results, at_once=self._parts.reads_at_once):
                for rows, unsettled_count in await self._rows_of(duty, some):
                    await output.write([row.text for row in rows if not row.is_error])
                    await error.write([row.text for row in rows if row.is_error])
                    tally = tally.plus(_tally(rows, unanswered_count=unsettled_count))
                    missing += unsettled_count
                    seen += len(rows)
                if self._monotonic() - confirmed > duty.ttl_s / 4:
                    confirmed = self._monotonic()
                    if not await self._store.keep_duty(duty):
                        raise LeaseLost
        if seen != batch.total:
            message = (
                f"{batch.id} has {batch.total} lines, but its segments hold {seen}; run 'nightmill check'"
            )
            raise RuntimeError(message)
        return tally, missing

    async def _rows_of(
        self, duty: Duty, results: Sequence[SegmentResult]
    ) -> Sequence[tuple[list[OutputLine], int]]:
        """The rows of each segment in the order of the input, and how many of them nobody answered."""
        if len(results) == 1:
            return [await self._rows(duty, results[0])]
        try:
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(self._rows(duty, result)) for result in results]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in reading]

    async def _rows(self, duty: Duty, result: SegmentResult) -> tuple[list[OutputLine], int]:
        batch = duty.batch
        assert duty.index_blob_key is not None
        answers = await self._answers(batch, result)
        lines = await self._lines(duty.index_blob_key, result)
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
            # Its holder may have died before it could report; the duty's lease made its token void.
            pinned = tuple(await self._parts.find(_as_lease(batch, result)))
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

    def _file(self, batch: Batch, joined: "_JoinedFile", suffix: str, ttl_s: int) -> File:
        created_at = int(self._clock())
        return File(
            id=joined.file_id,
            project_id=batch.project_id,
            purpose=Purpose.BATCH_OUTPUT,
            filename=f"{batch.id}_{suffix}.jsonl",
            size_bytes=joined.size_bytes,
            created_at=created_at,
            expires_at=created_at + ttl_s,
            blob_key=joined.key,
        )


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


def joined_file_id(batch_id: BatchId, suffix: str) -> FileId:
    """Always the same for a batch, however often it is finalized."""
    return new_file_id(blake2b(f"{batch_id} {suffix}".encode(), digest_size=16).digest())


def _key(file_id: FileId, token: int) -> str:
    return f"files/{file_id}.{token}"


class _JoinedFile:
    """The output or error file in the making. No blob is opened before the first line."""

    def __init__(self, blobs: Blobs, file_id: FileId, token: int) -> None:
        self.file_id = file_id
        self.key = _key(file_id, token)
        self.size_bytes = 0
        self._blobs = blobs
        self._token = token
        self._writer: BlobWriter | None = None
        self._rows: list[bytes] = []
        self._waiting_bytes = 0

    async def sweep(self) -> None:
        """Removes what dead finalizers of the batch may have left. The first token was intake's."""
        for token in range(2, self._token):
            await self._blobs.delete(_key(self.file_id, token))

    async def write(self, rows: list[bytes]) -> None:
        for row in rows:
            self._rows.append(row)
            self._waiting_bytes += len(row)
            if self._waiting_bytes >= _WRITE_BYTES:
                await self._flush()

    async def commit(self) -> bool:
        """Whether there is such a file at all."""
        if self._rows:
            await self._flush()
        if self._writer is None:
            return False
        await self._writer.commit()
        self._writer = None
        return True

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


def _as_lease(batch: Batch, result: SegmentResult) -> Lease:
    return Lease(
        segment=result.segment,
        token=result.token,
        pinned=result.pinned,
        tally=result.tally,
        endpoint=batch.endpoint,
        model=batch.model,
        input_blob_key=batch.input_blob_key,
        index_blob_key="",
        deadline=batch.expires_at,
        ttl_s=0.0,
    )


def _miscount(batch: Batch, result: SegmentResult, answered: int) -> RuntimeError:
    number, count = result.segment.number, result.segment.count
    return RuntimeError(
        f"{batch.id} segment {number} is done with {count} lines, but its parts answer {answered}; "
        "run 'nightmill check'"
    )
