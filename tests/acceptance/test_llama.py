"""A real llama.cpp behind a real server: a batch of chat completions, and a model server that is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai.types.chat import ChatCompletion

from tests.acceptance.conftest import CHAT, ended, until

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")

ONE_THREAD = {"NIGHTMILL_MODEL__THREADS": "1"}  # more threads are 100 times slower on a loaded machine
TINY_GGUF = Path(__file__).parents[1] / "tiny_gguf.py"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([sys.executable, str(TINY_GGUF), str(path)], check=True, timeout=100)
    return path


def chat(max_tokens: int) -> dict:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": "water wheel"}],
        "max_tokens": max_tokens,
    }


def test_a_batch_is_answered_by_a_model(serve, model, jsonl):
    server = serve("--model", str(model), environment=ONE_THREAD)
    client = server.client()
    uploaded = client.files.create(file=("in.jsonl", jsonl(20, body=chat(8))), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
    batch = ended(client, batch.id, timeout_s=100)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 20, "completed": 20, "failed": 0}
    answers = [
        ChatCompletion.model_validate(row["response"]["body"]) for row in server.rows(batch.output_file_id)
    ]
    assert all(answer.choices[0].message.content for answer in answers)
    assert batch.usage.output_tokens == sum(answer.usage.completion_tokens for answer in answers) > 0
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert [batch.id for batch in client.batches.list(limit=1)] == [batch.id]


def test_a_killed_model_server_is_restarted_and_the_batch_continues(serve, model, jsonl):
    soon = ONE_THREAD | {"NIGHTMILL_WORKER__BEAT_S": "0.05"}
    server = serve("--model", str(model), "--concurrency", "4", environment=soon)
    client = server.client()
    lines = jsonl(200, body=chat(150) | {"ignore_eos": True})
    uploaded = client.files.create(file=lines, purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0, timeout_s=100)
    (killed,) = server.children("runtime.child llama")
    os.kill(killed, signal.SIGKILL)
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts.completed < 200, "the batch ended before the model server was killed"

    batch = ended(client, batch.id, timeout_s=100)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 200, "completed": 200, "failed": 0}
    assert [row["custom_id"] for row in server.rows(batch.output_file_id)] == [
        f"line-{number}" for number in range(200)
    ]
    assert killed not in server.children("runtime.child llama")
    assert len(server.children("runtime.child llama")) == 1
