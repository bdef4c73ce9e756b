"""Batches over a real vLLM: overload, errors of its own, and deaths of the server and of its engine process.

The tests run in this order: those that kill the server come last.
"""

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Server, ended, serving, until
from tests.engines.conftest import LINE_S, chat, created, input_file, post
from tests.engines.servers import MODEL, SEQUENCES, Vllm

pytestmark = pytest.mark.timeout(7_200)


def outage_lines(server: Server) -> list[str]:
    """Log lines that say that the upstream is away or back."""
    log = server.log.read_text(errors="replace").splitlines()
    return [line for line in log if "is held since" in line or "is no longer held" in line]


def begun(server: Server, nouns: str) -> str:
    """A batch of 200 lines of which some are answered; its id."""
    batch_id = created(
        server, input_file([chat(f"Name {number} {nouns}.", tokens=24) for number in range(200)])
    )
    batches = server.client().batches
    until(lambda: batches.retrieve(batch_id).request_counts.completed > 20, timeout_s=LINE_S)
    return batch_id


def assert_all_answered(server: Server, batch_id: str, *, lines: int) -> None:
    batch = ended(server.client(), batch_id, timeout_s=LINE_S)
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": lines, "completed": lines, "failed": 0}
    rows = server.rows(batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"line-{number}" for number in range(lines)]
    assert all(row["response"]["body"]["usage"]["completion_tokens"] > 0 for row in rows)


def test_more_lines_in_flight_than_the_engine_computes_wait_in_its_queue(vllm: Vllm, tmp_path: Path):
    lines = 16 * SEQUENCES
    with serving(tmp_path, "--upstream", vllm.url, "--concurrency", str(lines)) as server:
        content = input_file([chat(f"Count to {number}.") for number in range(2 * lines)])
        assert_all_answered(server, created(server, content), lines=2 * lines)
        assert outage_lines(server) == []


def test_a_line_beyond_the_context_gets_the_answer_of_the_server(vllm: Vllm, tmp_path: Path):
    bodies = [chat("water " * (3_000 if number % 2 else 3)) for number in range(8)]
    status, refusal = post(vllm.url, "/v1/chat/completions", bodies[1])
    with serving(tmp_path, "--upstream", vllm.url) as server:
        batch = ended(server.client(), created(server, input_file(bodies)), timeout_s=LINE_S)
        assert batch.request_counts.to_dict() == {"total": 8, "completed": 4, "failed": 4}
        errors = server.rows(batch.error_file_id)
        assert outage_lines(server) == []
    assert [row["custom_id"] for row in errors] == ["line-1", "line-3", "line-5", "line-7"]
    assert status == 400
    assert [row["response"]["status_code"] for row in errors] == [400] * 4
    assert [row["response"]["body"] for row in errors] == [refusal] * 4


def test_an_endpoint_that_the_model_does_not_serve_makes_error_lines_at_once(vllm: Vllm, tmp_path: Path):
    body: dict[str, Any] = {"model": MODEL, "input": "water"}
    status, refusal = post(vllm.url, "/v1/embeddings", body)
    with serving(tmp_path, "--upstream", vllm.url) as server:
        content = input_file([body] * 20, url="/v1/embeddings")
        batch = ended(server.client(), created(server, content, endpoint="/v1/embeddings"))
        errors = server.rows(batch.error_file_id)
    assert status == 404
    assert [row["response"]["status_code"] for row in errors] == [404] * 20
    assert [row["response"]["body"] for row in errors] == [refusal] * 20


def test_a_server_that_is_killed_and_started_again_loses_no_line(vllm: Vllm, tmp_path: Path):
    with serving(tmp_path, "--upstream", vllm.url, environment={"NIGHTMILL_WORKER__BEAT_S": "0.1"}) as server:
        batch_id = begun(server, "rivers")
        vllm.kill()
        done = server.client().batches.retrieve(batch_id).request_counts.completed
        assert done < 200, "the batch ended before the server was killed"
        vllm.start()
        assert_all_answered(server, batch_id, lines=200)
        went, came_back = outage_lines(server)
    assert "is held since" in went
    assert "is no longer held" in came_back


def test_a_dead_engine_process_is_one_outage(vllm: Vllm, tmp_path: Path):
    """Before it exits, the API process breaks connections and answers with errors."""
    with serving(tmp_path, "--upstream", vllm.url, environment={"NIGHTMILL_WORKER__BEAT_S": "0.1"}) as server:
        batch_id = begun(server, "towns")
        killing = threading.Thread(target=vllm.kill_engine)
        killing.start()
        until(lambda: outage_lines(server), timeout_s=300)
        killing.join()
        vllm.start()
        assert_all_answered(server, batch_id, lines=200)
        went, came_back = outage_lines(server)
    assert "is held since" in went
    assert "is no longer held" in came_back
