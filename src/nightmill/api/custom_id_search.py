"""Searches the newest batches for a line with a custom_id, within a time limit.

No index of custom_ids is kept: they are in the input files. A file is searched for the bytes of the
custom_id, and only a line that has them is read. When the time is up, the answer says how far the search got,
and the next request goes on from there, also within a file.
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request

from nightmill.api.batch_query import BatchQuery, Wanted
from nightmill.api.batches import batch_not_found, require_after
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.own_batch import own_view
from nightmill.core.batch import Batch
from nightmill.core.json_text import string
from nightmill.core.request_line import slice_line
from nightmill.ids import BatchId

AT_ONCE: Final = 2
"""Searches of one server at a time; others wait."""
_CHUNK_BYTES: Final = 4 << 20
_PAGE: Final = 100
_CURSOR: Final = re.compile(r"([^@]+)@([0-9]{1,18}):([0-9]{1,18})")

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


@router.get("/batches/search")
async def search(
    request: Request,
    context: Context,
    wanted: BatchQuery,
    custom_id: Annotated[str, Query(min_length=1, max_length=1_000)],
    after: Annotated[str | None, Query(description="The next_after of the previous answer.")] = None,
    within_s: Annotated[float, Query(gt=0, le=10, description="How long to search.")] = 1.0,
    limit: Annotated[int, Query(ge=1, le=100, description="The most lines to find.")] = 20,
) -> JsonResponse:
    """Lines with the custom_id, in the newest batches that match the other parameters."""
    async with request.app.state.search_turns:
        one = _Search(context, wanted, custom_id, ends_at=time.monotonic() + within_s, limit=limit)
        return JsonResponse({"custom_id": custom_id, **await one.run(after)})


class _Search:
    def __init__(
        self, context: ApiContext, wanted: Wanted, custom_id: str, *, ends_at: float, limit: int
    ) -> None:
        self._context = context
        self._wanted = wanted
        self._custom_id = custom_id
        self._needles = _forms_of(custom_id)
        self._ends_at = ends_at
        self._limit = limit
        self._found: list[dict[str, Any]] = []
        self._searched = 0
        self._unreadable = 0
        self._searched_to: int | None = None

    async def run(self, after: str | None) -> dict[str, Any]:
        """Raises NotFoundError when `after` names no batch."""
        within = _CURSOR.fullmatch(after or "")
        if within is not None:
            batch = await self._batch(within[1])
            if cursor := await self._through(batch, int(within[2]), int(within[3])):
                return self._answer(cursor)
            after = batch.id
        behind = require_after(after)
        while True:
            page = await self._context.store.steering.list(
                self._wanted.project, self._wanted.filter, after=behind, limit=_PAGE
            )
            for batch in page.items:
                if behind is not None and self._searched and self._is_over:
                    return self._answer(behind)
                if cursor := await self._through(batch, 0, 0):
                    return self._answer(cursor)
                behind = batch.id
            if not page.has_more:
                return self._answer(None)

    @property
    def _is_over(self) -> bool:
        return time.monotonic() >= self._ends_at or len(self._found) >= self._limit

    async def _batch(self, batch_id: str) -> Batch:
        require_after(batch_id)
        batch = await self._context.store.batches.get(self._wanted.project, BatchId(batch_id))
        if batch is None:
            raise batch_not_found(batch_id, param="after")
        return batch

    async def _through(self, batch: Batch, start: int, lines: int) -> str | None:
        """Searches a file from a byte on, `lines` lines after its start. Returns where to go on in the file
        when the time is up before its end."""
        begun = b""
        try:
            while chunk := await self._read(batch, start + len(begun)):
                text = begun + chunk
                whole = text.rfind(b"\n") + 1
                number = await asyncio.to_thread(self._line_in, text[:whole])
                if number is not None:
                    self._add(batch, lines + number)
                    break  # a custom_id is unique in its file
                start += whole
                lines += text.count(b"\n", 0, whole)
                begun = text[whole:]
                if whole and time.monotonic() >= self._ends_at:  # else the next request gets no further
                    return f"{batch.id}@{start}:{lines}"
            else:
                if self._line_in(begun) is not None:
                    self._add(batch, lines + 1)
        except FileNotFoundError:
            self._unreadable += 1
        self._searched += 1
        self._searched_to = batch.created_at
        return None

    async def _read(self, batch: Batch, start: int) -> bytes:
        if not batch.input_blob_key:  # intake will report that there is no such file
            raise FileNotFoundError
        return await self._context.blobs.read(batch.input_blob_key, start, _CHUNK_BYTES)

    def _line_in(self, text: bytes) -> int | None:
        """The number of the line, from 1."""
        for needle in self._needles:
            at = text.find(needle)
            while at >= 0:
                begin, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
                end = len(text) if end < 0 else end
                if _custom_id(text[begin:end]) == self._custom_id:
                    return text.count(b"\n", 0, begin) + 1
                at = text.find(needle, end)
        return None

    def _add(self, batch: Batch, line: int) -> None:
        self._found.append({"line": line, "batch": own_view(batch)})

    def _answer(self, next_after: str | None) -> dict[str, Any]:
        return {
            "object": "nightmill.batch_search",
            "data": self._found,
            "searched": self._searched,
            "unreadable": self._unreadable,
            "searched_to": self._searched_to,
            "next_after": next_after,
            "has_more": next_after is not None,
        }


def _forms_of(custom_id: str) -> Sequence[bytes]:
    """How JSON writers write it."""
    forms = (json.dumps(custom_id), json.dumps(custom_id, ensure_ascii=False))
    return list(dict.fromkeys(form.encode("utf-8", "surrogatepass") for form in forms))


def _custom_id(line: bytes) -> str | None:
    try:
        return string(slice_line(line).custom_id_json)
    except (ValueError, TypeError):
        return None
