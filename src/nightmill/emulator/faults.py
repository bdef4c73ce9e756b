"""How the emulator misbehaves on order: told at start, never by a request.

Each fault names a piece of the body it waits for and how often it strikes. The first one in the list that
fits and is not used up is played; the request is on record either way.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Literal, TypeAlias, assert_never

import msgspec
from msgspec import Meta, Struct

from nightmill.emulator.answers import Answer, error
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
    """One order.

    `match` is a piece of the body ('' fits all). `times` is how many requests it strikes, None all of them.
    `status`, `headers` and `body` are for `status` and `html`, `location` for `redirect`, `delay_s` for
    `slow` (before the answer) and `trickle` (between two bytes).
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


class Orders:
    """The faults still to be played."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults: list[tuple[Fault, bytes]] = [(fault, fault.match.encode()) for fault in faults]
        self._left: list[int | None] = [fault.times for fault in faults]

    def next_for(self, body: bytes) -> Fault | None:
        for place, (fault, piece) in enumerate(self._faults):
            left = self._left[place]
            if left == 0 or piece not in body:
                continue
            if left is not None:
                self._left[place] = left - 1
            return fault
        return None


class PlainAnswer(Struct, frozen=True):
    """A fault that is a well-formed answer after all."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def plain(fault: Fault, right: Answer) -> PlainAnswer | None:
    """The whole answer when the fault lies in it, or None when the connection itself is at fault."""
    match fault.fault:
        case "status":
            made = error(fault.status, "The emulator fails on order.").body
            headers = {"content-type": "application/json"} | fault.headers
            return PlainAnswer(fault.status, headers, made if fault.body is None else fault.body.encode())
        case "html":
            page = fault.body or "<html><body><h1>A proxy, and not the upstream</h1></body></html>"
            return PlainAnswer(fault.status, {"content-type": "text/html"} | fault.headers, page.encode())
        case "redirect":
            headers = {"location": fault.location} | fault.headers
            return PlainAnswer(HTTPStatus.TEMPORARY_REDIRECT, headers, b"")
        case "invalid_json":
            return PlainAnswer(right.status, {"content-type": "application/json"}, right.body[:-1])
        case "slow":
            return PlainAnswer(right.status, {"content-type": "application/json"}, right.body)
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


async def break_connection(fault: Fault, right: Answer, transport: asyncio.Transport) -> None:
    """Plays a fault of the connection, past the HTTP server. Leaves the connection closed or hanging."""
    half = len(right.body) // 2
    match fault.fault:
        case "hang":
            return
        case "reset":
            _reset(transport)
        case "reset_midway":
            transport.write(_head(right, len(right.body)) + right.body[:half])
            await asyncio.sleep(0.05)  # a reset overtakes what the peer has not read yet
            _reset(transport)
        case "truncate":
            transport.write(_head(right, len(right.body)) + right.body[:half])
            transport.close()
        case "short_length":
            transport.write(_head(right, half) + right.body)
            transport.close()
        case "close_after":
            transport.write(_head(right, len(right.body)) + right.body)
            transport.close()
        case "broken_chunks":
            head = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            transport.write(head % right.status + b"%x\r\n%s\r\nxyz\r\n" % (half, right.body[:half]))
            transport.close()
        case "trickle":
            transport.write(_head(right, len(right.body)))
            for place in range(len(right.body)):
                if transport.is_closing():
                    return
                transport.write(right.body[place : place + 1])
                await asyncio.sleep(fault.delay_s)
            transport.close()
        case _:
            raise AssertionError(f"{fault.fault} is a whole answer")


def _head(right: Answer, length: int) -> bytes:
    return b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
        right.status,
        length,
    )


def _reset(transport: asyncio.Transport) -> None:
    """Closes with RST instead of FIN."""
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
