"""What nightmill asks of a blob store.

Promise: once `BlobWriter.commit` returns, the bytes and their name survive a power cut; before that nothing
is visible under the key. Not its duty: what the bytes mean. Keys are made by nightmill only (ids and numbers
joined by '/'), never from a client's name.
"""

import re
from collections.abc import AsyncIterator
from typing import Protocol

_KEY = re.compile(r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)*", re.ASCII)
UNFINISHED = "tmp"
"""No key begins with this step: a folder keeps unfinished blobs there."""


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

    async def sweep_unfinished(self) -> int:
        """Removes what a crash left unfinished; says how much. Only at start, while nobody writes."""
        ...

    async def signed_url(self, key: str, *, ttl_s: float) -> str | None:
        """A link that gives the bytes to whoever has it, or None where there is no such thing."""
        ...

    async def close(self) -> None:
        """After the last use. What was begun and given up gets a moment to end."""
        ...


def check_key(key: str) -> str:
    """The key itself. Raises ValueError for what is not one."""
    if not _KEY.fullmatch(key) or key == UNFINISHED or key.startswith(UNFINISHED + "/"):
        raise ValueError(f"{key!r} is not a blob key")
    return key
