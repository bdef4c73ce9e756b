"""Reads some of the answers of a batch, within a bound, for figures about all of them and for the newest.

A batch may have millions of answers, so no figure here reads all. Of a batch that has ended, answers are
taken from places spread evenly over its file; while it runs, from the segments that were leased last.
Whether every answer was read is part of the result.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

from nightmill.api.context import ApiContext
from nightmill.api.stored_lines import file_of
from nightmill.core.batch import Batch
from nightmill.core.file import File
from nightmill.core.result_filter import LineOutcome, ordinal_of
from nightmill.errors import ConflictError, DamageError
from nightmill.parts import PartRecord, PartTail
from nightmill.parts.reader import FirstAnswers
from nightmill.parts.record import part_key
from nightmill.store.answered_segments import AnsweredSegment

MOST_BYTES: Final = 4 << 20
_PLACES: Final = 16
_MOST_SEGMENTS: Final = 32


@dataclass(frozen=True, slots=True)
class SeenAnswer:
    """An output line without its line break, and the ordinal of its request line."""

    ordinal: int
    outcome: LineOutcome
    text: bytes


@dataclass(frozen=True, slots=True)
class SomeAnswers:
    """Answers of one outcome.

    Args:
        is_whole: whether these are all that the batch has.
    """

    answers: Sequence[SeenAnswer]
    is_whole: bool


async def some_answers(
    context: ApiContext, batch: Batch, outcome: LineOutcome, *, most_bytes: int = MOST_BYTES
) -> SomeAnswers:
    """About `most_bytes` of the answers with an outcome.

    Raises:
        ConflictError: the file of an ended batch is deleted.
    """
    if batch.status.is_terminal:
        return await _of_file(context, batch, outcome, most_bytes)
    segments = context.store.answered_segments
    wanted = segments.newest_failed if outcome is LineOutcome.FAILED else segments.newest
    found: list[SeenAnswer] = []
    left_bytes = most_bytes
    for segment in await wanted(batch.id, most=_MOST_SEGMENTS):
        async for records in segment_records(context, segment):
            for record in records:
                left_bytes -= len(record.output.text)
                if record.output.is_error == (outcome is LineOutcome.FAILED):
                    found.append(seen(record))
            if left_bytes <= 0:
                break
        if left_bytes <= 0:
            break
    counted = batch.tally.failed - batch.invalid if outcome is LineOutcome.FAILED else batch.tally.completed
    return SomeAnswers(found, is_whole=len(found) >= counted)


async def segment_records(
    context: ApiContext, segment: AnsweredSegment
) -> AsyncGenerator[Sequence[PartRecord]]:
    """The answers of a segment of a running batch, many at a time; none that a later holder would not count.

    A segment whose parts are deleted, because its batch has ended meanwhile, has none.
    """
    first = FirstAnswers()
    try:
        async for records in context.parts.read(segment.pinned):
            yield [record for record in records if first.stands(record)]
    except DamageError:
        return
    if not segment.is_leased:
        return
    tail = PartTail(part_key(segment.segment, segment.token))
    while True:
        records, tail = await context.parts.tail(tail)
        if not records or not await is_unchanged(context, segment):
            return
        yield [record for record in records if first.stands(record)]


async def is_unchanged(context: ApiContext, segment: AnsweredSegment) -> bool:
    """Whether what was read of a leased segment stands (see `result_reader`)."""
    at = segment.segment
    return await context.store.answered_segments.is_unchanged(at.batch_id, at.number, token=segment.token)


def seen(record: PartRecord) -> SeenAnswer:
    outcome = LineOutcome.FAILED if record.output.is_error else LineOutcome.COMPLETED
    return SeenAnswer(record.ordinal, outcome, record.output.text.rstrip(b"\n"))


async def last_lines(
    context: ApiContext, batch: Batch, outcome: LineOutcome, *, most_bytes: int
) -> Sequence[SeenAnswer]:
    """The answers at the end of the file of a batch that has ended.

    Raises:
        ConflictError: the file is deleted.
    """
    file = await _file(context, batch, outcome)
    if file is None:
        return ()
    start = max(0, file.size_bytes - most_bytes)
    return _whole_lines(await _read(context, file, start, most_bytes), outcome, is_cut=start > 0)


async def _of_file(context: ApiContext, batch: Batch, outcome: LineOutcome, most_bytes: int) -> SomeAnswers:
    file = await _file(context, batch, outcome)
    if file is None:
        return SomeAnswers((), is_whole=True)
    if file.size_bytes <= most_bytes:
        text = await _read(context, file, 0, file.size_bytes)
        return SomeAnswers(_whole_lines(text, outcome, is_cut=False), is_whole=True)
    length_bytes = most_bytes // _PLACES
    step_bytes = (file.size_bytes - length_bytes) // (_PLACES - 1)
    found: list[SeenAnswer] = []
    for place in range(_PLACES):
        text = await _read(context, file, place * step_bytes, length_bytes)
        found += _whole_lines(text, outcome, is_cut=place > 0)
    return SomeAnswers(found, is_whole=False)


async def _file(context: ApiContext, batch: Batch, outcome: LineOutcome) -> File | None:
    is_error = outcome is LineOutcome.FAILED
    file_id = batch.error_file_id if is_error else batch.output_file_id
    if file_id is None:
        return None
    return await file_of(context, batch, file_id, what="error" if is_error else "output")


async def _read(context: ApiContext, file: File, start: int, length_bytes: int) -> bytes:
    try:
        return await context.blobs.read(file.blob_key, start, length_bytes)
    except FileNotFoundError:
        raise ConflictError(f"The file '{file.id}' is deleted or has expired.") from None


def _whole_lines(text: bytes, outcome: LineOutcome, *, is_cut: bool) -> list[SeenAnswer]:
    """The lines that end in the text, without the first if its beginning may be missing."""
    *lines, _ = text.split(b"\n")
    if is_cut:
        lines = lines[1:]
    return [SeenAnswer(ordinal_of(line), outcome, line) for line in lines]
