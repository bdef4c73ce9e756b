"""What nightmill asks of a blob store.

Promise: once `BlobWriter.commit` returns, the bytes and their name survive a power cut; before that nothing
is visible under the key. Not its duty: what the bytes mean. Keys are made by nightmill only (ids and numbers
joined by '/'), never from a client's name.
"""

from collections.abc import AsyncIterator
from typing import Protocol


class BlobWriter(Protocol):
    """An unfinished blob. Exactly one of `commit` and `abort` ends it."""

    size_bytes: int

    async def write(self, chunk: bytes | memoryview) -> None:
        """Raises StorageFullError when there is no room."""
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
        """The whole blob. Goes on to the end even when the blob is deleted meanwhile."""
        ...

    async def delete(self, key: str) -> None:
        """No error when there is none."""
        ...

    async def delete_under(self, prefix: str) -> None:
        """Every blob whose key starts with `prefix + '/'`."""
        ...

    def keys_under(self, prefix: str) -> AsyncIterator[str]: ...
    async def free_bytes(self) -> int | None:
        """Room left, or None where there is no such limit."""
        ...
