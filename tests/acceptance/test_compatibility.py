"""Rows of docs/compatibility.md that need special settings or a separate upstream."""

import json
import time

import openai
import pytest

from tests.acceptance.conftest import CHAT, ended, until


def chat(custom_id: str, model: str) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def test_lines_may_name_several_models_if_the_setting_allows_it(serve):
    server = serve("--emulate", environment={"NIGHTMILL_LIMITS__MODELS_PER_FILE": "2"})
    batch = server.run(chat("a", "one") + chat("b", "two"))
    assert (batch.status, batch.model) == ("completed", None)
    batch = server.run(chat("a", "one") + chat("b", "two") + chat("c", "three"))
    assert [(error.line, error.code) for error in batch.errors.data] == [(3, "mismatched_model")]


def test_only_models_named_in_the_settings_are_allowed(serve, stub):
    server = serve("--upstream", stub().url, environment={"NIGHTMILL_UPSTREAM__MODELS": "one, two"})
    assert [model.id for model in server.client().models.list()] == ["one", "two"]
    assert server.run(chat("a", "two")).status == "completed"
    batch = server.run(chat("a", "three"))
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == ("model_not_found", "body.model", 1)
    assert error.message == "The provided model 'three' is not supported by the Batch API."


def test_lines_in_flight_at_a_cancel_end_in_bounded_time(stubbed):
    server, upstream = stubbed
    upstream.delay_s = 60
    client = server.client()
    uploaded = client.files.create(file=chat("a", "m") + chat("b", "m"), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
    until(lambda: len(upstream.requests) == 2)
    client.batches.cancel(batch.id)
    batch = ended(client, batch.id)
    assert (batch.status, batch.output_file_id) == ("cancelled", None)
    assert [row["error"]["code"] for row in server.rows(batch.error_file_id)] == ["batch_cancelled"] * 2


def test_an_attempt_that_takes_too_long_is_reported_as_a_timeout(serve, stub):
    upstream = stub()
    upstream.delay_s = 60
    short = {"NIGHTMILL_UPSTREAM__TIMEOUT_S": "0.2", "NIGHTMILL_UPSTREAM__MAX_ATTEMPTS": "2"}
    server = serve("--upstream", upstream.url, environment=short)
    batch = server.run(chat("a", "m"))
    (row,) = server.rows(batch.error_file_id)
    assert (row["response"], row["error"]["code"]) == (None, "request_timeout")
    assert row["error"]["message"] == "The model server gave no whole answer within 0.2 seconds."
    assert batch.request_counts.to_dict() == {"total": 1, "completed": 0, "failed": 1}
    assert 2 <= len(upstream.requests) <= 8


def test_a_batch_waits_for_an_unreachable_upstream(serve, stub):
    upstream = stub()
    away = upstream.url.replace(upstream.host, "127.0.0.1:9")
    server = serve("--upstream", away, "--window", "24h", "--window", "3s")
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().models.list()
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0
    batch = server.run(chat("a", "m"), completion_window="3s")
    assert (batch.status, batch.request_counts.failed) == ("expired", 0)
    (row,) = server.rows(batch.error_file_id)
    assert row["error"] == {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }


def test_the_log_contains_batches_and_never_contents_or_keys(server, jsonl):
    """Batches are in the log; prompts, answers and keys are not."""
    secret = "the quick brown secret"
    body = {"model": "m", "messages": [{"role": "user", "content": secret}]}
    began = time.time()
    batch = server.run(jsonl(1, body=body), metadata={"note": secret})
    logged = until(lambda: batch.id in (text := server.log.read_text()) and text)
    assert secret not in logged
    assert "sk-none" not in logged
    assert batch.created_at >= int(began)
