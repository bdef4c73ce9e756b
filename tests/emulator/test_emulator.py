"""The emulator over HTTP: correct shapes, equal answers to equal bodies, marked as emulated."""

import base64
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from openai.types import (
    Completion,
    CreateEmbeddingResponse,
    ImagesResponse,
    Model,
    ModerationCreateResponse,
    Video,
)
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from nightmill.core.batch import ENDPOINTS
from nightmill.emulator.answers import FINGERPRINT, answer
from nightmill.errors import SetupError

BODIES = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "m", "prompt": "hi"},
    "/v1/responses": {"model": "m", "input": "hi"},
    "/v1/embeddings": {"model": "m", "input": "hi"},
    "/v1/moderations": {"input": "hi"},
    "/v1/images/generations": {"model": "gpt-image-1", "prompt": "a cat"},
    "/v1/images/edits": {"prompt": "a cat", "images": [{"file_id": "file-1"}]},
    "/v1/videos": {"model": "sora-2", "prompt": "a cat"},
}
TYPES = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/responses": Response,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/moderations": ModerationCreateResponse,
    "/v1/images/generations": ImagesResponse,
    "/v1/images/edits": ImagesResponse,
    "/v1/videos": Video,
}


def test_every_endpoint_of_a_batch_is_known() -> None:
    assert set(BODIES) == set(TYPES) == set(ENDPOINTS)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_answers_in_the_shape_of_the_official_client(emulator, endpoint: str) -> None:
    TYPES[endpoint].model_validate(emulator.ask(endpoint, BODIES[endpoint]), strict=False)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_equal_bodies_get_equal_answers_and_other_bodies_others(emulator, endpoint: str) -> None:
    first = emulator.request("POST", endpoint, BODIES[endpoint])
    assert first == emulator.request("POST", endpoint, BODIES[endpoint])
    changed = json.loads(json.dumps(BODIES[endpoint]).replace("hi", "ho").replace("a cat", "a dog"))
    assert first[2] != emulator.request("POST", endpoint, changed)[2]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_answer_is_marked_as_emulated(emulator, endpoint: str) -> None:
    status, headers, _ = emulator.request("POST", endpoint, BODIES[endpoint])
    assert status == 200
    assert headers["x-nightmill-emulator"] == FINGERPRINT


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
def test_completions_have_the_fingerprint(emulator, endpoint: str) -> None:
    assert emulator.ask(endpoint, BODIES[endpoint])["system_fingerprint"] == FINGERPRINT


def test_generated_texts_are_marked_as_emulated(emulator) -> None:
    chat = emulator.ask("/v1/chat/completions", BODIES["/v1/chat/completions"])
    response = emulator.ask("/v1/responses", BODIES["/v1/responses"])
    completion = emulator.ask("/v1/completions", BODIES["/v1/completions"])
    assert "emulated" in chat["choices"][0]["message"]["content"]
    assert "emulated" in completion["choices"][0]["text"]
    assert "emulated" in response["output"][0]["content"][0]["text"]
    assert response["metadata"] == {"system_fingerprint": FINGERPRINT}


def test_usage_adds_up_and_grows_with_the_prompt(emulator) -> None:
    short = emulator.ask("/v1/chat/completions", BODIES["/v1/chat/completions"])["usage"]
    long_body = {"model": "m", "messages": [{"role": "user", "content": "hi" * 1_000}]}
    long = emulator.ask("/v1/chat/completions", long_body)["usage"]
    assert long["prompt_tokens"] > short["prompt_tokens"] + 400
    for usage in (short, long):
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] > 0


def test_n_sets_the_number_of_choices(emulator) -> None:
    chat = emulator.ask("/v1/chat/completions", BODIES["/v1/chat/completions"] | {"n": 3})
    assert [choice["index"] for choice in chat["choices"]] == [0, 1, 2]
    completion = emulator.ask("/v1/completions", {"model": "m", "prompt": ["a", "b"], "n": 2})
    assert len(completion["choices"]) == 4


def test_a_json_response_format_gets_json(emulator) -> None:
    body = BODIES["/v1/chat/completions"] | {"response_format": {"type": "json_object"}}
    content = emulator.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    assert json.loads(content)["emulated"] is True


@pytest.mark.parametrize(("given", "count"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2)])
def test_each_input_gets_an_embedding(emulator, given: object, count: int) -> None:
    listed = emulator.ask("/v1/embeddings", {"model": "m", "input": given, "dimensions": 8})
    assert [entry["index"] for entry in listed["data"]] == list(range(count))
    for entry in listed["data"]:
        assert len(entry["embedding"]) == 8
        assert sum(number * number for number in entry["embedding"]) == pytest.approx(1, abs=1e-5)


def test_equal_texts_have_equal_vectors_at_any_position(emulator) -> None:
    one = emulator.ask("/v1/embeddings", {"model": "m", "input": "a"})
    two = emulator.ask("/v1/embeddings", {"model": "m", "input": ["b", "a"]})
    assert one["data"][0]["embedding"] == two["data"][1]["embedding"]
    assert two["data"][0]["embedding"] != two["data"][1]["embedding"]
    assert len(one["data"][0]["embedding"]) == 256


def test_base64_embeddings_are_the_same_numbers(emulator) -> None:
    body = {"model": "m", "input": "a", "dimensions": 5}
    numbers = emulator.ask("/v1/embeddings", body)["data"][0]["embedding"]
    encoded = emulator.ask("/v1/embeddings", body | {"encoding_format": "base64"})["data"][0]["embedding"]
    assert list(struct.unpack("<5f", base64.b64decode(encoded))) == numbers


@pytest.mark.parametrize(
    ("given", "count"),
    [("a", 1), (["a", "b"], 2), ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}], 1)],
)
def test_each_input_gets_a_moderation(emulator, given: object, count: int) -> None:
    assert len(emulator.ask("/v1/moderations", {"input": given})["results"]) == count


def test_an_image_is_a_valid_png_that_names_the_emulator(emulator) -> None:
    made = emulator.ask("/v1/images/generations", {"prompt": "a cat", "n": 2})
    assert len(made["data"]) == 2
    png = base64.b64decode(made["data"][0]["b64_json"])
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert FINGERPRINT.encode() in png
    place, kinds = 8, []
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        kind, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", png, place + 8 + length)[0] == zlib.crc32(kind + content)
        kinds.append(kind)
        if kind == b"IDAT":
            assert len(zlib.decompress(content)) == 4
        place += 12 + length
    assert kinds == [b"IHDR", b"tEXt", b"IDAT", b"IEND"]


def test_an_image_can_be_an_unresolvable_url(emulator) -> None:
    made = emulator.ask("/v1/images/generations", {"prompt": "a cat", "model": "dall-e-3"})
    assert made["data"][0]["url"].startswith("https://emulated.invalid/")
    assert "b64_json" not in made["data"][0]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/chat/completions", b""),
        ("/v1/chat/completions", b"{"),
        ("/v1/chat/completions", b"[]"),
        ("/v1/chat/completions", b"\xff"),
        ("/v1/chat/completions", b"[" * 100_000),
        ("/v1/chat/completions", b'{"model":"\xff","messages":[1]}'),
        ("/v1/chat/completions", {"model": "m"}),
        ("/v1/chat/completions", {"model": "m", "messages": []}),
        ("/v1/chat/completions", {"model": 1, "messages": [1]}),
        ("/v1/chat/completions", {"model": "", "messages": [1]}),
        ("/v1/chat/completions", {"model": "m", "messages": [1], "n": 0}),
        ("/v1/chat/completions", {"model": "m", "messages": [1], "stream": True}),
        ("/v1/embeddings", {"model": "m", "input": []}),
        ("/v1/embeddings", {"model": "m", "input": ""}),
        ("/v1/embeddings", {"model": "m", "input": ["a", 1]}),
        ("/v1/embeddings", {"model": "m", "input": ["a", [1]]}),
        ("/v1/embeddings", {"model": "m", "input": ["a", ""]}),
        ("/v1/embeddings", {"model": "m", "input": [[]]}),
        ("/v1/embeddings", {"model": "m", "input": "a", "dimensions": 0}),
        ("/v1/images/edits", {"prompt": "a cat"}),
        ("/v1/videos", {"model": "sora-2"}),
    ],
)
def test_a_bad_body_is_refused_in_openais_envelope(emulator, endpoint: str, body: object) -> None:
    status, _, content = emulator.request("POST", endpoint, body)
    assert status == 400
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_models_and_health_respond(emulator) -> None:
    status, _, content = emulator.request("GET", "/v1/models")
    assert status == 200
    assert [Model.model_validate(model).id for model in json.loads(content)["data"]] == [FINGERPRINT]
    assert emulator.request("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("POST", "/v1/else", 404),
        ("GET", "/", 404),
    ],
)
def test_other_paths_and_methods_are_refused(emulator, method: str, path: str, status: int) -> None:
    refused, _, content = emulator.request(method, path)
    assert refused == status
    assert json.loads(content)["error"]["type"] == "invalid_request_error"


def test_answers_are_a_pure_function() -> None:
    body = json.dumps(BODIES["/v1/chat/completions"]).encode()
    assert answer("/v1/chat/completions", body) == answer("/v1/chat/completions", body)
    assert answer("/v1/nothing", body).status == 404


def test_an_answer_names_its_line_in_the_record(start: Callable, tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.write_text("of an earlier emulator\n")
    emulator = start("--record", str(record), "--faults", '[{"fault": "status", "times": 1}]')
    asked = [
        emulator.request(
            "POST", "/v1/chat/completions", {"model": "m", "messages": [{"content": f"marker:{n}"}]}
        )
        for n in "ab"
    ]
    assert [status for status, _, _ in asked] == [503, 200]
    assert [headers["x-request-id"] for _, headers, _ in asked] == ["emulated-2", "emulated-3"]
    assert record.read_text().split("\n")[1:3] == ["a", "b"]


def test_the_record_has_one_line_for_each_request_even_after_a_kill(start: Callable, tmp_path: Path) -> None:
    record = tmp_path / "record"
    emulator = start("--record", str(record))
    marked = {"model": "m", "messages": [{"role": "user", "content": "say marker:line-7 please"}]}
    emulator.ask("/v1/chat/completions", marked)
    emulator.ask("/v1/chat/completions", marked)
    emulator.ask("/v1/chat/completions", BODIES["/v1/chat/completions"])
    emulator.request("POST", "/v1/chat/completions", b"not json")
    emulator.request("GET", "/v1/models")
    emulator.child.send_signal(signal.SIGKILL)
    unmarked = [json.dumps(BODIES["/v1/chat/completions"]).encode(), b"not json"]
    hashes = [hashlib.blake2b(body, digest_size=8).hexdigest() for body in unmarked]
    assert record.read_text().split() == ["line-7", "line-7", *hashes]


def test_a_delay_precedes_each_answer(start: Callable) -> None:
    emulator = start("--delay-s", "0.2")
    with pytest.raises(TimeoutError):
        emulator.request("POST", "/v1/completions", BODIES["/v1/completions"], timeout_s=0.1)
    assert emulator.request("POST", "/v1/completions", BODIES["/v1/completions"])[0] == 200


def test_the_emulator_exits_after_its_parent(start: Callable) -> None:
    emulator = start("--delay-s", "60")
    with socket.create_connection(("127.0.0.1", emulator.port)) as waiting:
        waiting.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        emulator.child.stdin.close()
        assert emulator.child.wait(timeout=60) == 0


def test_a_graceful_shutdown_finishes_open_requests(start: Callable) -> None:
    emulator = start("--delay-s", "0.3")
    body = json.dumps(BODIES["/v1/completions"]).encode()
    with socket.create_connection(("127.0.0.1", emulator.port), timeout=60) as waiting:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        waiting.sendall(head + body[:-1])
        emulator.child.stdin.write(b"hello d\n")  # the first line is no order
        emulator.child.stdin.flush()
        waiting.sendall(body[-1:])
        emulator.child.stdin.write(b"rd")
        emulator.child.stdin.flush()
        assert waiting.recv(65_536).startswith(b"HTTP/1.1 200")
    assert emulator.child.wait(timeout=60) == 0


def test_the_port_can_be_written_to_a_file_descriptor() -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "nightmill.runtime.child", "emulator", "--port-fd", str(writing)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[writing]) as child,
        os.fdopen(reading) as pipe,
    ):
        os.close(writing)
        port = int(pipe.readline())
        socket.create_connection(("127.0.0.1", port)).close()
        child.stdin.close()
        assert child.wait(timeout=60) == 0


@pytest.mark.parametrize(
    "arguments",
    [("--faults", "{"), ("--faults", '[{"fault": "nonsense"}]'), ("--faults", '[{"fault": "slow", "x": 1}]')],
)
def test_invalid_faults_are_reported_at_the_start(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "nightmill.runtime.child", "emulator", *arguments]
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == SetupError.exit_code
    assert "the emulator's faults can't be read" in done.stderr
    assert "Traceback" not in done.stderr
