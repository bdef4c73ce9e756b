"""One line of a batch whole: its request, its attempts, its answer, and the lines around it.

Nothing is read but the line: the request lies where the map of the file says, the answer is found by
bisection in the files of a batch that has ended, and in the parts of its segment while the batch runs.
"""

import re
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Query

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.blob_reads import read_bytes, text_on_wire
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.line_attempts import attempts_of_line
from nightmill.api.line_map import LineMaps, LineMapsOfApp
from nightmill.api.line_search import FoundLine, LineName, ordered_lines
from nightmill.api.line_states import LineSituation, line_on_wire, require_line, situation_of
from nightmill.api.ordered_lines import OrderedLines
from nightmill.core.batch import Batch, LineError
from nightmill.errors import ConflictError
from nightmill.validation import report_row

_NEAR_BYTES: Final = 64 << 10
_LONGEST_ROW_BYTES: Final = 64 << 10
_MOST_BYTES: Final = 16 << 20
_REPORT_LINE: Final = re.compile(rb'\{"line": ([0-9]{1,18}),')

router = APIRouter(prefix="/nightmill/v1/batches", include_in_schema=False)


@router.get("/{batch_id}/lines/{number}")
async def line_content(
    batch_id: str,
    number: Annotated[int, Path(ge=1, description="The line of the input file, from 1.")],
    context: Context,
    project: CurrentProject,
    maps: LineMapsOfApp,
    max_bytes: Annotated[int, Query(ge=0, le=_MOST_BYTES, description="Of request and answer.")] = 1 << 20,
) -> JsonResponse:
    """The request, the attempts and the answer of one line."""
    batch = await require_batch(context, project, batch_id)
    found = await require_line(context, maps, batch, LineName(number=number))
    try:
        situation = await situation_of(context, batch, found, wait_s=0, most_bytes=max_bytes)
    except ConflictError as error:  # the request is there all the same
        situation = LineSituation({"reason": error.message})
    place = found.place
    length_bytes = min(place.size_bytes, max_bytes)
    request = await read_bytes(context.blobs, batch.input_blob_key, place.offset, length_bytes)
    attempts = None
    if batch.options.record_attempts:
        attempts = await attempts_of_line(context.blobs, batch, found.ordinal)
    answer = None
    if situation.output is not None:
        sizes = {"size_bytes": situation.output_bytes, "most_bytes": max_bytes}
        answer = text_on_wire(situation.output, **sizes)
    return JsonResponse(
        {
            **line_on_wire(found, situation),
            "object": "nightmill.line.content",
            "ordinal": found.ordinal,
            "batch": {
                "id": batch.id,
                "status": batch.status,
                "endpoint": batch.endpoint,
                "model": batch.model,
                "lines": batch.total,
                "input_file_id": batch.input_file_id,
            },
            "request": {
                "offset": place.offset,
                **text_on_wire(request, size_bytes=place.size_bytes, most_bytes=max_bytes),
            },
            "answer": answer,
            "attempts": attempts,
            "invalid": await _invalid(context, batch, found),
            **await _around(context, batch, found),
            **await _failed_around(context, maps, batch, found),
        }
    )


async def _invalid(context: ApiContext, batch: Batch, found: FoundLine) -> dict[str, Any] | None:
    """The row of the validation report for the line; None for a valid line."""
    row = None
    if batch.report_blob_key is not None:
        size_bytes = await context.blobs.size_bytes(batch.report_blob_key)
        if size_bytes:
            rows = OrderedLines(context.blobs, batch.report_blob_key, size_bytes, rank=_report_line)
            stored = await rows.find(found.number, most_bytes=_LONGEST_ROW_BYTES)
            row = None if stored is None else stored.text
    elif (error := _error_of(batch, found)) is not None:
        row = report_row(error)
    try:
        return None if row is None else msgspec.json.decode(row, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def _error_of(batch: Batch, found: FoundLine) -> LineError | None:
    return next((error for error in batch.errors if error.line == found.number), None)


def _report_line(row: bytes) -> int:
    match = _REPORT_LINE.match(row)
    return 0 if match is None else int(match[1])


async def _around(context: ApiContext, batch: Batch, found: FoundLine) -> dict[str, int | None]:
    """The numbers of the request lines before and after; blank lines are passed over."""
    place = found.place
    start = max(0, place.offset - _NEAR_BYTES)
    before = await read_bytes(context.blobs, batch.input_blob_key, start, place.offset - start)
    after_at = place.offset + place.size_bytes
    after = await read_bytes(context.blobs, batch.input_blob_key, after_at, _NEAR_BYTES)
    blank_before = before[len(before.rstrip()) :]
    blank_after = after[: len(after) - len(after.lstrip())]
    has_before = found.ordinal > 0 and len(blank_before) < len(before)
    return {
        "previous": found.number - blank_before.count(b"\n") if has_before else None,
        "next": found.number + blank_after.count(b"\n") if len(blank_after) < len(after) else None,
    }


async def _failed_around(
    context: ApiContext, maps: LineMaps, batch: Batch, found: FoundLine
) -> dict[str, int | None]:
    """The numbers of the nearest lines in the error file, once there is one."""
    lines = None
    if batch.error_file_id is not None:
        lines = await ordered_lines(context, batch, batch.error_file_id)
    before = after = None
    if lines is not None:
        before, after = await lines.around(found.ordinal)
    return {
        "previous_failed": await _number(maps, batch, before),
        "next_failed": await _number(maps, batch, after),
    }


async def _number(maps: LineMaps, batch: Batch, ordinal: int | None) -> int | None:
    place = None if ordinal is None else await maps.at_ordinal(batch.input_blob_key, ordinal)
    return None if place is None else place.number
