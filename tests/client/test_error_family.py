"""One family of errors: what the server refuses is nightmill's error and the package's."""

import asyncio
import json
import socket

import openai
import pytest

from nightmill import errors
from nightmill.client import ApiKeyAuth, AsyncBatchApi, Client
from nightmill.client.error_family import AsyncServer


def refusal(message: str) -> bytes:
    content = {"message": message, "type": "invalid_request_error", "param": "after", "code": "wrong"}
    return json.dumps({"error": content}).encode()


STOP = {"x-should-retry": "false"}
PAIRS = [
    (400, {}, errors.RequestError, openai.BadRequestError),
    (401, {}, errors.AuthenticationError, openai.AuthenticationError),
    (403, {}, errors.RequestError, openai.PermissionDeniedError),
    (404, {}, errors.NotFoundError, openai.NotFoundError),
    (409, STOP, errors.ConflictError, openai.ConflictError),
    (413, {}, errors.TooLargeError, openai.APIStatusError),
    (422, {}, errors.RequestError, openai.UnprocessableEntityError),
    (429, STOP, errors.QuotaError, openai.RateLimitError),
    (500, STOP, errors.UnavailableError, openai.InternalServerError),
    (503, STOP, errors.UnavailableError, openai.InternalServerError),
    (507, STOP, errors.StorageFullError, openai.InternalServerError),
]


@pytest.mark.parametrize(("status", "headers", "ours", "theirs"), PAIRS)
def test_an_error_of_the_server_is_of_both_families(server, client, status, headers, ours, theirs):
    server.answer = lambda _: (status, refusal("No."), headers)
    with pytest.raises(ours) as raised:
        client.api.retrieve_batch("batch_1")
    error = raised.value
    assert isinstance(error, theirs)
    assert isinstance(error, errors.NightmillError)
    assert (error.status_code, error.code, error.param) == (status, "wrong", "after")
    assert str(error).startswith("No")


def test_a_rate_that_ends_is_not_a_quota(server, client):
    server.answer = lambda _: (429, refusal("Slower."), {"retry-after-ms": "1", "retry-after": "7"})
    with pytest.raises(errors.TooManyError) as raised:
        client.api.retrieve_batch("batch_1")
    assert raised.value.headers["retry-after"] == "7"


def test_the_wait_that_a_server_asks_for_is_kept(server, client):
    server.answer = lambda _: (503, refusal("Later."), STOP | {"retry-after": "9"})
    with pytest.raises(errors.UnavailableError) as raised:
        client.api.retrieve_batch("batch_1")
    assert raised.value.retry_after_s == 9


def test_a_refused_key_says_where_to_give_one(server, client):
    server.answer = lambda _: (401, refusal("Incorrect API key."), {})
    with pytest.raises(errors.AuthenticationError, match="Incorrect API key; pass api_key="):
        client.api.retrieve_batch("batch_1")


def test_the_end_of_a_base_url_is_named_once(server):
    said = "Invalid URL (GET /batches/batch_1). The base URL must end in /v1"
    server.answer = lambda _: (404, refusal(f"{said}."), {})
    with Client(server.url.removesuffix("/v1")) as client, pytest.raises(errors.NotFoundError) as raised:
        client.api.retrieve_batch("batch_1")
    assert str(raised.value) == f"{said}; check base_url, or OPENAI_BASE_URL"


@pytest.fixture
def unused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


def test_a_server_that_is_away_is_named(unused_url):
    with Client(unused_url) as client, pytest.raises(errors.UnavailableError) as raised:
        client.openai.with_options(max_retries=0).batches.retrieve("batch_1")
    assert isinstance(raised.value, openai.APIConnectionError)
    assert str(raised.value).startswith(f"no server could be reached at {unused_url.removesuffix('/v1')}")


async def test_the_errors_of_the_async_client_are_the_same(server, unused_url):
    server.answer = lambda _: (404, refusal("No batch."), {})
    async with AsyncBatchApi(server.url, api_key="sk") as api:
        with pytest.raises(errors.NotFoundError, match="No batch"):
            await api.retrieve_batch("batch_1")
    async with AsyncServer(base_url=unused_url, api_key="sk", max_retries=0) as away:
        with pytest.raises(errors.UnavailableError, match="no server could be reached"):
            await asyncio.wait_for(away.batches.retrieve("batch_1"), 60)


def test_an_answer_that_is_not_of_the_api_names_the_address(server):
    server.answer = lambda _: (404, b"<h1>Not Found</h1>", {"content-type": "text/html"})
    with (
        Client(server.url.removesuffix("/v1")) as client,
        pytest.raises(errors.NotFoundError, match=r"404 to /batches/batch_1; .*usually ends in /v1"),
    ):
        client.api.retrieve_batch("batch_1")


def test_a_base_url_without_v1_is_named_where_nightmill_answers(server):
    server.answer = lambda _: (404, refusal("Invalid URL (GET /batches)"), {})
    with (
        Client(server.url.removesuffix("/v1")) as client,
        pytest.raises(errors.NotFoundError, match=r"^Invalid URL .*; check base_url.*usually ends in /v1$"),
    ):
        client.api.list_batches()


async def test_a_page_in_the_place_of_the_api_is_an_error(server):
    server.answer = lambda _: (200, b"<h1>Welcome</h1>", {"content-type": "text/html"})
    with Client(server.url) as client, pytest.raises(errors.RequestError, match="is not OpenAI's API"):
        client.api.retrieve_batch("batch_1")
    async with AsyncBatchApi(server.url) as api:
        with pytest.raises(errors.RequestError, match="is not OpenAI's API"):
            await api.retrieve_batch("batch_1")


def test_the_key_is_sent(server, batch_json):
    server.answer = lambda _: (200, batch_json(), {})
    with Client(server.url, api_key="sk-mine") as client:
        client.api.retrieve_batch("batch_1")
    assert server.asked[0].headers["authorization"] == "Bearer sk-mine"


def test_two_keys_are_refused(server):
    with pytest.raises(errors.RequestError, match="not as both"):
        Client(server.url, ApiKeyAuth("sk-a"), api_key="sk-b")
