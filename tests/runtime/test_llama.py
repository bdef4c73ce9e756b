"""A real llama.cpp in a child process as the supervisor starts it, with a model that the test writes."""

import http.client
import importlib.util
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from nightmill.errors import SetupError
from nightmill.runtime import llama
from nightmill.runtime.llama import fitted, llama_command, llama_program
from nightmill.runtime.supervisor import child_command
from nightmill.settings import ModelSettings

pytest.importorskip("xllamacpp")

TINY_GGUF = Path(__file__).parents[1] / "tiny_gguf.py"
HEADER_WITHOUT_WEIGHTS = struct.pack(
    "<4sIQQ Q20sIQ5s Q20sII",
    *(b"GGUF", 3, 0, 2),
    *(20, b"general.architecture", 8, 5, b"llama"),
    *(20, b"llama.context_length", 4, 512),
)
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "temperature": 0}


def written(folder: Path, *arguments: str) -> Path:
    path = folder / "tiny.gguf"
    subprocess.run([sys.executable, str(TINY_GGUF), str(path), *arguments], check=True)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("model"))


@dataclass
class Llama:
    """A running server."""

    port: int
    child: subprocess.Popen[bytes]

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


@contextmanager
def running(settings: ModelSettings, folder: Path, *, port: int = 0) -> Iterator[Llama]:
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    command = [*llama_command(settings, port=port), "--port-file", str(port_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            until = time.monotonic() + 60
            while not port_file.exists():
                assert child.poll() is None, "llama.cpp did not start"
                assert time.monotonic() < until, "llama.cpp did not start in time"
                time.sleep(0.01)
            yield Llama(int(port_file.read_text()), child)
        finally:
            child.kill()


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    settings = ModelSettings(path=model, slots=2, context_tokens=256, threads=1)
    with running(settings, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Llama]]:
    with ExitStack() as stack:
        yield lambda settings, **more: stack.enter_context(running(settings, tmp_path, **more))


def test_a_model_of_random_weights_answers_a_chat_completion(server: Llama) -> None:
    status, answer = server.request("POST", "/v1/chat/completions", {"model": "tiny", **CHAT})
    assert status == 200
    chat = ChatCompletion.model_validate(answer)
    assert chat.choices[0].message.content
    assert chat.usage is not None
    assert 0 < chat.usage.completion_tokens <= 16


def test_the_model_is_listed_by_the_name_of_its_file(server: Llama) -> None:
    status, listed = server.request("GET", "/v1/models")
    assert status == 200
    assert [entry["id"] for entry in listed["data"]] == ["tiny"]


def test_more_lines_than_slots_are_all_answered(server: Llama) -> None:
    def ask(number: int) -> int:
        body = {"messages": [{"role": "user", "content": f"line {number}"}], "max_tokens": 8}
        return server.request("POST", "/v1/chat/completions", body)[0]

    with ThreadPoolExecutor(24) as threads:
        assert list(threads.map(ask, range(24))) == [200] * 24


def test_each_slot_has_the_whole_context(server: Llama) -> None:
    fits = {"prompt": "night " * 35, "max_tokens": 1}
    status, answer = server.request("POST", "/v1/completions", fits)
    assert status == 200
    assert answer["usage"]["prompt_tokens"] > 128
    too_long = {"prompt": "night " * 50, "max_tokens": 1}
    status, answer = server.request("POST", "/v1/completions", too_long)
    assert status == 400
    assert answer["error"]["type"] == "exceed_context_size_error"
    assert answer["error"]["n_ctx"] == 256


def test_without_a_context_setting_the_context_of_the_model_is_used(
    model: Path, start: Callable[..., Llama]
) -> None:
    server = start(ModelSettings(path=model, slots=2))
    long = {"prompt": "night " * 300, "max_tokens": 1}
    assert server.request("POST", "/v1/completions", long)[0] == 200


def test_long_prompts_in_all_slots_are_answered_at_once(model: Path, start: Callable[..., Llama]) -> None:
    """Each fills most of the model's context of 2,048 tokens, so no two would fit into one context."""
    server = start(ModelSettings(path=model, slots=4, threads=1))

    def ask(number: int) -> tuple[int, Any]:
        return server.request(
            "POST", "/v1/completions", {"prompt": "night " * (300 + number), "max_tokens": 9}
        )

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, range(4)))
    assert [status for status, _ in answers] == [200] * 4
    assert all(answer["usage"]["prompt_tokens"] > 1_024 for _, answer in answers)


def test_an_answer_that_fills_the_context_ends_there(server: Llama) -> None:
    body = {"prompt": "night", "max_tokens": 10_000, "ignore_eos": True}
    status, answer = server.request("POST", "/v1/completions", body)
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] in (255, 256)


def test_a_text_of_many_tokens_is_embedded_as_a_whole(tmp_path: Path, start: Callable[..., Llama]) -> None:
    server = start(ModelSettings(path=written(tmp_path, "embeds"), slots=2, threads=1))
    status, answer = server.request("POST", "/v1/embeddings", {"input": "night " * 300})
    assert status == 200
    assert answer["usage"]["prompt_tokens"] > 1_024


def test_a_model_that_pools_its_tokens_makes_embeddings(tmp_path: Path, start: Callable[..., Llama]) -> None:
    server = start(ModelSettings(path=written(tmp_path, "embeds"), slots=1, context_tokens=256))
    status, answer = server.request("POST", "/v1/embeddings", {"model": "tiny", "input": ["night", "mill"]})
    assert status == 200
    assert [len(entry.embedding) for entry in CreateEmbeddingResponse.model_validate(answer).data] == [64, 64]


def test_the_child_exits_with_its_parent_and_writes_nothing_to_standard_output(
    model: Path, start: Callable[..., Llama]
) -> None:
    """Each line there would notify all processes."""
    server = start(ModelSettings(path=model))
    assert server.child.stdin is not None
    assert server.child.stdout is not None
    server.request("POST", "/v1/chat/completions", CHAT)
    with socket.create_connection(("127.0.0.1", server.port)):
        server.child.stdin.close()
        assert server.child.wait(timeout=60) == 0
    assert server.child.stdout.read() == b""


def test_a_drain_finishes_requests_in_flight(model: Path, start: Callable[..., Llama]) -> None:
    server = start(ModelSettings(path=model, slots=1, threads=1))
    assert server.child.stdin is not None
    answers: list[tuple[int, Any]] = []
    body = {"prompt": "night", "max_tokens": 400, "ignore_eos": True}
    asking = threading.Thread(target=lambda: answers.append(server.request("POST", "/v1/completions", body)))
    asking.start()
    while server.request("GET", "/slots")[1][0]["is_processing"] is False and asking.is_alive():
        time.sleep(0.001)
    server.child.stdin.write(b"\nrd")
    server.child.stdin.flush()
    asking.join(timeout=60)
    assert server.child.wait(timeout=60) == 0
    [(status, answer)] = answers
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 400


def test_a_restarted_child_listens_on_the_same_port(model: Path, start: Callable[..., Llama]) -> None:
    first = start(ModelSettings(path=model))
    assert first.request("GET", "/health")[0] == 200
    first.child.kill()
    first.child.wait()
    second = start(ModelSettings(path=model), port=first.port)
    assert second.port == first.port
    assert second.request("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no model", "is not a GGUF file"),
        (b"GGUF", "the header of"),
        (HEADER_WITHOUT_WEIGHTS, "llama.cpp can't serve"),
    ],
)
def test_a_file_that_is_no_model_is_a_setup_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    command = llama_command(ModelSettings(path=path))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        said = child.stderr.read().decode()
        assert child.wait(timeout=60) == SetupError.exit_code
    assert message in said
    assert str(path) in said
    assert "Traceback" not in said


def test_the_program_and_the_command_have_the_same_arguments(model: Path) -> None:
    settings = ModelSettings(path=model, slots=3, context_tokens=512, threads=2)
    assert "--threads 2" in " ".join(llama_command(settings))
    program = llama_program(settings, port=8_123)
    assert llama_command(settings, port=8_123) == child_command(program.kind, *program.arguments)


def test_the_chosen_slots_and_their_context_are_shown_with_the_reason(model: Path) -> None:
    chosen, line = fitted(ModelSettings(path=model, threads=2))
    assert chosen == ModelSettings(path=model, slots=4, context_tokens=2_048, threads=2)
    assert line.startswith("tiny.gguf answers 4 at once, each with 2,048 tokens of context, in 0.3 GiB of ")


def test_a_missing_model_is_an_error_before_a_child_starts(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="there is no model file at"):
        fitted(ModelSettings(path=tmp_path / "none.gguf"))
    with pytest.raises(SetupError, match="there is no model file at"):
        llama_program(ModelSettings(path=tmp_path / "none.gguf"), port=0)
    with pytest.raises(SetupError, match="no model is named"):
        llama_program(ModelSettings(), port=0)


def test_without_llama_cpp_the_error_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str) -> object:
        return None if name == "xllamacpp" else found(name)

    monkeypatch.setattr(llama, "find_spec", find_spec)
    with pytest.raises(SetupError, match=r"pip install 'nightmill\[llama\]'"):
        llama_program(ModelSettings(path=model), port=0)
