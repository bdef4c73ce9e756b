"""The output lines of a batch under `/nightmill/v1`, while it runs and after it has ended.

A page has the lines that are there; `follow=1` streams them until the batch has ended. While the batch runs,
lines come in the order in which they were answered, afterwards in the order of the input. A key sees the
batches of its own project, as under `/v1`.
"""

from contextlib import aclosing
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Header, Query, Response

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import Context
from nightmill.api.envelope import encode
from nightmill.api.result_reader import ResultReader
from nightmill.api.result_stream import Follow, FollowersOfApp, line_document
from nightmill.core.batch import Batch, Status
from nightmill.core.result_cursor import ResultCursor
from nightmill.core.result_filter import LineOutcome, ResultFilter

MOST_LINES: Final = 1_000
_PAGE_BYTES: Final = 4 << 20
_SSE: Final = "text/event-stream"

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


@router.get("/batches/{batch_id}/results")
async def read_results(
    batch_id: str,
    context: Context,
    project: CurrentProject,
    followers: FollowersOfApp,
    after: Annotated[str | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LINES)] = 100,
    outcome: Annotated[Literal["completed", "failed"] | None, Query()] = None,
    code: Annotated[list[str] | None, Query()] = None,
    custom_id: Annotated[list[str] | None, Query()] = None,
    follow: Annotated[bool, Query()] = False,
    format: Annotated[Literal["ndjson", "sse"] | None, Query()] = None,  # noqa: A002 - its name on the wire
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """`Last-Event-ID` is newer than `after`: a browser that comes back sends the URL it was given."""
    batch = await require_batch(context, project, batch_id)
    text = last_event_id or after
    reader = ResultReader(
        context,
        batch,
        cursor=ResultCursor.parse(text, batch.id) if text else ResultCursor(batch.id),
        wanted=ResultFilter(
            outcome=None if outcome is None else LineOutcome(outcome),
            codes=frozenset(code or ()),
            custom_ids=frozenset(custom_id or ()),
        ),
    )
    if follow:
        is_sse = format == "sse" or (format is None and _SSE in accept.lower())
        return Follow(reader, followers, is_sse=is_sse, is_stopping=context.is_stopping)
    return Response(await _page(reader, limit), media_type="application/json")


async def _page(reader: ResultReader, limit: int) -> bytes:
    """Up to `limit` lines, fewer where they are long."""
    documents: list[bytes] = []
    size_bytes = 0
    async with aclosing(reader.ready()) as lines:
        async for line in lines:
            documents.append(line_document(line, reader.cursor.text()))
            size_bytes += len(documents[-1])
            if len(documents) == limit or size_bytes >= _PAGE_BYTES:
                break
    head = {
        "object": "list",
        "batch_id": reader.batch.id,
        "status": reader.batch.status,
        "message": _message(reader.batch),
        "cursor": reader.cursor.text(),
        "has_more": not reader.is_complete,
    }
    return encode(head)[:-1] + b',"data":[' + b",".join(documents) + b"]}"


def _message(batch: Batch) -> str | None:
    if batch.status is Status.FAILED:
        return "The batch failed validation and has no lines; its 'errors' say why."
    return None
