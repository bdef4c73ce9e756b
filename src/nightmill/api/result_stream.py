"""The response that follows a batch: its output lines as they are answered, until the batch has ended.

Two formats have the same documents: NDJSON, one on each line, and server-sent events. A line's document has
its cursor, with which a client that lost the connection goes on behind the line. The last document says how
the batch ended; a response without it was cut off. While nothing is answered, an empty line or a comment is
sent from time to time, so that no proxy takes the connection for dead.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import Annotated, Final, cast

from fastapi import Depends, Request, Response
from starlette.types import Receive, Scope, Send

from nightmill.api.envelope import encode, error_body
from nightmill.api.result_reader import ResultLine, ResultReader
from nightmill.errors import RequestError, TooManyError, UnavailableError

LOOK_S: Final = 0.5
"""Seconds between two looks for further answers."""
BEAT_S: Final = 5.0
"""Seconds without a line after which something is sent: proxies keep the connection, and a client that has
gone is noticed. A client that closed only its sending side still reads."""
PATIENCE_S: Final = 60.0
"""A response ends when the store or the blobs cannot be reached for so many seconds."""
_CHUNK_BYTES: Final = 64 << 10
_STALL_S: Final = 300.0
_RETRY_S: Final = 5

_TYPES: Mapping[bool, str] = {False: "application/x-ndjson", True: "text/event-stream; charset=utf-8"}


class Followers:
    """The responses of this process that follow a batch, up to a limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0

    def enter(self) -> None:
        """Raises TooManyError when the limit is reached."""
        if self._count >= self._most:
            full = f"{self._most} clients follow a batch on this server already"
            message = f"{full}. Please try again in {_RETRY_S} s."
            raise TooManyError(message, retry_after_s=_RETRY_S)
        self._count += 1

    def leave(self) -> None:
        self._count -= 1


async def followers_of(request: Request) -> Followers:
    return cast("Followers", request.app.state.followers)


FollowersOfApp = Annotated[Followers, Depends(followers_of)]
"""The type of the parameter `followers` of a route."""


def line_document(line: ResultLine, cursor: str) -> bytes:
    """`{"cursor": ..., "outcome": ..., "line": ...}`; the output line is not encoded again."""
    return b'{"cursor": "%b", "outcome": "%b", "line": %b}' % (
        cursor.encode("ascii"),
        line.outcome.encode("ascii"),
        line.text,
    )


class Follow(Response):
    """Streams the lines of a reader.

    Args:
        is_sse: server-sent events instead of NDJSON.
        is_stopping: whether the server stops; then the response ends without its last document, and the
            client goes on at another server or after the restart.
    """

    def __init__(
        self, reader: ResultReader, followers: Followers, *, is_sse: bool, is_stopping: Callable[[], bool]
    ) -> None:
        super().__init__(
            headers={
                "content-type": _TYPES[is_sse],
                "cache-control": "no-store",
                "x-accel-buffering": "no",  # nginx would collect lines before it passes them on
            }
        )
        del self.headers["content-length"]
        self._reader = reader
        self._followers = followers
        self._is_sse = is_sse
        self._is_stopping = is_stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's own
        with self._counted():
            disconnected = asyncio.create_task(_disconnected(receive))
            try:
                await self._stream(send, disconnected)
            finally:
                disconnected.cancel()
                await asyncio.wait([disconnected])

    @contextmanager
    def _counted(self) -> Generator[None]:
        self._followers.enter()
        try:
            yield
        finally:
            self._followers.leave()

    async def _stream(self, send: Send, disconnected: "asyncio.Task[None]") -> None:
        now = asyncio.get_running_loop().time
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sent_at = 0.0
        failing_since: float | None = None
        while not disconnected.done() and not self._is_stopping():
            try:
                async with aclosing(self._chunks()) as chunks:
                    async for chunk in chunks:
                        await _within_stall(send, chunk)
                        sent_at = now()
                        if disconnected.done():
                            return
                failing_since = None
            except RequestError as error:
                await self._end(send, self._failed(error.message, error.error_type, error.code))
                return
            except UnavailableError as error:
                failing_since = failing_since or now()
                if now() - failing_since > PATIENCE_S:
                    await self._end(send, self._failed(error.message, "server_error", None))
                    return
            if self._reader.is_complete:
                await self._end(send, self._ended())
                return
            if now() - sent_at >= BEAT_S:
                await _within_stall(send, b":\n\n" if self._is_sse else b"\n")
                sent_at = now()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await asyncio.shield(disconnected)
        if not disconnected.done():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncGenerator[bytes]:
        """What can be sent now, in pieces of some 64 KiB or one long line."""
        chunk: list[bytes] = []
        size_bytes = 0
        try:
            async with aclosing(self._reader.ready()) as lines:
                async for line in lines:
                    cursor = self._reader.cursor.text()
                    chunk.append(self._framed(line_document(line, cursor), cursor))
                    size_bytes += len(chunk[-1])
                    if size_bytes >= _CHUNK_BYTES:
                        yield b"".join(chunk)
                        chunk, size_bytes = [], 0
        except (RequestError, UnavailableError):
            # The cursor has these lines already: they are sent before the error is.
            if chunk:
                yield b"".join(chunk)
            raise
        if chunk:
            yield b"".join(chunk)

    def _framed(self, document: bytes, cursor: str, event: str | None = None) -> bytes:
        if not self._is_sse:
            return document + b"\n"
        name = f"event: {event}\n" if event else ""
        return f"id: {cursor}\n{name}data: ".encode("ascii") + document + b"\n\n"

    def _ended(self) -> bytes:
        cursor = self._reader.cursor.text()
        return self._framed(encode({"cursor": cursor, "end": self._reader.batch.status}), cursor, "end")

    def _failed(self, message: str, error_type: str, code: str | None) -> bytes:
        document = encode(error_body(message, error_type=error_type, param=None, code=code))
        return self._framed(document, self._reader.cursor.text(), "error")

    async def _end(self, send: Send, document: bytes) -> None:
        await _within_stall(send, document)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _within_stall(send: Send, chunk: bytes) -> None:
    try:
        async with asyncio.timeout(_STALL_S):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except TimeoutError:
        # The response has begun: this error closes the connection.
        raise UnavailableError(f"the client took nothing for {_STALL_S:g} seconds") from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
