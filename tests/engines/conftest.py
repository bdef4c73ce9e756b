"""A real vLLM with a real small model, and the same model as a GGUF file; `make test-engines` installs both.

One vLLM serves all tests of a run, because its start takes minutes.
"""

import http.client
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import Server
from tests.engines.install import GGUF, OTHER_GGUF, PYTHON, WEIGHTS
from tests.engines.servers import MODEL, Vllm, running

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


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    if not os.environ.get("TEST_ENGINES"):
        pytest.skip("a real vLLM: make test-engines")
    if not PYTHON.exists() or not (WEIGHTS / "config.json").exists():
        pytest.skip("vLLM or the model's weights could not be installed; see the output of make test-engines")
    server = Vllm(tmp_path_factory.mktemp("vllm") / "vllm.log")
    with running(server):
        yield server


@pytest.fixture(scope="session")
def gguf() -> Path:
    if not os.environ.get("TEST_ENGINES"):
        pytest.skip("a real model: make test-engines")
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    if not GGUF.exists():
        pytest.skip("the model could not be downloaded; see the output of make test-engines")
    return GGUF


@pytest.fixture(scope="session")
def other_gguf(gguf: Path) -> Path:
    """A model of another family."""
    if not OTHER_GGUF.exists():
        pytest.skip("the other model could not be downloaded; see the output of make test-engines")
    return OTHER_GGUF
