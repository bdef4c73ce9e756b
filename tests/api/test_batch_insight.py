"""What limits a batch, its forecast and its history under `/nightmill/v1/batches`."""

import time
from dataclasses import replace

import msgspec
import pytest

from nightmill.core.batch import Batch, Event, Status, Tally, Usage
from nightmill.core.history import EventKind
from nightmill.core.segment import Segment, SegmentReport
from nightmill.core.upstream_report import BatchLines, ModelReport, UpstreamReport
from nightmill.ids import BatchId, FileId, ProjectId, WorkerId
from tests.api.conftest import serving
from tests.api.test_batches import create

WORKER = WorkerId("worker-1")
BATCH = BatchId("batch_" + "1" * 32)


def running_batch(server, *, answered: int = 200) -> str:
    """A batch that a worker sends to the upstream `gpu`: 2 lines a second, 4 in flight."""
    store, now = server.context.store, time.time()
    started = int(now) - answered // 2
    new = Batch(
        id=BATCH,
        project_id=ProjectId("default"),
        endpoint="/v1/chat/completions",
        input_file_id=FileId("file-1"),
        input_blob_key="blob",
        completion_window="24h",
        created_at=started,
        expires_at=started + 86_400,
    )
    server.do(store.batches.create(new))
    lease = server.do(store.batch_leases.lease((Status.VALIDATING,), WORKER, ttl_s=300.0))
    after = replace(lease.batch.after(Event.ACCEPTED, now=started), model="m", total=5 * answered)
    segments = [Segment(new.id, 0, 0, after.total)]
    server.do(store.batch_leases.accept(lease, after, index_blob_key="index", segments=segments))
    (held,) = server.do(store.segments.lease(WORKER, limit=1, ttl_s=300.0))
    usage = Usage(input_tokens=2 * answered, output_tokens=answered, total_tokens=3 * answered)
    tally = Tally(completed=answered, usage=usage)
    server.do(store.segments.renew(WORKER, [SegmentReport(new.id, 0, held.token, tally)], ttl_s=300.0))
    for at in range(started, int(now), 5):
        past = replace(after, tally=Tally(completed=2 * (at - started)))
        server.do(store.batch_watch.add_samples([(past, 4)], at=at))
    report(server)
    return new.id


def report(server, **fields) -> None:
    """What the worker says of `gpu`."""
    entry = ModelReport("m", limit=4, rule="", in_flight=4)
    found = UpstreamReport(
        "gpu", time.time(), per_model=(entry,), batches=(BatchLines(BATCH, 4, waiting=2),), **fields
    )
    document = msgspec.json.encode(found).decode()
    server.do(server.context.store.upstreams.report(WORKER, {"gpu": document}))


@pytest.fixture
def other_key(server) -> str:
    return server.new_key("another-project")


def own(server, key, batch_id):
    answer = server.send("GET", f"/nightmill/v1/batches/{batch_id}", key=key)
    assert answer.status == 200
    return answer.json()


def events(server, key, batch_id, query=""):
    return server.send("GET", f"/nightmill/v1/batches/{batch_id}/events{query}", key=key)


def cancel(server, project, batch_id):
    store = server.context.store
    for event in (Event.CANCEL_REQUESTED, Event.CANCELLED):
        stored = server.do(store.batches.get(ProjectId(project), BatchId(batch_id)))
        assert server.do(store.batches.move(stored.after(event, now=0), expected=stored.status))


def test_a_batch_that_waits_says_why_and_one_that_has_ended_does_not(
    server, client, key, project, input_file_id
):
    batch = create(client, input_file_id)
    found = own(server, key, batch.id)
    assert found["why"] == {
        "code": "waits_for_intake",
        "sentence": "The input file waits to be validated.",
        "upstream": None,
        "until": None,
        "since": None,
    }
    assert found["forecast"]["ends_at"] is None
    listed = server.send("GET", "/nightmill/v1/batches?limit=100", key=key).json()["data"]
    assert {row["why"]["code"] for row in listed if row["id"] == batch.id} == {"waits_for_intake"}
    cancel(server, project, batch.id)
    ended = own(server, key, batch.id)
    assert (ended["why"], ended["forecast"]) == (None, None)


def test_the_published_batch_gains_no_field(server, client, key, input_file_id):
    batch = create(client, input_file_id)
    assert {"why", "forecast"}.isdisjoint(client.batches.retrieve(batch.id).to_dict())


def test_the_history_is_read_in_pages(server, client, key, project, input_file_id):
    batch = create(client, input_file_id)
    detail = {"code": "starting", "sentence": "It starts.", "upstream": None}
    for _ in range(3):
        server.do(server.context.store.batch_events.add(BatchId(batch.id), EventKind.LIMITED, detail))
    first = events(server, key, batch.id, "?limit=2").json()
    rest = events(server, key, batch.id, f"?limit=2&after={first['last_id']}").json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [row["kind"] for row in (*first["data"], *rest["data"])] == ["created", *3 * ["limited"]]
    assert first["data"][0]["actor"] is not None
    assert rest["data"][-1]["detail"] == detail
    assert rest["data"][-1]["actor"] is None
    assert events(server, key, batch.id, f"?after={rest['last_id']}").json()["data"] == []


@pytest.mark.parametrize("query", ["?after=-1", "?after=x", "?limit=0", "?limit=1001"])
def test_a_wrong_page_is_refused(server, client, key, input_file_id, query):
    batch = create(client, input_file_id)
    assert events(server, key, batch.id, query).status == 400


def test_the_history_of_a_foreign_batch_is_not_found(server, client, other_key, input_file_id):
    batch = create(client, input_file_id)
    assert events(server, other_key, batch.id).status == 404
    assert events(server, other_key, "batch_unknown").status == 404


def test_a_running_batch_has_limit_forecast_tokens_and_cost(tmp_path):
    settings = {
        "upstreams": [{"name": "gpu", "url": "http://127.0.0.1:9/v1", "models": ["m"]}],
        "prices": {"m": {"input": 1.0, "output": 2.0}},
    }
    with serving(tmp_path, settings=settings) as server:
        batch_id = running_batch(server)
        found = own(server, None, batch_id)
        assert found["why"]["code"] == "concurrency_limit"
        assert found["why"]["sentence"] == "4 of 4 in flight on gpu; the settings fix this limit."
        assert found["why"]["upstream"] == "gpu"
        expected = found["forecast"]
        assert (expected["in_flight"], expected["retrying"]) == (4, 2)
        assert expected["lines_per_s"] == pytest.approx(2.0, rel=0.1)
        assert expected["earliest_at"] <= expected["ends_at"] <= expected["latest_at"]
        assert expected["deadline_odds"] == 1.0
        assert expected["tokens_to_come"] == 2_400
        assert expected["cost"] == found["cost"] == pytest.approx(0.0008)
        assert expected["cost_to_come"] == pytest.approx(0.0032)
