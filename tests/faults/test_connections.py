"""What clients do to their connections: too slow, too much, too many, or not HTTP at all."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Server, serving

GET = b"GET /v1/batches HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:

        def start(**api: Any) -> Server:
            return stack.enter_context(serving(tmp_path, settings={"api": api}))

        yield start


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return received


def refused(received: bytes) -> tuple[int, str]:
    """Status and message of the one answer that came, which must be an envelope."""
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert "content-type: application/json" in lines
    assert "connection: close" in lines
    assert any(line.startswith("x-request-id: req_") for line in lines)
    document = json.loads(body)
    assert list(document["error"]) == ["message", "type", "param", "code"]
    return int(lines[0].split()[1]), document["error"]["message"]


NOT_HTTP = {
    "nonsense": b"hello there\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "an unknown method": b"FETCH / HTTP/1.1\r\n\r\n",
    "a space in a header's name": GET + b"a b: c\r\n\r\n",
    "a NUL in a header": GET + b"a: \0\r\n\r\n",
    "two lengths": GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and chunks": GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "another HTTP": b"GET / HTTP/3.7\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP.keys())
def test_what_is_not_http_hears_so_in_an_envelope(serve, sent: bytes):
    server = serve()
    with connected(server) as connection:
        connection.sendall(sent)
        status, message = refused(until_closed(connection))
    assert status == 400
    assert message.startswith("We could not parse your request")
    assert server.send("GET", "/health").status == 200


def test_a_client_that_still_sends_gets_the_answer_too(serve):
    """Closing with bytes under way would reset the connection and destroy the answer."""
    with connected(serve()) as connection:
        connection.sendall(b"nonsense\r\n" + b"x" * 300_000)
        assert refused(until_closed(connection))[0] == 400


def test_garbage_behind_a_whole_request_does_not_spoil_its_answer(serve):
    with connected(serve()) as connection:
        connection.sendall(GET + b"\r\n" + GET + b"\r\n" + b"\x00\x01garbage\r\n\r\n" * 50)
        received = until_closed(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.count(b'"object":"list"') == 2
    assert b"HTTP/1.1 400" not in received


def test_broken_chunks_of_a_body_are_a_400(serve):
    head = b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(serve()) as connection:
        connection.sendall(head + b"1\r\n{\r\nzz\r\n")
        assert refused(until_closed(connection))[0] == 400


@pytest.mark.parametrize(
    "flood", [b"1;" + b"x" * 4_000 + b"\r\n", b"0\r\n" + b"x: y\r\n" * 700], ids=["extensions", "trailers"]
)
def test_floods_around_a_body_end(serve, flood: bytes):
    """Neither is part of the body, so no limit on bodies would ever see them."""
    head = b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(serve()) as connection:
        connection.sendall(head)
        sent = 0
        with pytest.raises(OSError):
            while sent < 200 << 20:
                sent += connection.send(flood if sent == 0 else flood.removeprefix(b"0\r\n"))
    assert sent < 100 << 20


def test_a_head_that_does_not_arrive_in_time_is_a_408(serve):
    with connected(serve(header_s=0.2)) as connection:
        connection.sendall(GET)
        assert refused(until_closed(connection)) == (
            408,
            "The request's headers did not arrive within 0.2 seconds. Please send it again.",
        )


def test_a_head_that_trickles_is_a_408_too(serve):
    with connected(serve(header_s=0.3)) as connection, pytest.raises(OSError):
        for byte in GET * 20:
            connection.sendall(bytes([byte]))
            time.sleep(0.03)


def test_a_connection_that_says_nothing_is_closed(serve):
    with connected(serve(header_s=0.2)) as connection:
        assert until_closed(connection) == b""


def test_empty_lines_do_not_keep_a_connection(serve):
    with connected(serve(header_s=1.0)) as connection:
        connection.sendall(GET + b"\r\n")
        while b'"has_more"' not in connection.recv(65_536):
            pass
        connection.sendall(b"\r\n")
        until_closed(connection)


def test_a_kept_connection_may_wait_longer_than_a_head_may_take(serve):
    with connected(serve(header_s=1.0)) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
        time.sleep(2.0)
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "piece", [b"x-padding: " + b"y" * 1_000 + b"\r\n", b"y" * 1_000], ids=["many", "one"]
)
def test_a_head_without_end_is_a_431(serve, piece: bytes):
    with connected(serve(max_header_bytes=20_000)) as connection:
        connection.sendall(GET + b"x-first: ")
        for _ in range(60):
            connection.sendall(piece)
            time.sleep(0.002)
        status, message = refused(until_closed(connection))
    assert (status, message) == (431, "The request line and headers exceed 20000 bytes.")


def test_an_answer_that_no_client_reads_is_cut(serve):
    server = serve(download_idle_s=0.3)
    content = b'{"a": 1}\n' * 4_000_000
    form = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        + content
        + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    file_id = server.send("POST", "/v1/files", form, headers).json()["id"]
    with connected(server) as connection:
        connection.sendall(f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(1.5)
        taken = 0
        with pytest.raises(OSError):
            while piece := connection.recv(1 << 20):
                taken += len(piece)
            raise OSError("reset")
        assert taken < len(content)
    answer = server.send("GET", f"/v1/files/{file_id}/content")
    assert answer.body == content


def test_one_connection_too_many_takes_the_place_of_an_idle_one(serve):
    server = serve(max_connections=3)
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(server)) for _ in range(3)]
        for connection in idle:
            connection.sendall(GET + b"\r\n")
            connection.recv(65_536)
            time.sleep(0.01)
        assert server.send("GET", "/v1/batches").status == 200
        assert until_closed(idle[0]) == b""
        idle[2].sendall(GET + b"\r\n")
        assert idle[2].recv(65_536).startswith(b"HTTP/1.1 200 OK")


def test_one_connection_too_many_among_busy_ones_is_a_503_and_health_is_not(serve):
    server = serve(max_connections=3, upload_idle_s=60)
    head = (
        b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(3):
            busy = stack.enter_context(connected(server))
            busy.sendall(head)
            assert busy.recv(65_536).startswith(b"HTTP/1.1 100 Continue")
            busy.sendall(b"{")
        answer = server.send("GET", "/v1/batches")
        assert answer.status == 503
        assert answer.error["message"].startswith("3 connections are being answered already.")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
        assert server.send("GET", "/health").status == 200
    assert server.send("GET", "/v1/batches").status == 200
