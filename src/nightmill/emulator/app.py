"""The emulator as a bare ASGI app: reads a request, puts it on record, answers."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from hashlib import blake2b
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

from nightmill.core.batch import ENDPOINTS
from nightmill.emulator.answers import FINGERPRINT, Answer, answer, error, models
from nightmill.emulator.faults import Fault, Orders, break_connection, plain

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

TRANSPORT = "nightmill.transport"

_MARKER = re.compile(rb"marker:([A-Za-z0-9._-]+)")
SENDER = b"x-emulator-sender"
_HEADERS = ((b"content-type", b"application/json"), (b"x-nightmill-emulator", FINGERPRINT.encode()))


def emulator_app(*, delay_s: float = 0.0, record: Path | None = None, faults: Sequence[Fault] = ()) -> App:
    """The app.

    Args:
        delay_s: waits before each answer of an endpoint.
        record: gets one line for each request as soon as its body is read: the marker found in the body
            (`marker:` and letters, digits, '.', '_', '-') or else a hash of it. A request with the header
            `x-emulator-sender` has that and the monotonic time behind it. A whole answer names its line by
            number, from 1, as `x-request-id: emulated-<number>`: so it is known which attempt it answers.
        faults: how to misbehave, in order.
    """
    orders = Orders(faults)
    # Lives as long as the process; one write per request, so that a kill loses nothing that was answered.
    log = None if record is None else os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)

    numbers = count(1 if record is None else 1 + record.read_bytes().count(b"\n"))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = await _body_of(receive)
        if body is None:
            return
        path: str = scope["path"]
        if scope["method"] != "POST" or path not in ENDPOINTS:
            await _send(send, _other(scope["method"], path, body))
            return
        own: Headers = ()
        if log is not None:
            os.write(log, _line(body, scope))
            own = ((b"x-request-id", b"emulated-%d" % next(numbers)),)
        right = answer(path, body)
        fault = orders.next_for(body)
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        if fault is None:
            await _send(send, right, own)
            return
        if fault.fault == "slow":
            await asyncio.sleep(fault.delay_s)
        made = plain(fault, right)
        if made is not None:
            headers = [(name.encode(), value.encode()) for name, value in made.headers.items()]
            await _send_raw(send, made.status, [*headers, *own], made.body)
            return
        await break_connection(fault, right, scope["extensions"][TRANSPORT])
        while (await receive())["type"] != "http.disconnect":
            pass

    return app


def _line(body: bytes, scope: Scope) -> bytes:
    found = _MARKER.search(body)
    marker = blake2b(body, digest_size=8).hexdigest().encode() if found is None else found[1]
    for name, value in scope["headers"]:
        if name == SENDER:
            return b"%s %s %.6f\n" % (marker, value, monotonic())
    return marker + b"\n"


def _other(method: str, path: str, body: bytes) -> Answer:
    match method, path:
        case "GET", "/v1/models":
            return Answer(200, models())
        case "GET", "/health":
            return Answer(200, b'{"status":"ok"}')
        case _, "/v1/models" | "/health":
            return error(405, f"The emulator has no {method} {path}.")
        case _ if path in ENDPOINTS:
            return error(405, f"The emulator has no {method} {path}.")
        case _:
            return answer(path, body)


async def _body_of(receive: Receive) -> bytes | None:
    """None when the client left in the middle."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return None if message["type"] == "http.disconnect" else body
    pieces = [body]
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message["body"])
    return b"".join(pieces)


async def _send(send: Send, made: Answer, own: Headers = ()) -> None:
    await _send_raw(send, made.status, (*_HEADERS, *own), made.body)


async def _send_raw(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
