"""The cheap request."""

import json

import pytest

from nightmill.core.probe import probe_body


@pytest.mark.parametrize(
    ("endpoint", "field", "tokens"),
    [
        ("/v1/chat/completions", "max_tokens", 1),
        ("/v1/completions", "max_tokens", 1),
        ("/v1/responses", "max_output_tokens", 16),
    ],
)
def test_the_cheap_request_limits_what_is_generated(endpoint: str, field: str, tokens: int):
    body = json.loads(probe_body(endpoint, "m") or b"")
    assert (body["model"], body[field]) == ("m", tokens)


@pytest.mark.parametrize("endpoint", ["/v1/embeddings", "/v1/moderations"])
def test_an_endpoint_without_generation_gets_a_short_input(endpoint: str):
    assert json.loads(probe_body(endpoint, "m") or b"") == {"model": "m", "input": "Hi"}


def test_a_request_for_no_model_names_none():
    assert "model" not in json.loads(probe_body("/v1/embeddings", None) or b"")


@pytest.mark.parametrize("endpoint", ["/v1/images/generations", "/v1/videos"])
def test_there_is_no_cheap_request_where_none_is_cheap(endpoint: str):
    assert probe_body(endpoint, "m") is None
