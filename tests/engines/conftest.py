"""A real vLLM with a real small model, and the same model as a GGUF file; `make test-engines` installs both.

One vLLM serves all tests of a run, because its start takes minutes.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import Server, until
from tests.engines.install import GGUF, PYTHON, WEIGHTS

MODEL = "small"
CONTEXT_TOKENS = 2_048
SEQUENCES = 4
"""Lines that vLLM computes at once; further requests wait in its queue."""
START_S = 1_800
LINE_S = 1_800


def chat(words: str, *, tokens: int = 16) -> dict[str, Any]:
    """A body whose answer has exactly `tokens` tokens."""
    message = {"role": "user", "content": words}
    return {"model": MODEL, "messages": [message], "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def input_file(bodies: Sequence[dict[str, Any]], *, url: str = "/v1/chat/completions") -> bytes:
    lines = (
        {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def created(server: Server, content: bytes, *, endpoint: str = "/v1/chat/completions") -> str:
    """Uploads a file and creates a batch; returns its id."""
    client = server.client()
    uploaded = client.files.create(file=content, purpose="batch")
    return client.batches.create(input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h").id


def post(base_url: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Sends one request directly to a model server. `path` begins with /v1."""
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=LINE_S)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def drive_s(base_url: str, bodies: Sequence[dict[str, Any]], *, in_flight: int) -> float:
    """Sends all bodies directly to a model server; returns the seconds until the last answer."""
    began = time.monotonic()
    with ThreadPoolExecutor(in_flight) as threads:
        sent = [threads.submit(post, base_url, "/v1/chat/completions", body) for body in bodies]
        assert [answer.result()[0] for answer in sent] == [200] * len(bodies)
    return time.monotonic() - began


@dataclass
class Vllm:
    """A vLLM on a port that it keeps over restarts."""

    port: int
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        options = {
            "--model": WEIGHTS,
            "--served-model-name": MODEL,
            "--host": "127.0.0.1",
            "--port": self.port,
            "--max-model-len": CONTEXT_TOKENS,
            "--max-num-seqs": SEQUENCES,
        }
        flags = [str(word) for option in options.items() for word in option]
        offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *flags],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=os.environ | offline,
                start_new_session=True,
            )
        until(self._is_healthy, timeout_s=START_S, pause_s=0.5)

    def kill(self) -> None:
        """Kills every process of the server."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):  # all have exited
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_engine(self) -> None:
        """Kills the process that computes, and waits until the API process has exited by itself."""
        assert self.process is not None
        [engine] = [pid for pid in _children(self.process.pid) if "EngineCore" in _title(pid)]
        os.kill(engine, signal.SIGKILL)
        self.process.wait(timeout=300)
        self.kill()

    def _is_healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"vLLM ended:\n{self.log.read_text(errors='replace')[-4_000:]}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    if not os.environ.get("TEST_ENGINES"):
        pytest.skip("a real vLLM: make test-engines")
    if not PYTHON.exists() or not (WEIGHTS / "config.json").exists():
        pytest.skip("vLLM or the model's weights could not be installed; see the output of make test-engines")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Vllm(port, tmp_path_factory.mktemp("vllm") / "vllm.log")
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.kill()


@pytest.fixture(scope="session")
def gguf() -> Path:
    if not os.environ.get("TEST_ENGINES"):
        pytest.skip("a real model: make test-engines")
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    if not GGUF.exists():
        pytest.skip("the model could not be downloaded; see the output of make test-engines")
    return GGUF
