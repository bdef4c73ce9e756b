"""Finds the lines of ended batches that a retry repeats, and writes them into a new input file.

The error file of a batch names its lines by their ordinals, in the order of the input. Both files are read
once, as streams, side by side; memory use is that of a chunk. Request lines are copied byte for byte.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Sequence, Set
from dataclasses import dataclass, field

import msgspec

from nightmill.api.context import ApiContext
from nightmill.api.stored_lines import blob_lines, file_of, request_lines
from nightmill.blobs import BlobWriter
from nightmill.core.batch import Batch
from nightmill.core.file import File
from nightmill.core.json_text import string
from nightmill.core.request_line import slice_line
from nightmill.core.written_line import LineState, WrittenLine, codes_of, read_line, state_of_error
from nightmill.errors import ConflictError
from nightmill.validation.custom_ids import CustomIds


@dataclass(frozen=True, slots=True)
class LineChoice:
    """Which lines of an error file are chosen.

    Args:
        outcomes: lines with one of these states.
        codes: only lines with one of these codes or HTTP statuses; empty for any.
    """

    outcomes: Set[LineState]
    codes: Set[str] = frozenset()

    def code_of(self, line: WrittenLine) -> str | None:
        """The code of a line that is chosen; None for another line."""
        codes = codes_of(line)
        if state_of_error(codes[0]) not in self.outcomes:
            return None
        return codes[0] if not self.codes or not self.codes.isdisjoint(codes) else None


@dataclass(frozen=True, slots=True)
class Origin:
    """An ended batch of which lines may be repeated. `errors` is None if no line of it failed."""

    batch: Batch
    input: File
    errors: File | None


@dataclass(slots=True)
class ChosenLines:
    """What was chosen of one or several origins.

    Attributes:
        counts: for each origin, in order, how many lines.
        by_code: how many lines have each code.
    """

    counts: list[int] = field(default_factory=list[int])
    by_code: Counter[str] = field(default_factory=Counter[str])
    _custom_ids: CustomIds = field(default_factory=CustomIds)

    @property
    def total(self) -> int:
        return sum(self.counts)

    def note(self, code: str, custom_id: str) -> None:
        """A line was chosen."""
        self.counts[-1] += 1
        self.by_code[code] += 1
        self._custom_ids.add(custom_id)

    def repeats(self) -> int:
        """How many chosen lines have the custom_id of another; call once, at the end."""
        return self._custom_ids.repeated_hashes().repeats


async def origin_of(context: ApiContext, batch: Batch) -> Origin:
    """The files of an ended batch.

    Raises:
        ConflictError: a file that is needed is deleted.
    """
    errors = None
    if batch.error_file_id is not None:
        errors = await file_of(context, batch, batch.error_file_id, what="error")
    return Origin(batch, await file_of(context, batch, batch.input_file_id, what="input"), errors)


async def choose(context: ApiContext, origins: Sequence[Origin], choice: LineChoice) -> ChosenLines:
    """Counts the lines of the origins that are chosen."""
    chosen = ChosenLines()
    for origin in origins:
        chosen.counts.append(0)
        async for line, code in _chosen(context, origin, choice):
            chosen.note(code, line.custom_id_text)
    return chosen


async def write_lines(
    context: ApiContext, origins: Sequence[Origin], choice: LineChoice, writer: BlobWriter
) -> None:
    """Writes the chosen request lines, in the order of the origins and of their inputs.

    Raises:
        ConflictError: an input file and an error file do not belong together.
    """
    for origin in origins:
        wanted = _chosen(context, origin, choice)
        line = await _next(wanted)
        ordinal = 0
        async for texts in request_lines(context.blobs, origin.input.blob_key):
            if line is None:
                break
            found: list[bytes] = []
            for text in texts:
                if line is not None and line.ordinal == ordinal:
                    _check_same(line, text, origin.batch)
                    found += (text, b"\n")
                    line = await _next(wanted)
                ordinal += 1
            if found:
                await writer.write(b"".join(found))
        if line is not None:
            raise _mismatch(origin.batch)


async def _next(lines: AsyncGenerator[tuple[WrittenLine, str]]) -> WrittenLine | None:
    found = await anext(lines, None)
    return None if found is None else found[0]


async def _chosen(
    context: ApiContext, origin: Origin, choice: LineChoice
) -> AsyncGenerator[tuple[WrittenLine, str]]:
    """The chosen lines of the error file, each with its code."""
    if origin.errors is None:
        return
    async for line in error_lines(context, origin.batch, origin.errors):
        code = choice.code_of(line)
        if code is not None:
            yield line, code


async def error_lines(context: ApiContext, batch: Batch, errors: File) -> AsyncGenerator[WrittenLine]:
    """The lines of an error file, without those that were put aside as invalid."""
    left_out = invalid_ordinals(context, batch)
    invalid = await anext(left_out, None)
    async for texts in blob_lines(context.blobs, errors.blob_key):
        for text in texts:
            line = read_line(text)
            if line.ordinal == invalid:
                invalid = await anext(left_out, None)
            else:
                yield line


async def invalid_ordinals(context: ApiContext, batch: Batch) -> AsyncGenerator[int]:
    """The ordinals of the lines that were put aside as invalid, from the validation report."""
    if not batch.invalid or batch.report_blob_key is None:
        return
    async for texts in blob_lines(context.blobs, batch.report_blob_key):
        for text in texts:
            yield _report_row(text).ordinal


class _ReportRow(msgspec.Struct, gc=False):
    ordinal: int


_report_row = msgspec.json.Decoder(_ReportRow).decode


def _check_same(line: WrittenLine, text: bytes, batch: Batch) -> None:
    """Raises ConflictError unless the request line has the custom_id of the error line."""
    try:
        found = slice_line(text).custom_id_json
    except ValueError:
        raise _mismatch(batch) from None
    if found != bytes(line.custom_id) and string(found) != line.custom_id_text:
        raise _mismatch(batch)


def _mismatch(batch: Batch) -> ConflictError:
    return ConflictError(f"The input file and the error file of batch '{batch.id}' do not belong together.")
