"""Faults that the emulator injects. They are configured at the start, never by a request.

Each fault has a text to match in the body and a number of uses. The first fault in the list that matches and
is not used up is injected. Requests with a fault are recorded like all others.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Literal, TypeAlias, assert_never

import msgspec
from msgspec import Meta, Struct

from nightmill.emulator.content import Answer, error
from nightmill.errors import SetupError

Kind: TypeAlias = Literal[
    "status",
    "html",
    "redirect",
    "invalid_json",
    "slow",
    "hang",
    "trickle",
    "reset",
    "reset_midway",
    "truncate",
    "broken_chunks",
    "short_length",
    "close_after",
]


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """A fault to inject.

    `match` is a text in the body ('' matches every body). `times` is the number of requests with the fault,
    None for all. `status`, `headers` and `body` apply to `status` and `html`, `location` to `redirect`,
    `delay_s` to `slow` (before the answer) and `trickle` (between two bytes).
    """

    fault: Kind
    match: str = ""
    times: Annotated[int, Meta(ge=1)] | None = 1
    status: int = 503
    headers: dict[str, str] = {}
    body: str | None = None
    location: str = "/elsewhere"
    delay_s: float = 1.0


def read_faults(text: str) -> list[Fault]:
    """Raises SetupError when the JSON is not a list of faults."""
    try:
        return msgspec.json.decode(text, type=list[Fault])
    except msgspec.DecodeError as invalid:
        raise SetupError(f"the emulator's faults can't be read: {invalid}") from None


class FaultPlan:
    """The faults that are not used up."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults: list[tuple[Fault, bytes]] = [(fault, fault.match.encode()) for fault in faults]
        self._remaining: list[int | None] = [fault.times for fault in faults]

    def next_for(self, body: bytes) -> Fault | None:
        for index, (fault, match) in enumerate(self._faults):
            remaining = self._remaining[index]
            if remaining == 0 or match not in body:
                continue
            if remaining is not None:
                self._remaining[index] = remaining - 1
            return fault
        return None


class FaultyAnswer(Struct, frozen=True):
    """A fault that is a complete HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def faulty_answer(fault: Fault, answer: Answer) -> FaultyAnswer | None:
    """The response with the fault, or None for a fault of the connection."""
    match fault.fault:
        case "status":
            content = error(fault.status, "The emulator fails on order.").body
            headers = {"content-type": "application/json"} | fault.headers
            return FaultyAnswer(fault.status, headers, content if fault.body is None else fault.body.encode())
        case "html":
            page = fault.body or "<html><body><h1>A proxy, and not the upstream</h1></body></html>"
            return FaultyAnswer(fault.status, {"content-type": "text/html"} | fault.headers, page.encode())
        case "redirect":
            headers = {"location": fault.location} | fault.headers
            return FaultyAnswer(HTTPStatus.TEMPORARY_REDIRECT, headers, b"")
        case "invalid_json":
            return FaultyAnswer(answer.status, {"content-type": "application/json"}, answer.body[:-1])
        case "slow":
            return FaultyAnswer(answer.status, {"content-type": "application/json"}, answer.body)
        case (
            "hang"
            | "trickle"
            | "reset"
            | "reset_midway"
            | "truncate"
            | "broken_chunks"
            | "short_length"
            | "close_after"
        ):
            return None
        case _:
            assert_never(fault.fault)


async def break_connection(fault: Fault, answer: Answer, transport: asyncio.Transport) -> None:
    """Injects a fault of the connection, bypassing the HTTP server. Closes the connection or lets it hang."""
    half = len(answer.body) // 2
    match fault.fault:
        case "hang":
            return
        case "reset":
            _reset(transport)
        case "reset_midway":
            transport.write(_head(answer, len(answer.body)) + answer.body[:half])
            await asyncio.sleep(0.05)  # a reset discards the bytes that the peer has not read
            _reset(transport)
        case "truncate":
            transport.write(_head(answer, len(answer.body)) + answer.body[:half])
            transport.close()
        case "short_length":
            transport.write(_head(answer, half) + answer.body)
            transport.close()
        case "close_after":
            transport.write(_head(answer, len(answer.body)) + answer.body)
            transport.close()
        case "broken_chunks":
            head = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            transport.write(head % answer.status + b"%x\r\n%s\r\nxyz\r\n" % (half, answer.body[:half]))
            transport.close()
        case "trickle":
            transport.write(_head(answer, len(answer.body)))
            for index in range(len(answer.body)):
                if transport.is_closing():
                    return
                transport.write(answer.body[index : index + 1])
                await asyncio.sleep(fault.delay_s)
            transport.close()
        case _:
            raise AssertionError(f"{fault.fault} is a complete response")


def _head(answer: Answer, length: int) -> bytes:
    return b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
        answer.status,
        length,
    )


def _reset(transport: asyncio.Transport) -> None:
    """Closes the connection with RST instead of FIN."""
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
