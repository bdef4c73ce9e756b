"""GET /v1/models: the upstream's own list in OpenAI's shape."""

import json
import time

import openai
import pytest

from nightmill.upstream.model_list import ListedModel, parse_models

OLLAMA = {
    "object": "list",
    "data": [
        {"id": "qwen3:4b", "object": "model", "created": 1_700_000_000, "owned_by": "library"},
        {"id": "org/model-1", "permission": [], "max_model_len": 4_096},
    ],
}


class Upstream:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self):
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def answer_of(document):
    return json.dumps(document).encode()


def test_the_upstreams_models_are_listed_in_the_published_shape(serve):
    server = serve(upstream_models=Upstream(answer_of(OLLAMA)))
    assert server.send("GET", "/v1/models").json() == {
        "object": "list",
        "data": [
            {"id": "qwen3:4b", "object": "model", "created": 1_700_000_000, "owned_by": "library"},
            {"id": "org/model-1", "object": "model", "created": 0, "owned_by": "upstream"},
        ],
    }
    client = server.client()
    assert [model.id for model in client.models.list()] == ["qwen3:4b", "org/model-1"]
    assert client.models.retrieve("org/model-1").owned_by == "upstream"
    assert client.models.retrieve("qwen3:4b").created == 1_700_000_000


def test_an_unknown_model_is_not_found(serve):
    client = serve(upstream_models=Upstream(answer_of(OLLAMA))).client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/none")
    assert caught.value.message == "Error code: 404 - The model 'org/none' does not exist"
    assert caught.value.code == "model_not_found"


def test_the_list_of_models_is_cached(serve):
    now = [time.time()]
    upstream = Upstream(answer_of(OLLAMA))
    server = serve(upstream_models=upstream, clock=lambda: now[0])
    for _ in range(5):
        server.send("GET", "/v1/models")
    assert upstream.asked == 1
    now[0] += 6
    server.send("GET", "/v1/models")
    assert upstream.asked == 2


@pytest.mark.parametrize(
    "answer", [None, b"", b"<html>", b"[]", b'{"data": {}}', b'{"error": {}}', b"\xff", b"[" * 9_999]
)
def test_an_upstream_without_a_list_is_a_503(serve, answer):
    now = [time.time()]
    server = serve(upstream_models=Upstream(answer, answer_of(OLLAMA)), clock=lambda: now[0])
    first = server.send("GET", "/v1/models")
    assert first.status == 503
    assert first.error["type"] == "server_error"
    assert int(first.headers["retry-after"]) > 0
    now[0] += 2
    assert server.send("GET", "/v1/models").status == 200


def test_models_named_in_settings_are_the_list(serve):
    upstream = Upstream(None)
    server = serve(settings={"upstream": {"models": ["a", "b/c"]}}, upstream_models=upstream)
    assert [model.id for model in server.client().models.list()] == ["a", "b/c"]
    assert upstream.asked == 0


def test_an_upstream_that_is_sent_every_model_lists_its_own(serve):
    upstream = Upstream(answer_of(OLLAMA))
    server = serve(settings={"upstream": {"models": ["*"]}}, upstream_models=upstream)
    assert [model.id for model in server.client().models.list()] == ["qwen3:4b", "org/model-1"]


def test_entries_that_are_not_models_are_omitted():
    entries = [1, None, {}, {"id": 5}, {"id": ""}, {"id": "m", "created": 1.5, "owned_by": None}]
    assert parse_models(answer_of({"data": entries})) == [ListedModel("m")]
