"""Downloads file contents as a stream: to a file, to an open stream, or line by line.

Memory does not depend on the size of the file. A download that ends early is an error: the length is compared
with Content-Length, and a file appears under its name only when it is complete.
"""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx2
from openai import AsyncOpenAI, OpenAI

from nightmill.errors import UnavailableError

CHUNK_BYTES = 1 << 18


def chunks(openai: OpenAI, file_id: str) -> Iterator[bytes]:
    """The bytes of a file as they arrive.

    Raises:
        UnavailableError: the connection broke, or fewer or more bytes came than were announced.
    """
    received_bytes = 0
    # Content-Length counts bytes on the wire, which equal the file's bytes only without compression.
    with openai.files.with_streaming_response.content(
        file_id, extra_headers={"Accept-Encoding": "identity"}
    ) as response:
        announced = response.headers.get("content-length")
        try:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                received_bytes += len(chunk)
                yield chunk
        except httpx2.HTTPError as error:
            raise _broken(file_id, received_bytes, announced) from error
    if announced is not None and received_bytes != int(announced):
        raise _broken(file_id, received_bytes, announced)


async def chunks_async(openai: AsyncOpenAI, file_id: str) -> AsyncIterator[bytes]:
    """`chunks` for asyncio."""
    received_bytes = 0
    async with openai.files.with_streaming_response.content(
        file_id, extra_headers={"Accept-Encoding": "identity"}
    ) as response:
        announced = response.headers.get("content-length")
        try:
            async for chunk in response.iter_bytes(CHUNK_BYTES):
                received_bytes += len(chunk)
                yield chunk
        except httpx2.HTTPError as error:
            raise _broken(file_id, received_bytes, announced) from error
    if announced is not None and received_bytes != int(announced):
        raise _broken(file_id, received_bytes, announced)


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    r"""Lines without their line break, split at b"\n" only: a raw U+2028 or U+0085 is part of its line."""
    pending: list[bytes] = []
    for piece in pieces:
        first, *rest = piece.split(b"\n")
        pending.append(first)
        for begun in rest:
            yield b"".join(pending)
            pending = [begun]
    last = b"".join(pending)
    if last:
        yield last


async def lines_async(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """`lines` for asyncio."""
    pending: list[bytes] = []
    async for piece in pieces:
        first, *rest = piece.split(b"\n")
        pending.append(first)
        for begun in rest:
            yield b"".join(pending)
            pending = [begun]
    if last := b"".join(pending):
        yield last


def copy(openai: OpenAI, file_id: str, stream: BinaryIO) -> int:
    """Writes a file's bytes to an open stream; returns their number."""
    written_bytes = 0
    for chunk in chunks(openai, file_id):
        stream.write(chunk)
        written_bytes += len(chunk)
    stream.flush()
    return written_bytes


def save(openai: OpenAI, file_id: str, path: Path) -> int:
    """Writes a file's bytes to `path`, which is replaced only when the file is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            written_bytes = copy(openai, file_id, stream)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return written_bytes


async def save_async(openai: AsyncOpenAI, file_id: str, path: Path) -> int:
    """`save` for asyncio."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    written_bytes = 0
    try:
        stream = await asyncio.to_thread(partial.open, "wb")
        try:
            async for chunk in chunks_async(openai, file_id):
                written_bytes += await asyncio.to_thread(stream.write, chunk)
        finally:
            await asyncio.to_thread(stream.close)
        await asyncio.to_thread(partial.replace, path)
    finally:
        await asyncio.to_thread(partial.unlink, missing_ok=True)
    return written_bytes


def _broken(file_id: str, received_bytes: int, announced: str | None) -> UnavailableError:
    of = f" of {announced}" if announced is not None else ""
    return UnavailableError(f"the download of {file_id} broke after {received_bytes}{of} bytes; try again")
