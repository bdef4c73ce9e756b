"""The state of one request line under `/nightmill/v1`: waiting, in flight, to be sent again, or answered.

While the batch runs, the answer of the line is looked for in the parts, and the worker that holds the line is
asked with its next heartbeat. A worker that does not report in time leaves the state `leased`.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.blob_reads import MOST_LINE_BYTES
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.line_map import LineMaps, LineMapsOfApp
from nightmill.api.line_search import FoundLine, LineName, find_line, index_place, written_line
from nightmill.core.batch import Batch, Status
from nightmill.core.written_line import LineState, codes_of, read_line, state_of_error
from nightmill.errors import ConflictError, NotFoundError, RequestError
from nightmill.parts import standing_records
from nightmill.store.answered_segments import AnsweredSegment

_WANTED_S: Final = 30.0
_FRESH_BEATS: Final = 3
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


@dataclass(frozen=True, slots=True)
class LineSituation:
    """Where a line is.

    Args:
        fields: of the line's document, beside its names.
        output: the output line, or the beginning of it; None for a line without one.
        output_bytes: its whole length.
    """

    fields: _Fields
    output: bytes | None = None
    output_bytes: int = 0


@router.get("/{batch_id}/lines")
async def line_state(
    batch_id: str,
    context: Context,
    project: CurrentProject,
    maps: LineMapsOfApp,
    custom_id: Annotated[str | None, Query(description="The custom_id of the line.")] = None,
    line: Annotated[int | None, Query(ge=1, description="The line of the input file, from 1.")] = None,
    ordinal: Annotated[int | None, Query(ge=0, description="The request line, from 0.")] = None,
    wait: Annotated[bool, Query(description="false: do not wait for the report of a worker.")] = True,
) -> JsonResponse:
    """Says of one line where it is. Name it by one of `custom_id`, `line` and `ordinal`."""
    named = LineName(custom_id=custom_id, number=line, ordinal=ordinal)
    if [custom_id, line, ordinal].count(None) != 2:
        raise RequestError("Name the line by one of 'custom_id', 'line' and 'ordinal'.", param="custom_id")
    batch = await require_batch(context, project, batch_id)
    found = await require_line(context, maps, batch, named)
    wait_s = report_wait_s(context) if wait else 0.0
    situation = await situation_of(context, batch, found, wait_s=wait_s)
    return JsonResponse(line_on_wire(found, situation))


async def require_line(context: ApiContext, maps: LineMaps, batch: Batch, named: LineName) -> FoundLine:
    """Raises NotFoundError when the batch has no such line."""
    found = await find_line(context, maps, batch, named)
    if found is None:
        what = "with this custom_id"
        if named.custom_id is None:
            what = f"number {named.number} that is a request"
        if named.ordinal is not None:
            what = f"with ordinal {named.ordinal}"
        raise NotFoundError(f"Batch '{batch.id}' has no line {what}.", param="custom_id")
    return found


def report_wait_s(context: ApiContext) -> float:
    """How long a worker has for its report."""
    return _BEATS * context.settings.worker.beat_s + _EXTRA_S


def line_on_wire(found: FoundLine, situation: LineSituation) -> _Fields:
    """The document of a line's state."""
    custom_id = found.custom_id
    if custom_id is not None:
        custom_id = custom_id.encode("utf-8", "replace").decode()  # JSON in UTF-8 has no lone surrogates
    return {**_EMPTY, "custom_id": custom_id, "line": found.number, **situation.fields}


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


async def situation_of(
    context: ApiContext, batch: Batch, found: FoundLine, *, wait_s: float, most_bytes: int = 0
) -> LineSituation:
    """Where a line is.

    Args:
        wait_s: how long a worker has for its report. 0 takes one of the last heartbeats, if it is there.
        most_bytes: of the text of a good answer; an error is read whole.

    Raises:
        ConflictError: the batch failed validation, or the files that had the line are deleted.
    """
    if batch.status is Status.FAILED:
        raise ConflictError(f"Batch '{batch.id}' failed validation and none of its lines was sent.")
    if batch.status is Status.VALIDATING:
        return LineSituation({"state": LineState.WAITING, "reason": "The input file is being validated."})
    if batch.status.is_terminal:
        return await _ended(context, batch, found, most_bytes)
    place = await index_place(context, batch, found.ordinal)
    if place is None:
        return LineSituation({"state": LineState.FAILED, "reason": "The line was put aside as invalid."})
    number = await context.store.line_reports.number_at(batch.id, place)
    if number is None:
        return await _state_later(context, batch, found, most_bytes)
    segments = await context.store.answered_segments.list(batch.id, first=number, count=1)
    if segments and (answer := await _answer(context, segments[0], found.ordinal)) is not None:
        return answer
    if not segments or not segments[0].is_leased:
        return LineSituation({"state": LineState.WAITING, "reason": _why_waiting(batch)})
    return await _reported(context, batch, segments[0], found, wait_s)


async def _state_later(context: ApiContext, batch: Batch, found: FoundLine, most_bytes: int) -> LineSituation:
    """The state once the batch, which has ended meanwhile, is read again."""
    again = await require_batch(context, batch.project_id, batch.id)
    if not again.status.is_terminal:
        raise ConflictError(f"Batch '{batch.id}' has no segment for the line; run 'nightmill check'.")
    return await _ended(context, again, found, most_bytes)


async def _ended(context: ApiContext, batch: Batch, found: FoundLine, most_bytes: int) -> LineSituation:
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is None:
            continue
        is_error = file_id == batch.error_file_id
        most = MOST_LINE_BYTES if is_error else most_bytes
        line = await written_line(context, batch, file_id, found.ordinal, most_bytes=most)
        if line is not None:
            outcome = {**_outcome(line.text, is_error=is_error), "file_id": file_id}
            return LineSituation(outcome, line.text, line.size_bytes)
    raise ConflictError(f"The files of batch '{batch.id}' that had the line are deleted.")


def _outcome(text: bytes, *, is_error: bool) -> _Fields:
    if not is_error:
        return {"state": LineState.ANSWERED}
    code = codes_of(read_line(text))[0]
    return {"state": state_of_error(code), "code": code}


async def _answer(context: ApiContext, segment: AnsweredSegment, ordinal: int) -> LineSituation | None:
    """The outcome of a line that is answered in the parts of an unfinished batch."""
    parts = segment.pinned
    if not segment.is_done:
        parts = await context.parts.find(segment.segment, below=segment.token + 1, pinned=segment.pinned)
    async for record in standing_records(context.parts, parts):
        if record.ordinal == ordinal:
            text = record.output.text.removesuffix(b"\n")
            return LineSituation(_outcome(text, is_error=record.output.is_error), text, len(text))
    return None


def _why_waiting(batch: Batch) -> str:
    if batch.status is not Status.IN_PROGRESS:
        return f"The batch is {batch.status}: the line is not sent any more."
    if batch.paused_at is not None:
        return "The batch is paused."
    return "No worker has leased the line yet."


async def _reported(
    context: ApiContext, batch: Batch, segment: AnsweredSegment, found: FoundLine, wait_s: float
) -> LineSituation:
    """What the worker that holds the segment says of the line."""
    reports = context.store.line_reports
    since = await reports.want(batch.id, wanted_s=_WANTED_S)
    if not wait_s:
        since -= _FRESH_BEATS * context.settings.worker.beat_s
    until = time.monotonic() + wait_s
    while True:
        document = await reports.get(batch.id, segment.segment.number, token=segment.token, since=since)
        if document is not None:
            fields = _of_line(_report.decode(document), found.ordinal)
            # The line may have been answered before the report was made.
            if fields["state"] is LineState.WAITING and (
                answer := await _answer(context, segment, found.ordinal)
            ):
                return answer
            return LineSituation(fields)
        if time.monotonic() >= until:
            break
        await asyncio.sleep(_POLL_S)
    if (answer := await _answer(context, segment, found.ordinal)) is not None:
        return answer
    why = "A worker holds the line and did not report in time." if wait_s else "A worker holds the line."
    return LineSituation({"state": LineState.LEASED, "reason": why})


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
