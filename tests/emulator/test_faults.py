"""Injected faults, as an HTTP client sees them."""

import http.client
import json
import socket
import time
from collections.abc import Callable

import pytest

ENDPOINT = "/v1/chat/completions"


def body(text: str) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def ordered(start: Callable, *faults: dict[str, object]):
    return start("--faults", json.dumps(faults))


def raw(port: int, text: str) -> tuple[bytes, str]:
    """All bytes of the answer until the connection ends, and how it ended."""
    content = json.dumps(body(text)).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = f"POST {ENDPOINT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        received = b""
        try:
            while piece := connection.recv(65_536):
                received += piece
        except ConnectionResetError:
            return received, "reset"
        return received, "closed"


def test_a_fault_applies_to_matching_bodies_the_given_number_of_times(start: Callable) -> None:
    emulator = ordered(
        start,
        {"fault": "status", "match": "bad", "times": 2, "status": 429, "headers": {"retry-after": "3"}},
        {"fault": "status", "match": "bad", "status": 500, "body": "oops"},
    )
    assert emulator.request("POST", ENDPOINT, body("good"))[0] == 200
    seen = [emulator.request("POST", ENDPOINT, body("bad")) for _ in range(4)]
    assert [status for status, _, _ in seen] == [429, 429, 500, 200]
    assert seen[0][1]["retry-after"] == "3"
    assert set(json.loads(seen[0][2])["error"]) == {"message", "type", "param", "code"}
    assert seen[2][2] == b"oops"


def test_a_fault_can_apply_to_all_requests(start: Callable) -> None:
    emulator = ordered(start, {"fault": "html", "times": None, "status": 502})
    for _ in range(3):
        status, headers, content = emulator.request("POST", ENDPOINT, body("x"))
        assert (status, headers["content-type"]) == (502, "text/html")
        assert content.startswith(b"<html>")
    assert emulator.request("GET", "/v1/models")[0] == 200


def test_redirects_and_broken_json(start: Callable) -> None:
    emulator = ordered(
        start, {"fault": "redirect", "location": "http://elsewhere/"}, {"fault": "invalid_json"}
    )
    status, headers, _ = emulator.request("POST", ENDPOINT, body("x"))
    assert (status, headers["location"]) == (307, "http://elsewhere/")
    status, _, content = emulator.request("POST", ENDPOINT, body("x"))
    assert status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(content)


def test_slow_and_missing_answers(start: Callable) -> None:
    emulator = ordered(start, {"fault": "slow", "delay_s": 0.2}, {"fault": "hang"})
    started = time.monotonic()
    assert emulator.request("POST", ENDPOINT, body("x"))[0] == 200
    assert time.monotonic() - started >= 0.2
    with pytest.raises(TimeoutError):
        emulator.request("POST", ENDPOINT, body("x"), timeout_s=0.3)


def test_a_trickled_answer_arrives_whole_byte_by_byte(start: Callable) -> None:
    emulator = ordered(start, {"fault": "trickle", "delay_s": 0.0001})
    status, _, content = emulator.request("POST", ENDPOINT, body("x"))
    assert status == 200
    assert content == emulator.request("POST", ENDPOINT, body("x"))[2]


def test_connections_are_reset(start: Callable) -> None:
    emulator = ordered(start, {"fault": "reset"}, {"fault": "reset_midway"})
    assert raw(emulator.port, "x") == (b"", "reset")
    received, end = raw(emulator.port, "x")
    assert received.startswith(b"HTTP/1.1 200")
    assert end == "reset"


@pytest.mark.parametrize("fault", ["truncate", "broken_chunks"])
def test_answers_are_truncated(start: Callable, fault: str) -> None:
    emulator = ordered(start, {"fault": fault})
    with pytest.raises(http.client.IncompleteRead):
        emulator.request("POST", ENDPOINT, body("x"))


def test_an_answer_has_a_wrong_content_length(start: Callable) -> None:
    emulator = ordered(start, {"fault": "short_length"})
    received, _ = raw(emulator.port, "x")
    head, _, content = received.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert 0 < length < len(content)


def test_a_connection_closes_after_a_complete_answer(start: Callable) -> None:
    emulator = ordered(start, {"fault": "close_after"})
    received, end = raw(emulator.port, "x")
    head, _, content = received.partition(b"\r\n\r\n")
    assert b"connection: close" not in head.lower()
    assert json.loads(content)["object"] == "chat.completion"
    assert end == "closed"


def test_requests_with_faults_are_recorded(start: Callable, tmp_path) -> None:
    record = tmp_path / "record"
    emulator = start("--record", str(record), "--faults", '[{"fault": "reset"}]')
    raw(emulator.port, "marker:a")
    assert record.read_text() == "a\n"


def test_faults_can_be_read_from_a_file(start: Callable, tmp_path) -> None:
    orders = tmp_path / "faults.json"
    orders.write_text('[{"fault": "status", "status": 418}]')
    emulator = start("--faults", f"@{orders}")
    assert emulator.request("POST", ENDPOINT, body("x"))[0] == 418
