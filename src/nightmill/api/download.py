"""A response that streams the bytes of a file, or a range of them.

The response has a Content-Length and starts before the whole blob is read. Memory use is a few chunks for any
file size. A file deleted during a download is sent to its end. A filename cannot add a header. OpenAI has no
ranges: a request without `Range` is answered as OpenAI answers it, and only answers to HEAD and to ranges
have `ETag` and `Accept-Ranges`. `files` checks access.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast
from urllib.parse import quote

from fastapi import Response
from starlette.types import Receive, Scope, Send

from nightmill.blobs import Blobs
from nightmill.core.file import OF_LINES, File, Purpose
from nightmill.errors import NotFoundError, RequestError, UnavailableError

CHUNK_BYTES = 1 << 20
STALL_S = 300.0
"""A client that receives no chunk for this long is disconnected."""
_NAME_LENGTH = 255
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")
_UNSAFE = re.compile(r'[^\x20-\x7e]|["\\/%;:*?<>|]')
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f/\\]")


def media_type(purpose: Purpose) -> str:
    """One released client cannot read OpenAI's octet-stream (docs/openai-behaviour.md 10.2)."""
    return "text/plain; charset=utf-8" if purpose in OF_LINES else "application/octet-stream"


def content_disposition(filename: str) -> str:
    """`attachment` with the name in plain ASCII, and the exact name (RFC 6266) where the two differ."""
    ascii_name = _UNSAFE.sub("_", filename)[:_NAME_LENGTH]
    if ascii_name == filename:
        return f'attachment; filename="{ascii_name}"'
    utf8_name = quote(_CONTROLS.sub("_", filename)[:_NAME_LENGTH], safe="", errors="replace")
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{utf8_name}"


def etag_of(file: File) -> str:
    """The bytes of a file never change, and no id is used twice."""
    return f'"{file.id}"'


def wanted_range(value: str | None, if_range: str | None, file: File) -> range | None:
    """The byte range that `Range` asks for; None for the whole file (RFC 9110 14.2).

    The whole file is also the answer to several ranges, to a value that is no byte range, and to an
    `If-Range` that does not hold.

    Raises:
        RangeError: the file has no such bytes.
    """
    match = _RANGE.fullmatch(value.strip()) if value is not None else None
    if match is None or (if_range is not None and if_range.strip() != etag_of(file)):
        return None
    first, last = match["first"], match["last"]
    size_bytes = file.size_bytes
    if first:
        start, end = int(first), min(int(last) + 1 if last else size_bytes, size_bytes)
        if last and int(last) < int(first):
            return None
    elif last:
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        return None
    if start >= end:
        raise RangeError(file)
    return range(start, end)


class RangeError(RequestError):
    """The file ends before the range begins."""

    status = 416

    def __init__(self, file: File) -> None:
        super().__init__(
            f"The file '{file.id}' has {file.size_bytes} bytes and none in the range asked for.",
            code="range_not_satisfiable",
            headers={
                "content-range": f"bytes */{file.size_bytes}",
                "accept-ranges": "bytes",
                "etag": etag_of(file),
            },
        )


async def read_range(blobs: Blobs, key: str, wanted: range) -> AsyncGenerator[bytes]:
    """The bytes in chunks. A blob that is deleted meanwhile ends the connection."""
    start = wanted.start
    while start < wanted.stop:
        try:
            chunk = await blobs.read(key, start, min(CHUNK_BYTES, wanted.stop - start))
        except FileNotFoundError:
            if start == wanted.start:
                raise
            chunk = b""
        if not chunk:
            raise UnavailableError(f"blob {key} was deleted while it was read")
        yield chunk
        start += len(chunk)


class Download(Response):
    """Streams `chunks`, which have the bytes of `wanted` together, or all of the file.

    Args:
        says_ranges: whether the headers say that ranges can be asked for.
    """

    def __init__(
        self,
        file: File,
        chunks: AsyncIterator[bytes],
        *,
        wanted: range | None = None,
        says_ranges: bool = False,
    ) -> None:
        headers = {
            "content-type": media_type(file.purpose),
            "content-length": str(file.size_bytes if wanted is None else len(wanted)),
            "content-disposition": content_disposition(file.filename),
        }
        if says_ranges or wanted is not None:
            headers |= {"accept-ranges": "bytes", "etag": etag_of(file)}
        if wanted is not None:
            headers["content-range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{file.size_bytes}"
        super().__init__(headers=headers, status_code=200 if wanted is None else 206)
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
                status = self.status_code
                await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})
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
