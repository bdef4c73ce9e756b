"""The dry run over HTTP."""

import asyncio
import json

import pytest

from tests.api.tokenizers import LlamaTokenizer, NoTokenizer, VllmTokenizer, tokenizer

CHAT = "/v1/chat/completions"


def line(custom_id: str, content: str, model: str = "m", **body) -> str:
    messages = [{"role": "user", "content": content}]
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": model, "messages": messages, **body},
    }
    return json.dumps(request) + "\n"


def estimate_of(server, text: str, key: str, *, endpoint: str | None = CHAT):
    file_id = server.client(key).files.create(file=("in.jsonl", text.encode()), purpose="batch").id
    answer = server.send_json(
        "/nightmill/v1/estimates", {"input_file_id": file_id, "endpoint": endpoint}, key=key
    )
    assert answer.status == 200, answer.body
    return answer.json()


@pytest.mark.parametrize(("handler", "per_line"), [(VllmTokenizer, 6), (LlamaTokenizer, 2)])
def test_tokens_are_counted_by_the_tokenizer_of_the_upstream(serve, handler, per_line):
    with tokenizer(handler) as url:
        server = serve(settings={"upstream": {"url": url}})
        key = server.new_key("p")
        few = estimate_of(server, "".join(line(str(number), "two words") for number in range(3)), key)
        assert few["tokens"] == {
            "input": 3 * per_line,
            "method": "exact",
            "counted_lines": 3,
            "most_output": None,
        }
        many = estimate_of(server, "".join(line(str(number), "two words") for number in range(200)), key)
        assert (many["tokens"]["method"], many["tokens"]["counted_lines"]) == ("sampled", 32)
        assert many["tokens"]["input"] == 200 * per_line


def test_without_a_tokenizer_tokens_are_estimated_and_the_answer_says_so(serve):
    with tokenizer(NoTokenizer) as url:
        server = serve(settings={"upstream": {"url": url}})
        found = estimate_of(server, line("a", "x" * 400), server.new_key("p"))
    assert found["tokens"]["method"] == "estimated"
    assert 100 <= found["tokens"]["input"] <= 120


def test_cost_models_time_and_duplicates_are_told_and_unknown_ones_are_null(serve):
    settings = {
        "upstream": {"url": "http://127.0.0.1:9/v1", "models": ["m"]},
        "limits": {"models_per_file": 2},
        "prices": {"m": {"input": 1_000_000, "output": 2_000_000}},
    }
    server = serve(settings=settings)
    text = line("a", "same", max_tokens=10) + line("b", "same", max_tokens=10) + line("c", "x", max_tokens=5)
    found = estimate_of(server, text, server.new_key("p"))
    assert (found["lines"], found["invalid_lines"], found["duplicates"], found["valid"]) == (3, 0, 1, True)
    tokens = found["tokens"]
    assert tokens["most_output"] == 25
    assert found["cost"] == {"input": tokens["input"], "most": tokens["input"] + 50}
    assert (found["expected_s"], found["expected_from"]) == (None, None)
    (model,) = found["models"]
    assert (model["model"], model["lines"], model["is_served"]) == ("m", 3, True)


def test_invalid_lines_and_models_that_no_upstream_serves_are_counted(serve):
    server = serve(settings={"upstream": {"url": "http://127.0.0.1:9/v1", "models": ["m"]}})
    text = line("a", "x") + "{\n" + line("a", "y") + line("c", "z", model="other")
    found = estimate_of(server, text, server.new_key("p"))
    assert (found["valid"], found["lines"], found["invalid_lines"]) == (False, 1, 3)
    assert [error["code"] for error in found["errors"]] == [
        "invalid_json_line",
        "duplicate_custom_id",
        "model_not_found",
    ]
    assert [(group["code"], group["lines"], group["count"]) for group in found["error_groups"]] == [
        ("invalid_json_line", [2], 1),
        ("duplicate_custom_id", [3], 1),
        ("model_not_found", [4], 1),
    ]
    assert all(group["hint"] for group in found["error_groups"])
    assert found["cost"] == {"input": None, "most": None}
    assert [(it["model"], it["lines"]) for it in found["models"]] == [("m", 1)]


def test_without_an_endpoint_the_one_of_most_first_lines_is_taken(server, key):
    embedding = json.dumps(
        {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
    )
    text = line("a", "x") + embedding + "\n" + embedding.replace('"e"', '"f"') + "\n"
    found = estimate_of(server, text, key, endpoint=None)
    assert (found["endpoint"], found["lines"], found["invalid_lines"]) == ("/v1/embeddings", 2, 1)
    assert estimate_of(server, "[]\n", key, endpoint=None)["endpoint"] == CHAT


@pytest.mark.parametrize(
    ("document", "status", "param"),
    [
        ({}, 400, "input_file_id"),
        ({"input_file_id": "file-1", "endpoint": "/v1/x"}, 400, "endpoint"),
        ({"input_file_id": "file-1", "endpoint": CHAT, "endpiont": 1}, 400, "endpiont"),
        ({"input_file_id": "file-0" + "1" * 20, "endpoint": CHAT}, 404, "input_file_id"),
    ],
)
def test_a_wrong_request_is_refused_by_name(server, key, document, status, param):
    answer = server.send_json("/nightmill/v1/estimates", document, key=key)
    assert (answer.status, answer.error["param"]) == (status, param)


def test_a_file_of_another_project_is_not_found(server, key, input_file_id):
    document = {"input_file_id": input_file_id, "endpoint": CHAT}
    assert server.send_json("/nightmill/v1/estimates", document, key=key).status == 200
    other = server.new_key("another-project")
    assert server.send_json("/nightmill/v1/estimates", document, key=other).status == 404


def test_an_estimate_that_waits_too_long_for_its_turn_ends_with_503(server, key, monkeypatch, input_file_id):
    monkeypatch.setattr("nightmill.api.estimates.DEADLINE_S", 0.2)

    class NeverFree:
        async def __aenter__(self):
            await asyncio.Event().wait()

        async def __aexit__(self, *_):
            return

    monkeypatch.setattr("nightmill.api.estimates.turns_of", lambda _: NeverFree())
    document = {"input_file_id": input_file_id, "endpoint": CHAT}
    answer = server.send_json("/nightmill/v1/estimates", document, key=key)
    assert (answer.status, "longer than 0.2 seconds" in answer.error["message"]) == (503, True)
