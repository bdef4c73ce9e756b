"""Steering from Python, sync and async, against a server that records what it is asked."""

import json

from nightmill.client import AsyncBatchApi, BatchApi, BatchSelection

ROOT = "/nightmill/v1/batches"


def page(ids: list[str], *, matched: int, has_more: bool = False, **counts: int) -> bytes:
    names = {"changed": len(ids), "unchanged": 0, "refused": 0, "not_found": 0} | counts
    rows = [{"id": batch_id, "result": "changed"} for batch_id in ids]
    more = {"data": rows, "last_id": ids[-1] if ids else None, "has_more": has_more}
    return json.dumps({"matched": matched, "dry_run": False, **names, **more}).encode()


def test_each_verb_of_one_batch_is_a_request(server):
    server.answer = lambda _: (200, b'{"id": "batch_1"}', {})
    with BatchApi(server.url) as api:
        for call in (api.steering.get, api.steering.pause, api.steering.resume):
            assert call("batch_1") == {"id": "batch_1"}
        api.steering.change("batch_1", priority=2, deadline_in_s=60, concurrency=None)
    assert [(asked.method, asked.path) for asked in server.asked] == [
        ("GET", f"{ROOT}/batch_1"),
        ("POST", f"{ROOT}/batch_1/pause"),
        ("POST", f"{ROOT}/batch_1/resume"),
        ("POST", f"{ROOT}/batch_1"),
    ]
    assert server.asked[-1].json == {"priority": 2, "deadline_in_s": 60, "concurrency": None}


def test_a_selection_is_listed_and_acted_on_to_its_last_page(server):
    answers = [page(["b", "a"], matched=3, has_more=True), page(["c"], matched=1)]
    server.answer = lambda _: (200, answers.pop(0), {})
    chosen = BatchSelection(status=["in_progress"], metadata={"night": "1"}, older_than_s=60, paused=False)
    with BatchApi(server.url) as api:
        done = api.steering.act("cancel", chosen)
        assert (done["matched"], done["changed"], done["has_more"]) == (3, 3, False)
        assert [row["id"] for row in done["data"]] == ["b", "a", "c"]
        answers.append(b"{}")
        api.steering.list(chosen, after="b")
    first, second, listed = server.asked
    wire = {"status": ["in_progress"], "metadata": {"night": "1"}, "older_than_s": 60, "paused": False}
    assert first.json == {"action": "cancel", "dry_run": False, "filter": wire}
    assert second.json == {**first.json, "after": "a"}
    assert "status=in_progress" in listed.path
    assert "metadata=night%3D1" in listed.path
    assert "paused=false" in listed.path
    assert "after=b" in listed.path


def test_many_ids_are_sent_in_several_requests(server):
    server.answer = lambda asked: (200, page(asked.json["ids"], matched=len(asked.json["ids"])), {})
    ids = [f"batch_{number}" for number in range(2_500)]
    with BatchApi(server.url) as api:
        done = api.steering.act("limit", ids, dry_run=True, concurrency=None)
    assert (done["matched"], done["changed"]) == (2_500, 2_500)
    assert [len(asked.json["ids"]) for asked in server.asked] == [1_000, 1_000, 500]
    assert server.asked[0].json["concurrency"] is None


async def test_the_async_client_behaves_the_same(server):
    answers = [page(["b"], matched=2, has_more=True), page(["a"], matched=1)]
    server.answer = lambda _: (200, answers.pop(0) if answers else b'{"id": "batch_1"}', {})
    async with AsyncBatchApi(server.url) as api:
        done = await api.steering.act("prioritize", BatchSelection(model="m"), priority=3)
        assert (done["matched"], done["changed"]) == (2, 2)
        assert await api.steering.get("batch_1") == {"id": "batch_1"}
        assert await api.steering.pause("batch_1") == {"id": "batch_1"}
        assert await api.steering.resume("batch_1") == {"id": "batch_1"}
        assert await api.steering.change("batch_1", concurrency=4) == {"id": "batch_1"}
        assert await api.steering.list() == {"id": "batch_1"}
    assert server.asked[0].json == {
        "action": "prioritize",
        "dry_run": False,
        "priority": 3,
        "filter": {"model": "m"},
    }
    assert server.asked[1].json["after"] == "b"
