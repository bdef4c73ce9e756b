"""One bucket of an object store: the requests that nightmill makes, and the store's failures as its errors.

A missing object raises FileNotFoundError, any other failure UnavailableError. A missing bucket does too, so
that no blob looks deleted when the whole bucket is missing. No message contains a secret or a body. What the
objects mean is defined in `objects` and `parts.objects`.
"""

import asyncio
import atexit
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import MemoryStore, S3Store

from nightmill.errors import SetupError, StorageFullError, UnavailableError

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, ObjectStore

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_KIND = re.compile(r"kind: (Connect|Timeout|Interrupted|Decode|Request)\b")
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "AllAccessDisabled"})
_NO_ROOM = frozenset({"QuotaExceeded", "XMinioStorageFull", "507"})
# The last alternative is the response of Azure's emulator for an empty object.
_NO_RANGE = re.compile(r"status code: 416\b|<Code>InvalidRange|StartTooLarge|bytes 0--1/0")
_KINDS = {
    "Connect": "no connection",
    "Timeout": "no answer in time",
    "Interrupted": "the connection broke",
    "Decode": "the connection broke",
    "Request": "the connection broke",
}
_END_S = 2.0
_SETTLE_S = 0.05
_LISTED_AT_ONCE = 1_000
_DELETED_AT_ONCE = 1_000
_T = TypeVar("_T")

# The library's threads finish a request a moment after its response. A thread that needs the interpreter
# while the interpreter ends aborts the process.
atexit.register(time.sleep, _SETTLE_S)


class RefusedError(UnavailableError):
    """The store denies access, or has no such bucket. Waiting seldom helps."""


class PastTheEndError(Exception):
    """A range begins behind the last byte."""


class Bucket:
    """Objects by key, below the prefix of the URL.

    Args:
        store: as `connect` creates it.
        name: the URL for messages, without secrets.
    """

    def __init__(self, store: "ObjectStore", *, name: str) -> None:
        self._store = store
        self.name = name
        self._in_progress: set[asyncio.Future[Any]] = set()

    async def check(self) -> None:
        """Writes, reads, lists and deletes a probe.

        Raises:
            SetupError: there is no such bucket, or the credentials don't permit these requests.
            UnavailableError: the store can't be reached.
        """
        folder = f"probe/{secrets.token_hex(8)}"
        try:
            await self.put(f"{folder}/there", b"nightmill was here")
            with suppress(FileNotFoundError):
                await self.get(f"{folder}/missing")
            _ = [key async for key in self.keys_under(folder)]
            await self.delete([f"{folder}/there"])
        except RefusedError as error:
            raise SetupError(
                f"{error.message}; see blobs.url, blobs.access_key_id and blobs.secret_access_key"
            ) from None

    async def put(
        self, key: str, content: bytes | bytearray, *, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Stores the whole object or nothing. Safe to repeat with the same bytes."""
        with self._reported(key), _written():
            await self._whole(
                obstore.put_async(
                    self._store,
                    key,
                    content,
                    attributes=dict(attributes) if attributes else None,
                    use_multipart=False,
                )
            )

    async def put_new(self, key: str, content: bytes) -> None:
        """Raises FileExistsError when the store supports `If-None-Match` and has such an object, even from an
        earlier put whose response was lost. Stores without that support overwrite the object."""
        with self._reported(key), _written():
            try:
                await self._whole(
                    obstore.put_async(self._store, key, content, mode="create", use_multipart=False)
                )
            except AlreadyExistsError:
                raise FileExistsError(key) from None

    async def put_pieces(
        self,
        key: str,
        pieces: AsyncIterator[bytearray],
        *,
        part_bytes: int,
        at_once: int,
        attributes: Mapping[str, str],
    ) -> None:
        """A multipart upload of all `pieces`. When `pieces` raises an error, the upload is aborted."""
        with self._reported(key), _written():
            await self._whole(
                obstore.put_async(
                    self._store,
                    key,
                    pieces,
                    attributes=dict(attributes),
                    chunk_size=part_bytes,
                    max_concurrency=at_once,
                )
            )

    async def get(self, key: str) -> bytes:
        with self._reported(key):
            result = await self._whole(obstore.get_async(self._store, key))
            return bytes(await self._whole(result.bytes_async()))

    async def get_range(self, key: str, start: int, length_bytes: int) -> tuple[bytes, int]:
        """Up to `length_bytes` bytes, and the size of the whole object. Raises PastTheEndError."""
        with self._reported(key):
            options: obstore.GetOptions = {"range": (start, start + length_bytes)}
            result = await self._whole(obstore.get_async(self._store, key, options=options))
            return bytes(await self._whole(result.bytes_async())), result.meta["size"]

    async def stream_from(self, key: str, start: int, *, chunk_bytes: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to the end, in one request."""
        with self._reported(key):
            options: obstore.GetOptions = {"range": {"offset": start}} if start else {}
            result = await self._whole(obstore.get_async(self._store, key, options=options))
            async for chunk in self._steps(result.stream(min_chunk_size=chunk_bytes)):
                yield bytes(chunk)

    async def attributes(self, key: str) -> Mapping[str, str]:
        with self._reported(key):
            result = await self._whole(obstore.get_async(self._store, key, options={"head": True}))
            return cast("Mapping[str, str]", result.attributes)

    async def delete(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _DELETED_AT_ONCE):
            some = keys[first : first + _DELETED_AT_ONCE]
            with self._reported(some[0]):
                try:
                    await self._whole(obstore.delete_async(self._store, some))
                except FileNotFoundError as error:
                    # Some stores report an object that is deleted already, and may have stopped there.
                    if _code(error) in _NO_BUCKET:
                        raise
                    for key in some:
                        await self._delete_one(key)

    async def _delete_one(self, key: str) -> None:
        try:
            await self._whole(obstore.delete_async(self._store, key))
        except FileNotFoundError:
            return

    async def keys_under(self, prefix: str) -> AsyncIterator[str]:
        """Every key that starts with `prefix + '/'`. A listing may lag behind."""
        with self._reported(prefix):
            listing = obstore.list(  # pyright: ignore[reportUnknownMemberType] - the Arrow overload is untyped
                self._store, prefix, chunk_size=_LISTED_AT_ONCE
            )
            async for some in self._steps(listing):
                for listed in some:
                    yield listed["path"]

    async def folders_under(self, prefix: str) -> Sequence[str]:
        """The next path steps of the keys that start with `prefix + '/'`."""
        with self._reported(prefix):
            listing = obstore.list_with_delimiter_async(  # pyright: ignore[reportUnknownMemberType] - as above
                self._store, prefix
            )
            listed = await self._whole(listing)
        return [folder.rstrip("/").rpartition("/")[2] for folder in listed["common_prefixes"]]

    async def signed_url(self, key: str, *, ttl_s: float) -> str | None:
        """A link that grants read access to the object, or None where the store has no such links. With SSE-C
        each read needs the customer's key in its headers, which a link can't contain."""
        if isinstance(self._store, MemoryStore) or (
            isinstance(self._store, S3Store) and self._store.config.get("server_side_encryption") == "sse-c"
        ):
            return None
        with self._reported(key):
            store = cast("S3Store | GCSStore | AzureStore", self._store)
            return await self._whole(obstore.sign_async(store, "GET", key, timedelta(seconds=ttl_s)))

    async def close(self) -> None:
        """Waits a moment for cancelled requests to end."""
        if self._in_progress:
            await asyncio.wait(self._in_progress, timeout=_END_S)

    async def _whole(self, request: Awaitable[_T]) -> _T:
        """Runs a request to its end even when the caller is cancelled.

        A cancelled request may end together with the interpreter, and then obstore aborts the process.
        """
        future = asyncio.ensure_future(request)
        self._in_progress.add(future)
        future.add_done_callback(self._over)
        return await asyncio.shield(future)

    def _over(self, future: "asyncio.Future[Any]") -> None:
        self._in_progress.discard(future)
        if not future.cancelled():
            future.exception()  # counts as retrieved; a caller that still waits gets it too

    async def _steps(self, stream: AsyncIterator[_T]) -> AsyncIterator[_T]:
        while True:
            try:
                step = await self._whole(anext(stream))
            except StopAsyncIteration:
                return
            yield step

    @contextmanager
    def _reported(self, key: str) -> Generator[None]:
        """Raises nightmill's errors in place of the store's."""
        try:
            yield
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            if _code(error) in _NO_BUCKET:
                raise RefusedError(f"{self.name}: there is no such bucket") from None
            raise FileNotFoundError(key) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            if _code(error) in _NO_ROOM:
                raise self._full(key, error) from None
            raise RefusedError(f"{self.name}: access denied ({_reason(error)})") from None
        except BaseError as error:
            text = str(error)
            if _NO_RANGE.search(text):
                raise PastTheEndError(key) from None
            if _code(error) in _NO_BUCKET:
                raise RefusedError(f"{self.name}: there is no such bucket") from None
            if {_code(error), _status(error)} & _NO_ROOM:
                raise self._full(key, error) from None
            raise UnavailableError(
                f"the object store {self.name} can't be reached for {key} ({_reason(error)})"
            ) from None

    def _full(self, key: str, error: Exception) -> StorageFullError:
        return StorageFullError(f"the object store {self.name} has no room for {key} ({_reason(error)})")


@contextmanager
def _written() -> Generator[None]:
    """Raises BaseError in place of FileNotFoundError: a write that finds nothing misses the bucket, or the
    multipart upload it belongs to."""
    try:
        yield
    except FileNotFoundError as error:
        raise BaseError(str(error)) from None


def _status(error: Exception) -> str | None:
    found = _STATUS.search(str(error))
    return found[1] if found else None


def _code(error: Exception) -> str | None:
    found = _CODE.search(str(error))
    return found[1] if found else None


def _reason(error: Exception) -> str:
    """The failure in a few words. The store's whole message may contain addresses, key names and more."""
    status, code = _status(error), _code(error)
    if status is not None:
        return f"HTTP {status} {code}" if code else f"HTTP {status}"
    kind = _KIND.search(str(error))
    return _KINDS[kind[1]] if kind else type(error).__name__
