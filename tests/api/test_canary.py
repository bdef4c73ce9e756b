"""The canary of a batch over HTTP."""

from dataclasses import replace

from nightmill.core.batch import Event, Status
from tests.api.test_batches import create
from tests.store_doubles import even_segments


def canary_of(server, key, batch_id):
    return server.send("GET", f"/nightmill/v1/batches/{batch_id}/canary", key=key)


def test_a_canary_is_shown_from_its_creation_to_its_decision(server, client, key, input_file_id):
    batch = create(client, input_file_id, extra_body={"nightmill": {"canary": 2, "canary_max_failed": 0.5}})
    store = server.context.store
    found = canary_of(server, key, batch.id).json()
    assert (found["state"], found["lines"], found["completed"]) == ("running", 2, None)

    async def accept():
        lease = None
        while lease is None or lease.batch.id != batch.id:  # other tests leave batches behind
            lease = await store.batch_leases.lease((Status.VALIDATING,), "intake_1", ttl_s=60)
        after = replace(lease.batch.after(Event.ACCEPTED, now=1), total=4, canary_segments=1)
        segments = even_segments(lease.batch.id, total=4, lines_per_segment=2)
        assert await store.batch_leases.accept(lease, after, index_blob_key="lines/1", segments=segments)

    server.do(accept())
    assert canary_of(server, key, batch.id).json() == {
        "id": batch.id,
        "status": "in_progress",
        "state": "running",
        "lines": 2,
        "completed": 0,
        "failed": 0,
        "max_failed": 0.5,
        "stop_reason": None,
    }

    async def stop():
        (entry,) = [it for it in await store.canaries.running() if it[0].id == batch.id]
        canary = replace(entry[1], failed=2)
        after = entry[0].after(Event.CANCEL_REQUESTED, now=1)
        assert await store.canaries.stop(replace(after, stop_reason=canary.stop_reason), canary)

    server.do(stop())
    found = canary_of(server, key, batch.id).json()
    assert (found["status"], found["state"], found["failed"]) == ("cancelling", "stopped", 2)
    assert found["stop_reason"] == "2 of its first 2 lines failed, and 50% may."


def test_a_batch_without_a_canary_and_a_foreign_batch_are_not_found(server, client, key, input_file_id):
    batch = create(client, input_file_id)
    answer = canary_of(server, key, batch.id)
    assert (answer.status, "without 'canary'" in answer.error["message"]) == (404, True)
    held = create(client, input_file_id, extra_body={"nightmill": {"canary": 2}})
    assert canary_of(server, server.new_key("project-beside"), held.id).status == 404
