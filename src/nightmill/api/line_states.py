"""The state of one request line under `/nightmill/v1`: waiting, in flight, to be sent again, or answered.

The line is found by a scan of the input file. While the batch runs, its answer is looked for in the parts,
and the worker that holds the line is asked with its next heartbeat. A worker that does not report in time
leaves the state `leased`.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.line_search import FoundLine, find_line, index_place, written_line
from nightmill.core.batch import Batch, Status
from nightmill.core.written_line import LineState, codes_of, read_line, state_of_error
from nightmill.errors import ConflictError, NotFoundError, RequestError
from nightmill.parts import standing_records
from nightmill.store.answered_segments import AnsweredSegment

_WANTED_S: Final = 30.0
_POLL_S: Final = 0.1
_BEATS: Final = 2
_EXTRA_S: Final = 1.0

router = APIRouter(prefix="/nightmill/v1/batches", include_in_schema=False)

_Fields = dict[str, Any]


class _Report(msgspec.Struct):
    """What a worker says of its lines: ordinal, upstream, since when or when again, and why."""

    in_flight: list[tuple[int, str, float]]
    retries: list[tuple[int, str, float, str]]


_report = msgspec.json.Decoder(_Report)


@router.get("/{batch_id}/lines")
async def line_state(
    batch_id: str,
    context: Context,
    project: CurrentProject,
    custom_id: Annotated[str | None, Query(description="The custom_id of the line.")] = None,
    line: Annotated[int | None, Query(ge=1, description="The line of the input file, from 1.")] = None,
) -> JsonResponse:
    """Says of one line where it is. Name it by `custom_id` or by `line`."""
    if (custom_id is None) == (line is None):
        raise RequestError("Name the line by one of 'custom_id' and 'line'.", param="custom_id")
    batch = await require_batch(context, project, batch_id)
    found = await find_line(context, batch, custom_id=custom_id, number=line)
    if found is None:
        named = "this custom_id" if line is None else f"number {line} that is a request"
        raise NotFoundError(f"Batch '{batch.id}' has no line with {named}.", param="custom_id")
    fields = await _state(context, batch, found)
    return JsonResponse({**_EMPTY, "custom_id": found.custom_id, "line": found.number, **fields})


_EMPTY: Final[_Fields] = {
    "object": "nightmill.line",
    "custom_id": None,
    "line": None,
    "state": None,
    "upstream": None,
    "since": None,
    "again_at": None,
    "reason": None,
    "code": None,
    "file_id": None,
}


async def _state(context: ApiContext, batch: Batch, found: FoundLine) -> _Fields:
    if batch.status is Status.FAILED:
        raise ConflictError(f"Batch '{batch.id}' failed validation and none of its lines was sent.")
    if batch.status is Status.VALIDATING:
        return {"state": LineState.WAITING, "reason": "The input file is being validated."}
    if batch.status.is_terminal:
        return await _ended(context, batch, found)
    place = await index_place(context, batch, found.ordinal)
    if place is None:
        return {"state": LineState.FAILED, "reason": "The line was put aside as invalid."}
    number = await context.store.line_reports.number_at(batch.id, place)
    if number is None:
        return await _state_later(context, batch, found)
    segments = await context.store.answered_segments.list(batch.id, first=number, count=1)
    if segments and (answer := await _answer(context, segments[0], found.ordinal)) is not None:
        return answer
    if not segments or not segments[0].is_leased:
        return {"state": LineState.WAITING, "reason": _why_waiting(batch)}
    return await _reported(context, batch, segments[0], found)


async def _state_later(context: ApiContext, batch: Batch, found: FoundLine) -> _Fields:
    """The state once the batch, which has ended meanwhile, is read again."""
    again = await require_batch(context, batch.project_id, batch.id)
    if not again.status.is_terminal:
        raise ConflictError(f"Batch '{batch.id}' has no segment for the line; run 'nightmill check'.")
    return await _ended(context, again, found)


async def _ended(context: ApiContext, batch: Batch, found: FoundLine) -> _Fields:
    for file_id in (batch.output_file_id, batch.error_file_id):
        text = None if file_id is None else await written_line(context, batch, file_id, found.ordinal)
        if text is not None:
            return {**_outcome(text, is_error=file_id == batch.error_file_id), "file_id": file_id}
    raise ConflictError(f"The files of batch '{batch.id}' that had the line are deleted.")


def _outcome(text: bytes, *, is_error: bool) -> _Fields:
    if not is_error:
        return {"state": LineState.ANSWERED}
    code = codes_of(read_line(text))[0]
    return {"state": state_of_error(code), "code": code}


async def _answer(context: ApiContext, segment: AnsweredSegment, ordinal: int) -> _Fields | None:
    """The outcome of a line that is answered in the parts of an unfinished batch."""
    parts = segment.pinned
    if not segment.is_done:
        parts = await context.parts.find(segment.segment, below=segment.token + 1, pinned=segment.pinned)
    async for record in standing_records(context.parts, parts):
        if record.ordinal == ordinal:
            return _outcome(record.output.text, is_error=record.output.is_error)
    return None


def _why_waiting(batch: Batch) -> str:
    if batch.status is not Status.IN_PROGRESS:
        return f"The batch is {batch.status}: the line is not sent any more."
    if batch.paused_at is not None:
        return "The batch is paused."
    return "No worker has leased the line yet."


async def _reported(context: ApiContext, batch: Batch, segment: AnsweredSegment, found: FoundLine) -> _Fields:
    """What the worker that holds the segment says of the line."""
    reports = context.store.line_reports
    asked_at = await reports.want(batch.id, wanted_s=_WANTED_S)
    until = time.monotonic() + _BEATS * context.settings.worker.beat_s + _EXTRA_S
    while time.monotonic() < until:
        document = await reports.get(batch.id, segment.segment.number, token=segment.token, since=asked_at)
        if document is not None:
            fields = _of_line(_report.decode(document), found.ordinal)
            # The line may have been answered before the report was made.
            if fields["state"] is LineState.WAITING:
                fields = await _answer(context, segment, found.ordinal) or fields
            return fields
        await asyncio.sleep(_POLL_S)
    if (answer := await _answer(context, segment, found.ordinal)) is not None:
        return answer
    return {"state": LineState.LEASED, "reason": "A worker holds the line and did not report in time."}


def _of_line(report: _Report, ordinal: int) -> _Fields:
    for at, upstream, since in report.in_flight:
        if at == ordinal:
            return {"state": LineState.IN_FLIGHT, "upstream": upstream, "since": round(since, 3)}
    retries: Sequence[tuple[int, str, float, str]] = report.retries
    for at, upstream, again_at, reason in retries:
        if at == ordinal:
            return {
                "state": LineState.RETRYING,
                "upstream": upstream,
                "again_at": round(again_at, 3),
                "reason": reason,
            }
    return {"state": LineState.WAITING, "reason": "A worker has leased the line and not sent it yet."}
