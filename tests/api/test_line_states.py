"""Where a line is when no worker says so: before a lease, while its worker is silent, and in the parts."""

import json

import pytest

from nightmill.ids import WorkerId
from nightmill.store import LineReport
from tests.api.followed import SETTINGS, FollowedBatch

QUICK = {"worker": {**SETTINGS["worker"], "beat_s": 0.01}}


@pytest.fixture
def server(serve):
    """A server without workers, which waits only a moment for a report."""
    return serve(settings=QUICK)


def line_of(batch, **named):
    query = "&".join(f"{name}={value}" for name, value in named.items())
    return batch.server.send("GET", f"/nightmill/v1/batches/{batch.id}/lines?{query}").json()


def test_a_line_that_no_worker_has_leased_waits(server):
    batch = FollowedBatch.of(server, 4)
    batch.lease()
    found = line_of(batch, custom_id="line-3")
    assert (found["state"], found["line"]) == ("waiting", 4)
    assert found["reason"] == "No worker has leased the line yet."


def test_a_silent_worker_leaves_the_state_leased(server):
    batch = FollowedBatch.of(server, 3)
    batch.lease()
    found = line_of(batch, line=2)
    assert (found["state"], found["upstream"]) == ("leased", None)
    assert "did not report in time" in found["reason"]


def test_the_report_of_an_earlier_lease_or_of_an_earlier_time_says_nothing(server):
    batch = FollowedBatch.of(server, 3)
    token = batch.lease().lease.token
    document = json.dumps({"in_flight": [[0, "box", 1.0]], "retries": []})
    put = server.context.store.line_reports.put
    server.do(put([LineReport(batch.id, 0, token, document)]))
    assert line_of(batch, line=1)["state"] == "leased"


def test_an_answer_in_the_parts_of_a_running_or_released_segment_counts(server):
    batch = FollowedBatch.of(server, 3)
    holder = batch.lease()
    batch.answer(holder, 0, failed=[1])
    assert line_of(batch, custom_id="line-0")["state"] == "answered"
    failed = line_of(batch, custom_id="line-1")
    assert (failed["state"], failed["code"]) == ("failed", "too_long")
    assert line_of(batch, custom_id="line-2")["state"] == "leased"
    server.do(server.context.store.leases.release_of_worker(WorkerId("worker")))
    assert line_of(batch, custom_id="line-0")["state"] == "answered"
    assert line_of(batch, custom_id="line-2")["state"] == "waiting"


def test_a_line_of_another_project_is_not_found(server):
    batch = FollowedBatch.of(server, 1)
    key = server.new_key("other")
    answer = server.send("GET", f"/nightmill/v1/batches/{batch.id}/lines?line=1", key=key)
    assert answer.status == 404
