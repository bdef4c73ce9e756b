"""What limits a batch, its forecast and its history from Python, sync and async."""

import json

import openai
import pytest

from nightmill.client import AsyncBatchApi, BatchApi, BatchEvent, Forecast, Why

WHY = {"code": "paused", "sentence": "It is paused.", "upstream": None, "until": None, "since": 5.0}
FORECAST = {"in_flight": 3, "lines_per_s": 2.0, "ends_at": 100, "earliest_at": 90, "latest_at": 120, "new": 1}


def event(sequence: int) -> dict:
    kind, detail = "limited", {"sentence": "It waits."}
    return {"sequence": sequence, "at": 1.0, "kind": kind, "actor": None, "detail": detail}


def own(**changes: object) -> bytes:
    return json.dumps({"id": "batch_1", "why": WHY, "forecast": FORECAST} | changes).encode()


def page(*sequences: int, has_more: bool) -> bytes:
    rows = [event(sequence) for sequence in sequences]
    return json.dumps({"data": rows, "has_more": has_more, "last_id": sequences[-1]}).encode()


def test_why_and_forecast_are_read_from_the_batch(server):
    server.answer = lambda _: (200, own(), {})
    with BatchApi(server.url) as api:
        assert api.insight.why("batch_1") == Why(code="paused", sentence="It is paused.", since=5.0)
        expected = api.insight.forecast("batch_1")
        assert api.insight.both("batch_1") == (api.insight.why("batch_1"), expected)
    assert isinstance(expected, Forecast)
    assert (expected.in_flight, expected.ends_at, expected.cost) == (3, 100, None)
    assert {asked.path for asked in server.asked} == {"/nightmill/v1/batches/batch_1"}


def test_a_batch_that_has_ended_has_neither(server):
    server.answer = lambda _: (200, own(why=None, forecast=None), {})
    with BatchApi(server.url) as api:
        assert api.insight.both("batch_1") == (None, None)


def test_the_history_is_read_to_its_last_page(server):
    pages = [page(1, 2, has_more=True), page(5, has_more=False)]
    server.answer = lambda _: (200, pages.pop(0), {})
    with BatchApi(server.url) as api:
        found = list(api.insight.events("batch_1"))
    assert [one.sequence for one in found] == [1, 2, 5]
    assert found[0] == BatchEvent(**event(1))
    assert [asked.path.partition("?after=")[2].partition("&")[0] for asked in server.asked] == ["0", "2"]


def test_another_server_has_no_why(server):
    with BatchApi(server.url) as api:
        assert api.insight.document_if_known("batch_1") is None
        with pytest.raises(openai.NotFoundError):
            api.insight.why("batch_1")


async def test_the_async_client_has_the_same_operations(server):
    answers = [own(), own(), own(), page(1, has_more=True), page(2, has_more=False)]
    server.answer = lambda _: (200, answers.pop(0), {})
    api = AsyncBatchApi(server.url)
    assert (await api.insight.why("batch_1")).code == "paused"
    assert (await api.insight.forecast("batch_1")).ends_at == 100
    assert (await api.insight.both("batch_1"))[0].since == 5.0
    assert [one.sequence async for one in api.insight.events("batch_1")] == [1, 2]
    await api.close()
