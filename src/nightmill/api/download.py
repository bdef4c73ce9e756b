"""A response that streams the bytes of a file.

The response has a Content-Length and starts before the whole blob is read. Memory use is a few chunks for any
file size. A file deleted during a download is sent to its end. A filename cannot add a header. As at OpenAI,
Range headers are ignored. `files` checks access.
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
"""A client that receives no chunk for this long is disconnected."""
_NAME_LENGTH = 255
_JSONL = frozenset({Purpose.BATCH, Purpose.BATCH_OUTPUT, Purpose.FINE_TUNE, Purpose.EVALS})
_UNSAFE = re.compile(r'[^\x20-\x7e]|["\\/%;:*?<>|]')
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f/\\]")


def media_type(purpose: Purpose) -> str:
    """One released client cannot read OpenAI's octet-stream (docs/openai-behaviour.md 10.2)."""
    return "text/plain; charset=utf-8" if purpose in _JSONL else "application/octet-stream"


def content_disposition(filename: str) -> str:
    """`attachment` with the name in plain ASCII, and the exact name (RFC 6266) where the two differ."""
    ascii_name = _UNSAFE.sub("_", filename)[:_NAME_LENGTH]
    if ascii_name == filename:
        return f'attachment; filename="{ascii_name}"'
    utf8_name = quote(_CONTROLS.sub("_", filename)[:_NAME_LENGTH], safe="", errors="replace")
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{utf8_name}"


class Download(Response):
    """Streams `chunks`, which have `file.size_bytes` bytes together."""

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
            # Before the status is sent, so that a missing blob can still become a 404.
            try:
                chunk = await anext(chunks, b"")
            except FileNotFoundError:
                raise NotFoundError(f"No such File object: {self._file_id}", param="id") from None
            disconnected = asyncio.create_task(_disconnected(receive))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                while chunk and not disconnected.done():
                    await _within_stall(send, chunk)
                    chunk = await anext(chunks, b"")
                if not disconnected.done():
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                disconnected.cancel()
                await asyncio.wait([disconnected])


async def _within_stall(send: Send, chunk: bytes) -> None:
    try:
        async with asyncio.timeout(STALL_S):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except TimeoutError:
        # The response has begun: this error closes the connection.
        raise UnavailableError(f"the client took nothing of a download for {STALL_S:g} seconds") from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
