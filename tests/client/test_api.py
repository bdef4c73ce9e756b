"""The four published batch operations as HTTP requests."""

import json

import openai
import pytest

from nightmill.client import (
    ApiKeyAuth,
    AsyncBatchApi,
    Batch,
    BatchApi,
    BatchOptions,
    BatchPriority,
    CreateBatchRequest,
    OnInvalid,
    OutputExpiresAfter,
)

REQUEST = CreateBatchRequest(
    input_file_id="file-1",
    endpoint="/v1/chat/completions",
    metadata={"night": "1"},
    output_expires_after=OutputExpiresAfter(seconds=3600),
)


def test_create_sends_the_published_fields_and_returns_a_batch(server, batch_json):
    server.answer = lambda _: (200, batch_json(), {})
    with BatchApi(server.url, ApiKeyAuth("sk-mine")) as api:
        batch = api.create_batch(REQUEST)
    assert isinstance(batch, Batch)
    assert batch.id == "batch_1"
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/batches")
    assert asked.headers["authorization"] == "Bearer sk-mine"
    assert asked.json == {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"night": "1"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    }


def test_omitted_arguments_are_not_sent(server, batch_json):
    server.answer = lambda _: (200, batch_json(), {})
    with BatchApi(server.url) as api:
        api.create_batch(CreateBatchRequest(input_file_id="file-1", endpoint="/v1/embeddings"))
    assert set(server.asked[0].json) == {"input_file_id", "endpoint", "completion_window"}


def test_a_retried_create_sends_the_same_idempotency_key(server, batch_json):
    server.answer = lambda _: (
        (500, b"{}", {"retry-after-ms": "1"}) if len(server.asked) == 1 else (200, batch_json(), {})
    )
    with BatchApi(server.url) as api:
        api.create_batch(REQUEST)
        api.create_batch(REQUEST)
    first, repeated, another = [asked.headers["idempotency-key"] for asked in server.asked]
    assert first == repeated != another


def test_retrieve_and_cancel_name_the_batch_in_the_path(server, batch_json):
    server.answer = lambda _: (200, batch_json(status="cancelling"), {})
    with BatchApi(server.url) as api:
        assert api.retrieve_batch("batch_1").status == "cancelling"
        assert api.cancel_batch("batch_1").status == "cancelling"
    paths = [(asked.method, asked.path) for asked in server.asked]
    assert paths == [("GET", "/v1/batches/batch_1"), ("POST", "/v1/batches/batch_1/cancel")]


def test_a_priority_is_sent_under_the_key_of_nightmill(server, batch_json):
    server.answer = lambda _: (200, batch_json(), {})
    with BatchApi(server.url) as api:
        api.create_batch(CreateBatchRequest(input_file_id="file-1", endpoint="/v1/embeddings", priority=-2))
    assert server.asked[0].json["nightmill"] == {"priority": -2}


def test_only_the_options_that_differ_from_the_defaults_are_sent(server, batch_json):
    server.answer = lambda _: (200, batch_json(), {})
    options = BatchOptions(canary=20, on_invalid=OnInvalid.SKIP, max_failures=0.05)
    with BatchApi(server.url) as api:
        for given in (options, BatchOptions()):
            request = CreateBatchRequest(input_file_id="file-1", endpoint="/v1/embeddings", options=given)
            api.create_batch(request)
    assert server.asked[0].json["nightmill"] == {"canary": 20, "on_invalid": "skip", "max_failures": 0.05}
    assert "nightmill" not in server.asked[1].json


def test_the_priority_of_a_batch_is_read_and_changed(server):
    server.answer = lambda _: (200, b'{"id": "batch_1", "status": "in_progress", "priority": 4}', {})
    with BatchApi(server.url) as api:
        expected = BatchPriority(id="batch_1", status="in_progress", priority=4)
        assert api.retrieve_priority("batch_1") == api.set_priority("batch_1", 4) == expected
    got, posted = server.asked
    assert (got.method, got.path) == ("GET", "/nightmill/v1/batches/batch_1")
    assert (posted.method, posted.path) == ("POST", "/nightmill/v1/batches/batch_1")
    assert posted.json == {"priority": 4}


def list_json(*batches: bytes, **changes: object) -> bytes:
    data = [json.loads(batch) for batch in batches]
    page = {"object": "list", "data": data, "first_id": None, "last_id": None, "has_more": False}
    return json.dumps(page | changes).encode()


def test_a_list_is_one_typed_page(server, batch_json):
    page = list_json(
        batch_json(id="batch_2"), batch_json(), first_id="batch_2", last_id="batch_1", has_more=True
    )
    server.answer = lambda _: (200, page, {})
    with BatchApi(server.url) as api:
        listed = api.list_batches(after="batch_3", limit=2)
    assert server.asked[0].path == "/v1/batches?after=batch_3&limit=2"
    assert [batch.id for batch in listed.data] == ["batch_2", "batch_1"]
    assert (listed.object, listed.first_id, listed.last_id, listed.has_more) == (
        "list",
        "batch_2",
        "batch_1",
        True,
    )


def test_an_empty_list_has_no_first_or_last_id(server):
    server.answer = lambda _: (200, list_json(), {})
    with BatchApi(server.url) as api:
        listed = api.list_batches()
    assert (listed.data, listed.first_id, listed.last_id, listed.has_more) == ((), None, None, False)
    assert server.asked[0].path == "/v1/batches?limit=20"


async def test_the_async_client_behaves_the_same(server, batch_json):
    server.answer = lambda asked: (
        (200, list_json(batch_json()), {}) if "?" in asked.path else (200, batch_json(), {})
    )
    async with AsyncBatchApi(server.url, ApiKeyAuth("sk-mine")) as api:
        assert (await api.create_batch(REQUEST)).id == "batch_1"
        assert (await api.retrieve_batch("batch_1")).id == "batch_1"
        assert (await api.cancel_batch("batch_1")).id == "batch_1"
        assert (await api.list_batches()).last_id == "batch_1"
        server.answer = lambda _: (200, b'{"id": "batch_1", "status": "validating", "priority": 1}', {})
        assert await api.set_priority("batch_1", 1) == await api.retrieve_priority("batch_1")
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer sk-mine"}
    assert server.asked[0].headers["idempotency-key"]


def test_the_environment_sets_server_and_key(server, batch_json, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    server.answer = lambda _: (200, batch_json(), {})
    with BatchApi() as api:
        api.retrieve_batch("batch_1")
    assert server.asked[0].headers["authorization"] == "Bearer sk-environment"


def test_a_base_url_without_a_scheme_is_http(server, batch_json):
    server.answer = lambda _: (200, batch_json(), {})
    client = BatchApi(server.url.removeprefix("http://"), api_key="sk-test")
    assert client.retrieve_batch("batch_1").id == "batch_1"


def test_errors_are_those_of_the_openai_package(server):
    message = {"error": {"message": "No such batch", "type": "invalid_request_error", "code": None}}
    server.answer = lambda _: (404, json.dumps(message).encode(), {})
    with BatchApi(server.url) as api, pytest.raises(openai.NotFoundError, match="No such batch"):
        api.retrieve_batch("batch_9")


def test_a_key_is_not_shown_in_the_repr():
    assert "sk-secret" not in repr(ApiKeyAuth("sk-secret"))
