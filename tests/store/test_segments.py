"""Segment leases: which worker gets which segment, what a token protects, and how tallies are kept."""

import asyncio

import pytest

from nightmill.core.batch import Event, Status, Tally
from nightmill.core.segment import PinnedPart, SegmentReport
from tests.store.conftest import stopping


async def test_a_lease_carries_all_data_that_its_holder_needs(world, store):
    batch = await world.start(store, total=3)
    (lease,) = await world.lease(store)
    assert (lease.token, lease.pinned, lease.tally) == (1, (), Tally())
    assert (lease.segment.batch_id, lease.segment.first, lease.segment.count) == (batch.id, 0, 3)
    assert (lease.endpoint, lease.model) == (batch.endpoint, "tiny")
    assert lease.input_blob_key == batch.input_blob_key
    assert lease.index_blob_key == f"indexes/{batch.id}"
    assert (lease.deadline, lease.ttl_s) == (batch.expires_at, world.ttl_s)


async def test_segments_of_the_oldest_batch_are_leased_first_and_in_order(world, store):
    old = await world.start(store, total=12, lines_per_segment=1)
    new = await world.start(store, total=2, lines_per_segment=1, created_at=old.created_at - 10)
    first = await world.lease(store, limit=11)
    assert [(it.segment.batch_id, it.segment.number) for it in first] == [(old.id, n) for n in range(11)]
    second = await world.lease(store, limit=11)
    expected = [(old.id, 11), (new.id, 0), (new.id, 1)]
    assert [(it.segment.batch_id, it.segment.number) for it in second] == expected
    assert await world.lease(store) == []


async def test_concurrent_leases_never_share_a_segment(world, store, other_store):
    await world.start(store, total=40, lines_per_segment=1)
    asked = [one.segments.lease(world.worker, limit=3, ttl_s=30) for one in (store, other_store) * 10]
    leased = [lease.segment.number for leases in await asyncio.gather(*asked) for lease in leases]
    assert sorted(leased) == list(range(40))


async def test_no_segment_is_leased_past_the_deadline(world, store):
    batch = await world.start(store)
    world.clock.now = batch.expires_at
    assert await world.lease(store) == []


@pytest.mark.parametrize("event", [Event.CANCEL_REQUESTED, Event.LAPSED])
async def test_no_segment_is_leased_from_a_batch_that_is_ending(world, store, event):
    batch = await world.start(store)
    await world.apply(store, batch, event)
    assert await world.lease(store) == []


async def test_a_concurrent_cancel_and_lease_happen_in_one_of_two_orders(world, store, other_store):
    batch = await world.start(store)
    leases, _ = await asyncio.gather(
        world.lease(store), world.apply(other_store, batch, Event.CANCEL_REQUESTED)
    )
    lease = await world.last_batch_lease(other_store)
    assert (lease is None) == bool(leases)


async def test_an_expired_lease_is_taken_over_with_the_next_token(world, store):
    await world.start(store, total=5)
    (first,) = await world.lease(store)
    await store.segments.renew(world.worker, [world.report(first, world.tally(2))], ttl_s=world.ttl_s)
    world.clock.step(world.ttl_s - 0.001)
    assert await store.segments.release_expired() == 0
    world.clock.step(0.001)
    assert await world.lease(store) == []
    assert await store.segments.release_expired() == 1
    assert await store.segments.release_expired() == 0
    (second,) = await world.lease(store, worker=world.other_worker)
    assert (second.token, second.tally) == (2, world.tally(2))


async def test_an_old_token_changes_nothing(world, store):
    batch = await world.start(store, total=5)
    (old,) = await world.lease(store)
    await store.segments.release(old, world.report(old, world.tally(2)), [world.part(old)])
    (new,) = await world.lease(store, worker=world.other_worker)
    before = await world.read_again(store, batch), await store.segments.results(batch.id)
    late = world.report(old, world.tally(5))
    assert not await store.segments.pin_parts(old, [world.part(old, 999)], late)
    assert not await store.segments.complete(old, late, [world.part(old, 999)])
    assert not await store.segments.release(old, late, [world.part(old, 999)])
    reply = await store.segments.renew(world.worker, [late], ttl_s=999)
    assert reply.lost == {(batch.id, 0)}
    assert (await world.read_again(store, batch), await store.segments.results(batch.id)) == before
    assert await store.segments.complete(new, world.report(new, world.tally(5)), [world.part(new)])


async def test_a_lease_of_another_worker_is_lost(world, store):
    batch = await world.start(store, total=5)
    (lease,) = await world.lease(store)
    reply = await store.segments.renew(world.other_worker, [world.report(lease, world.tally(1))], ttl_s=30)
    assert reply.lost == {(batch.id, 0)}
    assert (await world.read_again(store, batch)).tally == Tally()


async def test_an_unknown_segment_is_lost(world, store):
    batch = await world.start(store, total=5)
    reply = await store.segments.renew(world.worker, [SegmentReport(batch.id, 7, 1, Tally())], ttl_s=30)
    assert reply.lost == {(batch.id, 7)}


async def test_a_heartbeat_renews_leases_and_updates_the_tally(world, store):
    batch = await world.start(store)
    first, second = await world.lease(store)
    world.clock.step(world.ttl_s - 1)
    reports = [world.report(first, world.tally(2, 1)), world.report(second, world.tally(4))]
    reply = await store.segments.renew(world.worker, reports, ttl_s=world.ttl_s)
    assert (reply.lost, stopping(reply)) == (frozenset(), {})
    assert (await world.read_again(store, batch)).tally == world.tally(6, 1)
    world.clock.step(world.ttl_s - 1)
    assert await store.segments.release_expired() == 0
    world.clock.step(1)
    assert await store.segments.release_expired() == 2


async def test_a_late_heartbeat_never_lowers_the_tally(world, store):
    batch = await world.start(store, total=5)
    (lease,) = await world.lease(store)
    for answered in (3, 1, 3, 2):
        await store.segments.renew(world.worker, [world.report(lease, world.tally(answered))], ttl_s=30)
        assert (await world.read_again(store, batch)).tally == world.tally(3)


async def test_an_expired_lease_that_was_not_taken_over_can_be_renewed(world, store):
    await world.start(store, total=5)
    (lease,) = await world.lease(store)
    world.clock.step(world.ttl_s + 5)
    reply = await store.segments.renew(world.worker, [world.report(lease, Tally())], ttl_s=world.ttl_s)
    assert not reply.lost
    assert await store.segments.release_expired() == 0


async def test_an_empty_heartbeat_is_accepted(world, store):
    await world.start(store)
    reply = await store.segments.renew(world.worker, [], ttl_s=30)
    assert (reply.lost, stopping(reply)) == (frozenset(), {})


async def test_a_batch_in_progress_is_not_stopping(world, store):
    batch = await world.start(store)
    assert not (await store.batches.terms({batch.id}))[batch.id].is_paused
    assert await store.batches.terms(set()) == {}


@pytest.mark.parametrize(
    ("event", "status"), [(Event.CANCEL_REQUESTED, Status.CANCELLING), (Event.LAPSED, Status.FINALIZING)]
)
async def test_answers_in_flight_still_count_while_a_batch_ends(world, store, event, status):
    batch = await world.start(store)
    first, second = await world.lease(store)
    await world.apply(store, batch, event)
    reply = await store.segments.renew(world.worker, [world.report(first, world.tally(1))], ttl_s=world.ttl_s)
    assert stopping(reply) == {batch.id: status}
    assert (await store.batches.terms({batch.id}))[batch.id].status is status
    assert not reply.lost
    assert await store.segments.complete(first, world.report(first, world.tally(5)), [world.part(first)])
    assert await store.segments.release(second, world.report(second, world.tally(3)), [world.part(second)])
    assert (await world.read_again(store, batch)).tally == world.tally(8)
    assert await world.lease(store) == []


async def test_a_heartbeat_after_publishing_returns_the_final_status_of_the_batch(world, store):
    batch = await world.start(store, total=5)
    (lease,) = await world.lease(store)
    await world.apply(store, batch, Event.CANCEL_REQUESTED)
    world.clock.step(world.ttl_s)
    finalizing = await world.last_batch_lease(store)
    assert await store.batch_leases.publish(
        finalizing, finalizing.batch.after(Event.CANCELLED, now=world.clock()), files=[]
    )
    reply = await store.segments.renew(world.worker, [world.report(lease, world.tally(5))], ttl_s=30)
    assert reply.lost == {(batch.id, 0)}
    assert stopping(reply) == {batch.id: Status.CANCELLED}
    assert (await world.read_again(store, batch)).tally == Tally()


async def test_a_segment_is_done_only_with_every_line_answered(world, store):
    batch = await world.start(store, total=5)
    (lease,) = await world.lease(store)
    with pytest.raises(ValueError, match="5 lines, but 4"):
        await store.segments.complete(lease, world.report(lease, world.tally(4)), [])
    assert not (await store.segments.results(batch.id))[0].is_done


@pytest.mark.parametrize("verb", ["beat", "pin", "release"])
async def test_more_answers_than_lines_are_refused(world, store, verb):
    batch = await world.start(store, total=5)
    (lease,) = await world.lease(store)
    report = world.report(lease, world.tally(6))
    with pytest.raises(ValueError, match="5 lines, but 6"):
        match verb:
            case "beat":
                await store.segments.renew(world.worker, [report], ttl_s=30)
            case "pin":
                await store.segments.pin_parts(lease, [], report)
            case _:
                await store.segments.release(lease, report, [])
    assert (await world.read_again(store, batch)).tally == Tally()


async def test_a_done_segment_stays_done(world, store):
    batch = await world.start(store, total=5)
    (lease,) = await world.lease(store)
    await world.complete(store, [lease])
    whole = world.report(lease, world.tally(5))
    assert not await store.segments.complete(lease, whole, [])
    assert not await store.segments.release(lease, whole, [])
    assert await store.leases.release_all() == 0
    (result,) = await store.segments.results(batch.id)
    assert (result.is_done, result.pinned, result.tally) == (True, (world.part(lease),), world.tally(5))


async def test_a_released_segment_keeps_its_parts_for_the_next_holder(world, store):
    await world.start(store, total=5)
    (first,) = await world.lease(store)
    await store.segments.release(first, world.report(first, world.tally(2)), [world.part(first)])
    (second,) = await world.lease(store)
    assert (second.pinned, second.tally) == ((world.part(first),), world.tally(2))
    mine = world.part(second)
    longer = world.part(first, 5_000)
    await store.segments.release(second, world.report(second, world.tally(3)), [longer, mine])
    (third,) = await world.lease(store)
    assert third.pinned == (world.part(first), mine)


async def test_a_takeover_pins_the_parts_that_it_finds(world, store):
    batch = await world.start(store, total=5)
    (first,) = await world.lease(store)
    await store.segments.renew(world.worker, [world.report(first, world.tally(4))], ttl_s=30)
    world.clock.step(world.ttl_s)
    await store.segments.release_expired()
    (second,) = await world.lease(store)
    found = [PinnedPart("parts/found", 70)]
    assert await store.segments.pin_parts(second, found, world.report(second, world.tally(3)))
    assert (await world.read_again(store, batch)).tally == world.tally(3)
    (result,) = await store.segments.results(batch.id)
    assert (result.pinned, result.tally) == (tuple(found), world.tally(3))
    assert await store.segments.complete(
        second, world.report(second, world.tally(5)), [*found, world.part(second)]
    )
    assert (await world.read_again(store, batch)).tally == world.tally(5)


async def test_concurrent_heartbeats_from_two_processes_add_up(world, store, other_store):
    batch = await world.start(store, total=40, lines_per_segment=1)
    mine = await world.lease(store, limit=20)
    theirs = await world.lease(other_store, limit=20, worker=world.other_worker)
    one = world.tally(1)
    await asyncio.gather(
        *(store.segments.renew(world.worker, [world.report(lease, one)], ttl_s=30) for lease in mine),
        *(
            other_store.segments.renew(world.other_worker, [world.report(lease, one)], ttl_s=30)
            for lease in theirs
        ),
    )
    assert (await world.read_again(store, batch)).tally == world.tally(40)


async def test_only_the_leases_of_the_dead_worker_are_released(world, store):
    await world.start(store, total=10)
    (held,) = await world.lease(store, limit=1)
    (others,) = await world.lease(store, limit=1, worker=world.other_worker)
    await store.batches.create(world.batch())
    intake = await world.batch_lease(store)
    assert await store.leases.release_of_worker(world.worker) == 2
    assert not await store.batch_leases.renew(intake)
    assert not await store.segments.complete(held, world.report(held, world.tally(5)), [])
    assert await store.segments.complete(others, world.report(others, world.tally(5)), [world.part(others)])
    (again,) = await world.lease(store, worker=world.other_worker)
    assert (again.segment, again.token) == (held.segment, 2)


async def test_concurrent_workers_answer_every_line_of_a_batch_once(world, store, other_store):
    batch = await world.start(store, total=90, lines_per_segment=3)
    completed = []

    async def work(name: str, one) -> None:
        while leases := await one.segments.lease(name, limit=2, ttl_s=30):
            reports = [world.report(lease, world.tally(1)) for lease in leases]
            assert not (await one.segments.renew(name, reports, ttl_s=30)).lost
            gives_back = leases[0].token == 1 and leases[0].segment.number % 5 == 0
            if gives_back:
                assert await one.segments.release(leases[0], reports[0], [world.part(leases[0])])
            mine = leases[1:] if gives_back else leases
            await world.complete(one, mine)
            completed.extend(lease.segment.number for lease in mine)

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(work(f"worker-{number}", (store, other_store)[number % 2]))
    assert sorted(completed) == list(range(30))
    (settled,) = await store.batches.settled()
    assert settled.id == batch.id
    assert settled.tally == world.tally(90)
