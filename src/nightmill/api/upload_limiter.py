"""Limits on large request bodies: their number, their idle time, and responses before the end of a body.

A body that stops or arrives too slowly is refused, and a closed connection raises an error. A response sent
before the body was read still reaches a client that is sending. `multipart` parses the bytes.
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
"""Fewer bytes than this within the idle time count as none: a byte a minute would keep a connection open."""
DISCARD_BYTES = 1 << 30
DISCARD_S = 30.0
SILENCE_S = 2.0
_SMALL_BYTES = 64 << 10
_SMALL_S = 0.05


class BodyCutError(RequestError):
    """The client disconnected. The error ends the request; no client receives it."""


class UploadLimiter:
    """Counts the large bodies in progress over all routes that receive or join them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._exclusive_ids: set[str] = set()

    @contextmanager
    def slot(self) -> Generator[None]:
        """Holds one of the limited slots for receiving a body. Raises TooManyError when all are in use."""
        if self._open >= self._limit:
            message = f"{self._limit} uploads are being received already. Please try again in a moment."
            raise TooManyError(message, retry_after_s=1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @contextmanager
    def exclusive(self, upload_id: str) -> Generator[None]:
        """Keeps this process from joining the parts of an upload twice at once. The store decides the result.

        Raises:
            ConflictError: another request in this process is completing the upload.
        """
        if upload_id in self._exclusive_ids:
            raise ConflictError(f"Upload '{echo(upload_id)}' is being completed already.", param="upload_id")
        self._exclusive_ids.add(upload_id)
        try:
            yield
        finally:
            self._exclusive_ids.remove(upload_id)


async def limiter_of(request: Request, context: Context) -> UploadLimiter:
    """The limiter of the app, made with the first upload."""
    state = request.app.state
    if not hasattr(state, "upload_limiter"):
        state.upload_limiter = UploadLimiter(context.settings.api.max_open_uploads)
    return cast("UploadLimiter", state.upload_limiter)


Limiter = Annotated[UploadLimiter, Depends(limiter_of)]
"""The type of the parameter `limiter` of routes."""


async def chunks_of(request: Request, *, idle_s: float) -> AsyncIterator[bytes]:
    """The chunks of the body. Only the wait for the client counts as idle, not the processing of a chunk.

    Raises:
        SlowBodyError: fewer than `PROGRESS_BYTES` arrived within `idle_s`.
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


def allow_early_answer(scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The same two callables, for a response that may be sent before the body has arrived.

    Most clients send the whole request before they read, and closing a connection with bytes in transit
    destroys the response. So the response is sent at once with `Connection: close`, and arriving bytes are
    discarded for a while before the connection closes. The rest of a small body is awaited instead, which
    keeps the connection open.
    """
    headers = dict(scope["headers"])
    if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return receive, send
    exchange = _EarlyAnswer(receive, send, awaits_continue=b"expect" in headers)
    return exchange.receive, exchange.send


class _EarlyAnswer:
    """A request with a body, and its response.

    Args:
        awaits_continue: whether the client sends the body only after `100 Continue`.
    """

    def __init__(self, receive: Receive, send: Send, *, awaits_continue: bool) -> None:
        self._receive = receive
        self._send = send
        self._awaits_continue = awaits_continue
        self._is_read = False

    async def receive(self) -> Message:
        self._awaits_continue = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not self._awaits_continue:
                await self._discard(_SMALL_BYTES, within_s=_SMALL_S, silence_s=_SMALL_S)
            if not self._is_read:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await self._send(message)
        elif self._is_read or message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._discard(DISCARD_BYTES, within_s=DISCARD_S, silence_s=SILENCE_S)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self, max_bytes: int, *, within_s: float, silence_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not self._is_read and max_bytes > 0:
                    async with asyncio.timeout(silence_s):
                        message = await self.receive()
                    max_bytes -= len(message.get("body", b""))
        except TimeoutError:
            return
