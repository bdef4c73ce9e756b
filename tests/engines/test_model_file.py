"""Batches over a real small model that nightmill runs itself with `--model`."""

import re
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import ended, serving
from tests.engines.conftest import LINE_S, chat, created, input_file

pytestmark = pytest.mark.timeout(3_600)

SHOWN = re.compile(r"model\.gguf answers (\d+) at once, each with 8,192 tokens of context")


def test_long_prompts_in_all_slots_are_answered(gguf: Path, tmp_path: Path):
    """Any three of them are longer than the model's context."""
    slow = {"NIGHTMILL_UPSTREAM__TIMEOUT_S": str(LINE_S)}  # beside other work, a prompt takes minutes
    with serving(tmp_path, "--model", str(gguf), environment=slow) as server:
        shown = SHOWN.search(server.log.read_text())
        assert shown is not None
        assert int(shown[1]) == 4
        content = input_file([chat(f"{number} " + "water " * 3_260, tokens=4) for number in range(8)])
        batch = ended(server.client(), created(server, content), timeout_s=LINE_S)
        assert batch.request_counts.to_dict() == {"total": 8, "completed": 8, "failed": 0}
        assert batch.usage is not None
        assert batch.usage.input_tokens > 8 * 3_260


def test_a_line_beyond_the_context_gets_the_answer_of_the_server(gguf: Path, tmp_path: Path):
    with serving(tmp_path, "--model", str(gguf)) as server:
        content = input_file([chat("water " * (9_000 if number % 2 else 3)) for number in range(8)])
        batch = ended(server.client(), created(server, content), timeout_s=LINE_S)
        assert batch.request_counts.to_dict() == {"total": 8, "completed": 4, "failed": 4}
        errors = server.rows(batch.error_file_id)
    assert [row["custom_id"] for row in errors] == ["line-1", "line-3", "line-5", "line-7"]
    for row in errors:
        assert row["response"]["status_code"] == 400
        error = row["response"]["body"]["error"]
        assert error["type"] == "exceed_context_size_error"
        assert "exceeds the available context size (8192 tokens)" in error["message"]


def test_an_endpoint_that_the_model_does_not_serve_makes_error_lines_at_once(gguf: Path, tmp_path: Path):
    with serving(tmp_path, "--model", str(gguf)) as server:
        loaded = created(server, input_file([chat("water", tokens=1)]))
        assert ended(server.client(), loaded, timeout_s=LINE_S).request_counts.completed == 1
        content = input_file([{"model": "model", "input": "water"}] * 20, url="/v1/embeddings")
        began = time.monotonic()
        batch = ended(server.client(), created(server, content, endpoint="/v1/embeddings"), timeout_s=LINE_S)
        took_s = time.monotonic() - began
        errors = server.rows(batch.error_file_id)
    assert [row["response"]["status_code"] for row in errors] == [501] * 20
    assert all("does not support embeddings" in row["response"]["body"]["error"]["message"] for row in errors)
    assert took_s < 20, f"20 lines took {took_s:.0f} s: each was sent again"
