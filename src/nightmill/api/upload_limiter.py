"""Receiving large bodies: how many at once, how slowly, and how a refused one ends.

Duty: the stream below the form. Promise: a sender that stops or crawls is given up, one that goes away
raises, and an answer given before the body was read reaches a client that is still sending. Not its duty:
what the bytes are (`multipart`).
"""

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.types import Message, Receive, Scope, Send

from nightmill.api.body import SlowBodyError
from nightmill.api.context import Context
from nightmill.api.envelope import echo
from nightmill.errors import ConflictError, RequestError, TooManyError

PROGRESS_BYTES = 1 << 10
"""Less than this within the idle time counts as nothing: a byte a minute would hold a connection for ever."""
DISCARDED_BYTES = 1 << 30
DISCARDING_S = 30.0
SILENCE_S = 2.0
_SMALL_BYTES = 64 << 10
_SMALL_S = 0.05


class BodyCutError(RequestError):
    """The client went away, so nobody reads this; it ends the request and names the reason in logs."""


class UploadLimiter:
    """Who is being served just now, over all routes that take or join large bodies."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._taken: set[str] = set()

    @contextmanager
    def another(self) -> Generator[None]:
        """One more body being received. Raises TooManyError above the limit."""
        if self._open >= self._limit:
            message = f"{self._limit} uploads are being received already. Please try again in a moment."
            raise TooManyError(message, retry_after_s=1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @contextmanager
    def alone_with(self, upload_id: str) -> Generator[None]:
        """Spares joining the same parts twice; which join counts is the store's to say.

        Raises:
            ConflictError: somebody in this process is at it.
        """
        if upload_id in self._taken:
            raise ConflictError(f"Upload '{echo(upload_id)}' is being completed already.", param="upload_id")
        self._taken.add(upload_id)
        try:
            yield
        finally:
            self._taken.remove(upload_id)


async def reception_of(request: Request, context: Context) -> UploadLimiter:
    """One for each app, made with the first upload."""
    state = request.app.state
    if not hasattr(state, "upload_limiter"):
        state.upload_limiter = UploadLimiter(context.settings.api.max_open_uploads)
    return cast("UploadLimiter", state.upload_limiter)


Desk = Annotated[UploadLimiter, Depends(reception_of)]
"""Routes ask for `desk: Desk`."""


async def chunks_of(request: Request, *, idle_s: float) -> AsyncIterator[bytes]:
    """The body as it arrives. Only waiting for the client counts as idle, not what is done with a chunk.

    Raises:
        SlowBodyError: less than `PROGRESS_BYTES` came in `idle_s`.
        BodyCutError: the connection closed.
    """
    now = asyncio.get_running_loop().time
    waited_s = 0.0
    arrived_bytes = 0
    while True:
        started = now()
        try:
            async with asyncio.timeout(idle_s - waited_s):
                message = await request.receive()
        except TimeoutError:
            text = f"Too little of the request body arrived within {idle_s:g} seconds. Please send it again."
            raise SlowBodyError(text) from None
        if message["type"] == "http.disconnect":
            raise BodyCutError("The connection closed before the whole request body had arrived.")
        chunk: bytes = message.get("body", b"")
        waited_s += now() - started
        arrived_bytes += len(chunk)
        if arrived_bytes >= PROGRESS_BYTES:
            waited_s, arrived_bytes = 0.0, 0
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


def answering_early(scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The same two callables, for an answer that may go out before the body has arrived.

    Most clients send everything before they read, and closing a connection with bytes under way destroys the
    answer in their hands. So the answer goes out at once, says that the connection will close, and what still
    arrives is thrown away for a while before it does. A small body is waited for instead: that keeps the
    connection.
    """
    headers = dict(scope["headers"])
    if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return receive, send
    exchange = _Exchange(receive, send, is_awaited=b"expect" in headers)
    return exchange.receive, exchange.send


class _Exchange:
    """A request with a body, and its answer.

    Args:
        is_awaited: the client sends nothing before it is told to.
    """

    def __init__(self, receive: Receive, send: Send, *, is_awaited: bool) -> None:
        self._receive = receive
        self._send = send
        self._is_awaited = is_awaited
        self._is_read = False

    async def receive(self) -> Message:
        self._is_awaited = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not self._is_awaited:
                await self._discard(_SMALL_BYTES, within_s=_SMALL_S, silence_s=_SMALL_S)
            if not self._is_read:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await self._send(message)
        elif self._is_read or message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._discard(DISCARDED_BYTES, within_s=DISCARDING_S, silence_s=SILENCE_S)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self, most_bytes: int, *, within_s: float, silence_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not self._is_read and most_bytes > 0:
                    async with asyncio.timeout(silence_s):
                        message = await self.receive()
                    most_bytes -= len(message.get("body", b""))
        except TimeoutError:
            return
