"""The interface of a blob store.

Once `BlobWriter.commit` returns, the bytes and their name survive a power cut; before that nothing is visible
under the key. Keys consist of ids and numbers that nightmill makes, joined by '/', and never contain a
client's file name. What the bytes mean is known to the callers only.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

_KEY = re.compile(r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)*", re.ASCII)
UNFINISHED = "tmp"
"""A folder keeps unfinished blobs below this name, so no key begins with it."""


class BlobWriter(Protocol):
    """An unfinished blob. Exactly one of `commit` and `abort` ends it."""

    size_bytes: int

    async def write(self, chunk: bytes | memoryview) -> None:
        """Raises StorageFullError when the storage has no room."""
        ...

    async def commit(self) -> None: ...
    async def abort(self) -> None: ...


class Blobs(Protocol):
    async def open_writer(self, key: str) -> BlobWriter: ...
    async def size_bytes(self, key: str) -> int | None:
        """None when there is no such blob."""
        ...

    async def read(self, key: str, start: int, length_bytes: int) -> bytes:
        """Up to `length_bytes` from `start`. Raises FileNotFoundError."""
        ...

    def stream(self, key: str, *, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        """The whole blob, to the end even if the blob is deleted meanwhile. Raises FileNotFoundError."""
        ...

    async def delete(self, key: str) -> None:
        """No error when there is no such blob."""
        ...

    async def delete_under(self, prefix: str) -> None:
        """Every blob whose key starts with `prefix + '/'`."""
        ...

    def keys_under(self, prefix: str) -> AsyncIterator[str]: ...
    async def free_bytes(self) -> int | None:
        """Free space, or None for a storage without a fixed size."""
        ...

    async def sweep_unfinished(self) -> int:
        """Deletes what a crash left unfinished, and returns the number of blobs. Only before any write."""
        ...

    async def signed_url(self, key: str, *, ttl_s: float) -> str | None:
        """A link that grants read access to the blob, or None where the storage has no such links."""
        ...

    async def close(self) -> None:
        """After the last use. Waits a moment for cancelled requests to end."""
        ...


@asynccontextmanager
async def new_blob(blobs: Blobs, key: str) -> AsyncGenerator[BlobWriter]:
    """A writer for the body of the `with`: committed after it, aborted when the body raises."""
    writer = await blobs.open_writer(key)
    try:
        yield writer
    except BaseException:
        await writer.abort()
        raise
    await writer.commit()


def check_key(key: str) -> str:
    """Returns the key. Raises ValueError for a text that is not a key."""
    if not _KEY.fullmatch(key) or key == UNFINISHED or key.startswith(UNFINISHED + "/"):
        raise ValueError(f"{key!r} is not a blob key")
    return key


def random_name() -> str:
    return secrets.token_hex(16)


async def has_been_cancelled_until(work: "asyncio.Future[Any]") -> bool:
    """Waits for work that can't be stopped; returns whether the caller was cancelled meanwhile.

    The failure of the work counts as retrieved.
    """
    was_cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            was_cancelled = True
    if not work.cancelled():
        work.exception()
    return was_cancelled
