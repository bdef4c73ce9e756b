"""The files of a batch that has ended, and their lines, read as a stream.

Memory use is a chunk and the longest line.
"""

from collections.abc import AsyncGenerator
from typing import Final

from nightmill.api.context import ApiContext
from nightmill.blobs import Blobs
from nightmill.core.batch import Batch
from nightmill.core.file import File
from nightmill.errors import ConflictError
from nightmill.ids import FileId

_CHUNK_BYTES: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"


async def file_of(context: ApiContext, batch: Batch, file_id: FileId, *, what: str) -> File:
    """Raises ConflictError when the file was deleted or has expired."""
    file = await context.store.files.get(batch.project_id, file_id)
    if file is None:
        raise ConflictError(f"The {what} file '{file_id}' of batch '{batch.id}' is deleted or has expired.")
    return file


async def blob_lines(blobs: Blobs, key: str) -> AsyncGenerator[list[bytes]]:
    r"""Every line without its `\n`, many at a time.

    Raises:
        FileNotFoundError: there is no such blob.
    """
    begun: list[bytes] = []
    async for chunk in blobs.stream(key, chunk_bytes=_CHUNK_BYTES):
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        if rest:
            last = rest.pop()
            yield [b"".join(begun), *rest]
            begun = [last]
    if text := b"".join(begun):
        yield [text]


async def request_lines(blobs: Blobs, key: str) -> AsyncGenerator[list[bytes]]:
    """The request lines of an input file: no blank lines, and no byte order mark at the start."""
    is_start = True
    async for lines in blob_lines(blobs, key):
        if is_start:
            lines[0], is_start = lines[0].removeprefix(_BOM), False
        yield [line for line in lines if line and not line.isspace()]
