"""Batches and batch leases: pages, status changes, and which lease holder may change a batch."""

import asyncio
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import text

from nightmill.core.batch import TRANSITIONS, Event, LineError, Status
from nightmill.core.segment import Segment
from nightmill.errors import ConflictError, NotFoundError
from nightmill.ids import BatchId, FileId
from nightmill.store import Idempotency
from tests.store.conftest import stopping


async def test_a_batch_is_read_back_as_it_was_created(world, store):
    made = world.batch(metadata={"ключ": "\U0001f319", "empty": ""}, output_expires_after_s=3_600)
    assert await store.batches.create(made) == made
    assert await store.batches.get(world.project, made.id) == made


@pytest.mark.parametrize("metadata", [None, {}])
async def test_missing_metadata_and_empty_metadata_are_stored_differently(world, store, metadata):
    made = await store.batches.create(world.batch(metadata=metadata))
    assert (await store.batches.get(world.project, made.id)).metadata == metadata


async def test_a_batch_of_another_project_looks_unknown(world, store):
    made = await store.batches.create(world.batch())
    assert await store.batches.get(world.other_project, made.id) is None


async def test_a_repeated_create_returns_the_first_batch_in_its_present_state(world, store):
    once = Idempotency("k", "f")
    first = await store.batches.create(world.batch(), once)
    cancelling = await world.apply(store, first, Event.CANCEL_REQUESTED)
    assert await store.batches.create(world.batch(), once) == cancelling
    with pytest.raises(ConflictError):
        await store.batches.create(world.batch(), Idempotency("k", "other"))


async def test_pages_are_newest_first_and_stable_under_inserts(world, store):
    made = [await store.batches.create(world.batch()) for _ in range(5)]
    first = await store.batches.list(world.project, limit=2)
    assert first.items == (made[4], made[3])
    assert first.has_more
    await store.batches.create(world.batch())
    second = await store.batches.list(world.project, after=made[3].id, limit=3)
    assert second.items == (made[2], made[1], made[0])
    assert not second.has_more


async def test_an_unknown_cursor_is_not_found(world, store):
    foreign = await store.batches.create(world.batch(project_id=world.other_project))
    for cursor in (BatchId("batch_unknown"), foreign.id):
        with pytest.raises(NotFoundError, match=cursor):
            await store.batches.list(world.project, after=cursor)


async def test_batches_are_counted_from_a_given_time(world, store):
    since = int(world.clock()) + 10
    await store.batches.create(world.batch())
    await store.batches.create(world.batch(created_at=since))
    await store.batches.create(world.batch(created_at=since, project_id=world.other_project))
    assert await store.batches.count_since(world.project, since) == 1


async def test_ended_returns_only_the_batches_that_have_ended(world, store):
    running, ended = await world.start(store), await store.batches.create(world.batch())
    lease = await world.batch_lease(store)
    await store.batch_leases.reject(lease, lease.batch.after(Event.REJECTED, now=world.clock()))
    unknown = BatchId("batch_unknown")
    assert await store.batches.ended([running.id, ended.id, unknown]) == [ended.id]
    assert not await store.batches.ended([])


# --- the one statement that writes a status ---


@pytest.mark.parametrize(
    ("status", "event"),
    [pair for pair in product(Status, Event) if pair[1] is not Event.ACCEPTED],  # needs `accept_batch`
    ids=str,
)
async def test_a_status_changes_only_from_the_expected_status(world, store, status, event):
    """Every combination: the batch is in `status`, and the caller expects the status where `event` starts."""
    starts = [start for start, happening in TRANSITIONS if happening is event]
    made = await store.batches.create(world.batch())
    if status is not Status.VALIDATING:
        await world.accept(store, await world.batch_lease(store), total=0)
        current = await world.read_again(store, made)
        forced = replace(current, status=status)
        assert await store.batches.move(forced, expected=Status.IN_PROGRESS)
    for start in starts:
        after = replace(made, status=start).after(event, now=world.clock())
        moved = await store.batches.move(after, expected=start)
        assert moved == (start is status)
        assert (await world.read_again(store, made)).status is (after.status if moved else status)
        if moved:
            break


async def test_a_status_change_writes_the_timestamp_of_the_new_status(world, store):
    batch = await world.start(store)
    assert batch.in_progress_at == int(world.clock())
    world.clock.step(5)
    cancelling = await world.apply(store, batch, Event.CANCEL_REQUESTED)
    assert cancelling.cancelling_at == int(world.clock())
    assert cancelling.in_progress_at == batch.in_progress_at


async def test_of_two_concurrent_status_changes_one_succeeds(world, store, other_store):
    batch = await world.start(store)
    cancelling = batch.after(Event.CANCEL_REQUESTED, now=world.clock())
    finalizing = batch.after(Event.LAPSED, now=world.clock())
    moved = await asyncio.gather(
        store.batches.move(cancelling, expected=batch.status),
        other_store.batches.move(finalizing, expected=batch.status),
    )
    assert sorted(moved) == [False, True]


async def test_a_batch_is_overdue_from_its_deadline(world, store):
    batch = await world.start(store)
    world.clock.now = batch.expires_at - 0.5
    assert await store.batches.overdue() == []
    world.clock.now = batch.expires_at
    assert await store.batches.overdue() == [batch]
    await world.apply(store, batch, Event.LAPSED)
    assert await store.batches.overdue() == []


async def test_a_batch_is_settled_when_its_last_segment_is_done(world, store):
    batch = await world.start(store)
    first, second = await world.lease(store)
    await world.complete(store, [first])
    assert await store.batches.settled() == []
    await world.complete(store, [second])
    settled = await store.batches.settled()
    assert [it.id for it in settled] == [batch.id]
    assert settled[0].tally == world.tally(10)
    await world.apply(store, batch, Event.SETTLED)
    assert await store.batches.settled() == []


async def test_the_backlog_counts_waiting_and_leased_segments(world, store):
    await store.batches.create(world.batch())
    await world.apply(store, await store.batches.create(world.batch()), Event.CANCEL_REQUESTED)
    empty = await store.batches.backlog()
    assert empty.batches == {Status.VALIDATING: 1, Status.CANCELLING: 1}
    assert await world.accept(store, await world.batch_lease(store), total=15)
    [lease] = await world.lease(store, limit=1)
    backlog = await store.batches.backlog()
    assert backlog.batches == {Status.IN_PROGRESS: 1, Status.CANCELLING: 1}
    assert (backlog.waiting_segments, backlog.leased_segments) == (2, 1)
    await world.complete(store, [lease])
    await world.lease(store, limit=1)
    backlog = await store.batches.backlog()
    assert (backlog.waiting_segments, backlog.leased_segments) == (1, 1)
    batch = await store.batches.get(world.project, lease.segment.batch_id)
    await world.apply(store, batch, Event.CANCEL_REQUESTED)
    backlog = await store.batches.backlog()
    assert (backlog.waiting_segments, backlog.leased_segments) == (0, 1)


async def test_the_chart_scales_workers_by_that_backlog(world, store):
    template = Path(__file__).parents[2] / "deploy/helm/nightmill/templates/scaling.yaml"
    found = re.search(r"query: >-\n(.*?)\n +targetQueryValue", template.read_text(), re.DOTALL)
    query = text(" ".join(found[1].split()))
    await store.batches.create(world.batch())
    assert await store.database.read(lambda connection: connection.execute(query).scalar_one()) == 0
    assert await world.accept(store, await world.batch_lease(store), total=15)
    await world.lease(store, limit=1)
    backlog = await store.batches.backlog()
    pending = await store.database.read(lambda connection: connection.execute(query).scalar_one())
    assert pending == backlog.waiting_segments + backlog.leased_segments == 3


# --- batch leases ---


async def test_concurrent_intakes_lease_different_batches(world, store, other_store):
    made = [await store.batches.create(world.batch()) for _ in range(3)]
    leases = await asyncio.gather(
        *(
            one.batch_leases.lease((Status.VALIDATING,), world.worker, ttl_s=30)
            for one in (store, other_store) * 2
        )
    )
    held = [lease.batch for lease in leases if lease is not None]
    assert sorted(held, key=made.index) == made
    assert leases.count(None) == 1


async def test_an_expired_batch_lease_cannot_change_the_batch(world, store):
    await store.batches.create(world.batch())
    first = await world.batch_lease(store)
    world.clock.step(world.ttl_s - 1)
    assert await store.batch_leases.lease((Status.VALIDATING,), world.other_worker, ttl_s=30) is None
    assert await store.batch_leases.renew(first)
    world.clock.step(world.ttl_s)
    second = await world.batch_lease(store, world.other_worker)
    assert second.token == first.token + 1
    assert not await store.batch_leases.renew(first)
    await store.batch_leases.release(first)
    assert await store.batch_leases.lease((Status.VALIDATING,), world.worker, ttl_s=30) is None
    assert not await world.accept(store, first)
    assert not await store.batch_leases.reject(first, first.batch.after(Event.REJECTED, now=world.clock()))
    assert await world.accept(store, second)


async def test_an_expired_batch_lease_that_was_not_taken_over_can_be_renewed(world, store):
    await store.batches.create(world.batch())
    lease = await world.batch_lease(store)
    world.clock.step(world.ttl_s + 1)
    assert await store.batch_leases.renew(lease)
    assert await store.batch_leases.lease((Status.VALIDATING,), world.other_worker, ttl_s=30) is None


async def test_a_released_batch_lease_is_free_immediately_and_invalid_for_its_holder(world, store):
    await store.batches.create(world.batch())
    first = await world.batch_lease(store)
    await store.batch_leases.release(first)
    assert not await world.accept(store, first)
    second = await world.batch_lease(store, world.other_worker)
    assert second.token > first.token


async def test_an_accepted_batch_has_its_model_total_and_segments(world, store):
    batch = await world.start(store, total=12, lines_per_segment=5)
    assert (batch.status, batch.model, batch.total) == (Status.IN_PROGRESS, "tiny", 12)
    results = await store.segments.results(batch.id)
    assert [result.segment for result in results] == [
        Segment(batch.id, 0, 0, 5),
        Segment(batch.id, 1, 5, 5),
        Segment(batch.id, 2, 10, 2),
    ]
    assert await store.segments.results(batch.id, after=0, limit=1) == results[1:2]
    assert not any(result.is_done for result in results)


async def test_a_batch_is_accepted_only_once(world, store):
    await store.batches.create(world.batch())
    lease = await world.batch_lease(store)
    assert await world.accept(store, lease)
    assert not await world.accept(store, lease)
    assert not await store.batch_leases.renew(lease)


async def test_a_rejected_batch_keeps_its_errors_in_order(world, store):
    made = await store.batches.create(world.batch())
    lease = await world.batch_lease(store)
    errors = (
        LineError("invalid_json_line", "This line is not parseable as valid JSON.", None, 3),
        LineError("duplicate_custom_id", "twice", "custom_id", None),
    )
    after = replace(lease.batch.after(Event.REJECTED, now=world.clock()), errors=errors)
    assert await store.batch_leases.reject(lease, after)
    assert await world.read_again(store, made) == after


async def test_intake_loses_its_lease_when_the_batch_is_cancelled(world, store):
    made = await store.batches.create(world.batch())
    intake = await world.batch_lease(store)
    await world.apply(store, made, Event.CANCEL_REQUESTED)
    assert not await store.batch_leases.renew(intake)
    assert not await world.accept(store, intake)
    finalizing = await world.last_batch_lease(store, world.other_worker)
    assert finalizing.batch.id == made.id
    assert finalizing.index_blob_key is None
    await store.batch_leases.release(intake)
    assert await store.batch_leases.renew(finalizing)


async def test_a_lease_to_finalize_waits_for_live_leases(world, store):
    batch = await world.start(store)
    first, second = await world.lease(store)
    await world.apply(store, batch, Event.CANCEL_REQUESTED)
    assert await world.last_batch_lease(store) is None
    assert await store.segments.release(first, world.report(first, world.tally(2)), [world.part(first)])
    assert await world.last_batch_lease(store) is None
    await world.complete(store, [second])
    lease = await world.last_batch_lease(store)
    assert lease.batch.tally == world.tally(7)
    assert lease.index_blob_key == f"indexes/{batch.id}"


async def test_a_batch_with_live_leases_does_not_delay_other_batches(world, store):
    held = await world.start(store)
    await world.lease(store)
    free = await store.batches.create(world.batch())
    for batch in (held, free):
        await world.apply(store, batch, Event.CANCEL_REQUESTED)
    assert (await world.last_batch_lease(store)).batch.id == free.id


async def test_a_lease_to_finalize_invalidates_expired_segment_leases(world, store):
    batch = await world.start(store)
    held, other = await world.lease(store)
    await world.complete(store, [other])
    await world.apply(store, batch, Event.CANCEL_REQUESTED)
    world.clock.step(world.ttl_s)
    lease = await world.last_batch_lease(store)
    assert lease.batch.id == batch.id
    late = world.report(held, world.tally(5))
    assert not await store.segments.complete(held, late, [world.part(held)])
    reply = await store.segments.renew(world.worker, [late], ttl_s=30)
    assert reply.lost == {(batch.id, held.segment.number)}
    assert stopping(reply) == {batch.id: Status.CANCELLING}
    unfinished, done = await store.segments.results(batch.id)
    assert (unfinished.token, unfinished.is_done) == (held.token + 1, False)
    assert (done.token, done.is_done) == (other.token, True)
    assert (await world.read_again(store, batch)).tally == world.tally(5)


async def test_publishing_sets_status_and_files_together_and_deletes_the_segments(world, store):
    batch = await world.start(store)
    await world.complete(store, await world.lease(store))
    await world.apply(store, batch, Event.SETTLED)
    lease = await world.last_batch_lease(store)
    output, error = world.file(), world.file()
    after = replace(
        lease.batch.after(Event.COMPLETED, now=world.clock()),
        output_file_id=output.id,
        error_file_id=error.id,
        tally=world.tally(8, 2),
    )
    assert await store.batch_leases.publish(lease, after, files=[output, error])
    assert await world.read_again(store, batch) == after
    assert await store.files.get(world.project, output.id) == output
    assert await store.files.get(world.project, error.id) == error
    assert await store.segments.results(batch.id) == []
    assert not await store.batch_leases.publish(lease, after, files=[])


async def test_an_expired_lease_cannot_publish(world, store):
    batch = await world.start(store)
    await world.apply(store, batch, Event.LAPSED)
    old = await world.last_batch_lease(store)
    world.clock.step(world.ttl_s)
    new = await world.last_batch_lease(store, world.other_worker)
    output = world.file()
    after = replace(old.batch.after(Event.EXPIRED, now=world.clock()), output_file_id=output.id)
    assert not await store.batch_leases.publish(old, after, files=[output])
    assert await store.files.get(world.project, output.id) is None
    assert (await world.read_again(store, batch)).status is Status.FINALIZING
    assert await store.batch_leases.publish(new, after, files=[output])


async def test_a_publish_that_violates_a_constraint_changes_nothing(world, store):
    batch = await world.start(store)
    await world.apply(store, batch, Event.LAPSED)
    lease = await world.last_batch_lease(store)
    taken = await store.files.add(world.file())
    after = replace(lease.batch.after(Event.EXPIRED, now=world.clock()), output_file_id=FileId(taken.id))
    with pytest.raises(ValueError, match="rules"):
        await store.batch_leases.publish(lease, after, files=[world.file(), taken])
    assert (await world.read_again(store, batch)).status is Status.FINALIZING
    assert len(await store.segments.results(batch.id)) == 2
    assert (await store.files.list(world.project)).items == (taken,)


async def test_a_completed_batch_must_have_answered_every_line(world, store):
    batch = await world.start(store)
    await world.apply(store, batch, Event.LAPSED)
    lease = await world.last_batch_lease(store)
    after = replace(lease.batch.after(Event.COMPLETED, now=world.clock()), tally=world.tally(9))
    with pytest.raises(ValueError, match="batch_complete"):
        await store.batch_leases.publish(lease, after, files=[])


async def test_releasing_all_leases_frees_segment_and_batch_leases(world, store):
    batch = await world.start(store)
    held, _ = await world.lease(store)
    waiting = await store.batches.create(world.batch())
    intake = await world.batch_lease(store)
    assert await store.leases.release_all() == 3
    assert not await store.batch_leases.renew(intake)
    assert not await store.segments.complete(held, world.report(held, world.tally(5)), [])
    assert (await world.batch_lease(store)).batch.id == waiting.id
    assert [lease.token for lease in await world.lease(store)] == [2, 2]
    assert (await world.read_again(store, batch)).status is Status.IN_PROGRESS
