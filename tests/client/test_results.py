"""Following a batch from Python: each line once, whatever the connection does."""

import asyncio
import json
from urllib.parse import parse_qs, urlsplit

import openai
import pytest

from nightmill.client import ApiKeyAuth, AsyncBatchApi, Client, WantedResults, results
from nightmill.errors import RequestError, UnavailableError

LINE = b'{"id": "batch_req_1", "custom_id": "line-%d", "big": 1.0}'


def document(number):
    return b'{"cursor": "c%d", "outcome": "completed", "line": %b}\n' % (number, LINE % number)


END = b'{"cursor":"c9","end":"completed"}\n'


def query_of(asked):
    return parse_qs(urlsplit(asked.path).query)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(results, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture(params=["sync", "async"])
def follow(request, server):
    """All lines that a follower is given, from `Client` and from `AsyncBatchApi`."""

    def sync(**wanted):
        patience_s = wanted.pop("patience_s", 20.0)
        with Client(server.url, ApiKeyAuth("sk-test")) as client:
            return list(client.follow("batch_1", patience_s=patience_s, **wanted))

    async def gathered(**wanted):
        patience_s = wanted.pop("patience_s", 20.0)
        async with AsyncBatchApi(server.url, ApiKeyAuth("sk-test")) as api:
            return [it async for it in api.follow("batch_1", WantedResults(**wanted), patience_s=patience_s)]

    return sync if request.param == "sync" else lambda **wanted: asyncio.run(gathered(**wanted))


def test_lines_come_with_their_bytes_until_the_end(server, follow):
    server.answer = lambda _: (200, b"\n" + document(1) + b"\n" + document(2) + END, {})
    lines = follow()
    assert [(line.cursor, line.outcome, line.text) for line in lines] == [
        (f"c{number}", "completed", LINE % number) for number in (1, 2)
    ]
    assert lines[0].row["custom_id"] == "line-1"
    (asked,) = server.asked
    assert asked.path == "/nightmill/v1/batches/batch_1/results?follow=1"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["authorization"] == "Bearer sk-test"


def test_a_connection_that_breaks_in_a_line_is_followed_by_one_behind_the_last_whole_line(server, follow):
    def answer(asked):
        if "after" not in query_of(asked):
            body = document(1) + document(2) + document(3)[:40]
            return 200, body, {"content-length": "9999"}
        return 200, document(3) + END, {}

    server.answer = answer
    assert [line.cursor for line in follow()] == ["c1", "c2", "c3"]
    assert query_of(server.asked[1])["after"] == ["c2"]


def test_a_response_without_its_last_document_is_not_the_end(server, follow):
    server.answer = lambda asked: (200, END if "after" in query_of(asked) else document(1), {})
    assert [line.cursor for line in follow()] == ["c1"]
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_away_for_a_while_is_asked_again(server, follow, status):
    server.answer = lambda _: (200, END, {}) if len(server.asked) == 3 else (status, b"{}", {})
    assert follow(after="c7") == []
    assert [query_of(asked)["after"] for asked in server.asked] == [["c7"]] * 3


def test_a_server_that_stays_away_ends_the_follower(server, follow):
    server.answer = lambda _: (503, b"{}", {})
    with pytest.raises(UnavailableError, match="batch_1 continues"):
        follow(patience_s=0.0)


def test_a_refusal_ends_the_follower(server, follow):
    server.answer = lambda _: (404, json.dumps({"error": {"message": "no such batch"}}).encode(), {})
    with pytest.raises(openai.NotFoundError):
        follow()
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("error_type", "raised"), [("invalid_request_error", RequestError), ("server_error", UnavailableError)]
)
def test_an_error_in_the_stream_is_raised(server, follow, error_type, raised):
    error = json.dumps({"error": {"message": "the file was deleted", "type": error_type}}).encode()
    server.answer = lambda _: (200, document(1) + error + b"\n", {})
    with pytest.raises(raised, match="the file was deleted"):
        follow()


def test_another_server_is_named_as_such(server, follow):
    server.answer = lambda _: (200, b"<html>\n", {})
    with pytest.raises(UnavailableError, match="is it nightmill"):
        follow()


def test_filters_are_sent(server, follow):
    server.answer = lambda _: (200, END, {})
    follow(outcome="failed", codes=["429", "a&b"], custom_ids=["ä"])
    assert query_of(server.asked[0]) == {
        "follow": ["1"],
        "outcome": ["failed"],
        "code": ["429", "a&b"],
        "custom_id": ["ä"],
    }


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_page_has_its_lines_and_the_cursor_behind_them(server, client, kind):
    page = (
        b'{"object":"list","status":"in_progress","message":null,"cursor":"c2","has_more":true,"data":[%b]}'
    )
    server.answer = lambda _: (200, page % (document(1) + b"," + document(2)), {})
    wanted = WantedResults(after="c0")

    async def read():
        async with AsyncBatchApi(server.url) as api:
            return await api.results("batch_1", wanted, limit=2)

    found = client.api.results("batch_1", wanted, limit=2) if kind == "sync" else asyncio.run(read())
    assert [line.text for line in found.lines] == [LINE % 1, LINE % 2]
    assert (found.cursor, found.has_more, found.status, found.message) == ("c2", True, "in_progress", None)
    assert query_of(server.asked[0]) == {"after": ["c0"], "limit": ["2"]}
