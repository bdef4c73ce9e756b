"""A file's bytes on their way out.

Duty: one answer that streams a blob. Promise: the length is announced, the first byte does not wait for the
last, memory is a few chunks whatever the size, a file deleted meanwhile is sent to its end, and no name a
client chose can add a header. Not its duty: who may read what (`files`). Range is ignored, as OpenAI does.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast
from urllib.parse import quote

from fastapi import Response
from starlette.types import Receive, Scope, Send

from nightmill.core.file import File, Purpose
from nightmill.errors import NotFoundError, UnavailableError

CHUNK_BYTES = 1 << 20
STALL_S = 300.0
"""A client that takes not one chunk in so long is gone."""
_NAME_LENGTH = 255
_JSONL = frozenset({Purpose.BATCH, Purpose.BATCH_OUTPUT, Purpose.FINE_TUNE, Purpose.EVALS})
_UNSAFE = re.compile(r'[^\x20-\x7e]|["\\/%;:*?<>|]')
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f/\\]")


def media_type(purpose: Purpose) -> str:
    """One released client cannot read OpenAI's octet-stream (docs/openai-behaviour.md 10.2)."""
    return "text/plain; charset=utf-8" if purpose in _JSONL else "application/octet-stream"


def content_disposition(filename: str) -> str:
    """`attachment` with the name in plain ASCII, and as it is (RFC 6266) where that differs."""
    plain = _UNSAFE.sub("_", filename)[:_NAME_LENGTH]
    if plain == filename:
        return f'attachment; filename="{plain}"'
    exact = quote(_CONTROLS.sub("_", filename)[:_NAME_LENGTH], safe="", errors="replace")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"


class Download(Response):
    """Streams `chunks`, which hold `file.size_bytes` altogether."""

    def __init__(self, file: File, chunks: AsyncIterator[bytes]) -> None:
        headers = {
            "content-type": media_type(file.purpose),
            "content-length": str(file.size_bytes),
            "content-disposition": content_disposition(file.filename),
        }
        super().__init__(headers=headers)
        self._file_id = file.id
        self._chunks = cast("AsyncGenerator[bytes]", chunks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's own
        async with aclosing(self._chunks) as chunks:
            # Before the status goes out, so that it can still be said when there is no such blob.
            try:
                chunk = await anext(chunks, b"")
            except FileNotFoundError:
                raise NotFoundError(f"No such File object: {self._file_id}", param="id") from None
            gone = asyncio.create_task(_gone(receive))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                while chunk and not gone.done():
                    await _within_stall(send, chunk)
                    chunk = await anext(chunks, b"")
                if not gone.done():
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                gone.cancel()
                await asyncio.wait([gone])


async def _within_stall(send: Send, chunk: bytes) -> None:
    try:
        async with asyncio.timeout(STALL_S):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except TimeoutError:
        # The answer has begun: all that can be done is to cut the connection, which this does.
        raise UnavailableError(f"the client took nothing of a download for {STALL_S:g} seconds") from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
