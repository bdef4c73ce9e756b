"""Injects a fault: as a complete but wrong response, or by breaking the connection."""

import asyncio
import socket
import struct
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, assert_never

from msgspec import Struct

from nightmill.emulator.changed_answers import changed_answer
from nightmill.emulator.content import FINGERPRINT, Answer, error
from nightmill.emulator.faults import Fault

_HEADERS: Final = {"content-type": "application/json", "x-nightmill-emulator": FINGERPRINT}


class FaultyAnswer(Struct, frozen=True):
    """A fault that is a complete HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def faulty_answer(fault: Fault, answer: Answer) -> FaultyAnswer | None:
    """The response with the fault, or None for a fault of the connection."""
    match fault.fault:
        case "status":
            content = error(fault.status, "The emulator fails on order.", code=fault.code).body
            headers = {"content-type": "application/json"} | fault.headers
            return FaultyAnswer(fault.status, headers, content if fault.body is None else fault.body.encode())
        case "html":
            page = fault.body or "<html><body><h1>A proxy, and not the upstream</h1></body></html>"
            return FaultyAnswer(fault.status, {"content-type": "text/html"} | fault.headers, page.encode())
        case "redirect":
            headers = {"location": fault.location} | fault.headers
            return FaultyAnswer(HTTPStatus.TEMPORARY_REDIRECT, headers, b"")
        case "invalid_json":
            return FaultyAnswer(answer.status, _HEADERS, answer.body[:-1])
        case "refusal" | "length" | "content_filter" | "empty":
            changed = changed_answer(fault, answer)
            return FaultyAnswer(changed.status, _HEADERS, changed.body)
        case "slow":
            return FaultyAnswer(answer.status, _HEADERS, answer.body)
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
