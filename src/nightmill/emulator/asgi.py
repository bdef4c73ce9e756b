"""The emulator as an ASGI app: reads a request, records it, and responds with an answer or a fault."""

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
from nightmill.emulator.answers import answer, models
from nightmill.emulator.content import FINGERPRINT, Answer, error
from nightmill.emulator.fault_plan import NO_CHANCES, Chances, FaultPlan
from nightmill.emulator.faults import Fault
from nightmill.emulator.faulty_answers import break_connection, faulty_answer

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


def emulator_app(
    *, record: Path | None = None, faults: Sequence[Fault] = (), chances: Chances = NO_CHANCES
) -> App:
    """The app.

    Args:
        record: a file that gets a line for each request once its body is read: the marker in the body
            (`marker:` and letters, digits, '.', '_', '-'), or else a hash of the body. For a request with the
            header `x-emulator-sender`, the line continues with its value and the monotonic time. A complete
            answer has the header `x-request-id: emulated-<number>` with the number of its line, from 1, which
            identifies the attempt.
        faults: the faults to inject, in order.
        chances: the wait before each answer of an endpoint, and the share of failures.
    """
    plan = FaultPlan(faults, chances)
    # Open until the process exits. Each request is a single write, so a kill loses no answered request.
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
            await _send(send, _other_answer(scope["method"], path, body))
            return
        extra: Headers = ()
        if log is not None:
            os.write(log, _record_line(body, scope))
            extra = ((b"x-request-id", b"emulated-%d" % next(numbers)),)
        intact = answer(path, body)
        fault = plan.next_for(body)
        delay_s = chances.delay_of(body)
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        if fault is None:
            await _send(send, intact, extra)
            return
        if fault.fault == "slow":
            await asyncio.sleep(fault.delay_s)
        response = faulty_answer(fault, intact)
        if response is not None:
            headers = [(name.encode(), value.encode()) for name, value in response.headers.items()]
            await _send_raw(send, response.status, [*headers, *extra], response.body)
            return
        await break_connection(fault, intact, scope["extensions"][TRANSPORT])
        while (await receive())["type"] != "http.disconnect":
            pass

    return app


def _record_line(body: bytes, scope: Scope) -> bytes:
    match = _MARKER.search(body)
    marker = blake2b(body, digest_size=8).hexdigest().encode() if match is None else match[1]
    for name, value in scope["headers"]:
        if name == SENDER:
            return b"%s %s %.6f\n" % (marker, value, monotonic())
    return marker + b"\n"


def _other_answer(method: str, path: str, body: bytes) -> Answer:
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
    """The body, or None when the client disconnected before its end."""
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


async def _send(send: Send, response: Answer, extra: Headers = ()) -> None:
    await _send_raw(send, response.status, (*_HEADERS, *extra), response.body)


async def _send_raw(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
