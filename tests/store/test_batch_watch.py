"""Samples and reports of batches: stored once by several observers, thinned out, deleted after the end."""

from nightmill.core.audit import Actor
from nightmill.core.batch import Event
from nightmill.core.forecast import Sample
from nightmill.core.history import EventKind
from nightmill.ids import BatchId
from nightmill.store import batch_events


async def _record(store, batch, kind: EventKind) -> None:
    await store.database.write(batch_events.record, batch.id, kind)


async def test_the_sample_of_a_time_is_stored_once(world, store, other_store):
    batch = await world.start(store)
    leases = await world.lease(store, limit=1)
    await world.complete(store, leases)
    await store.batch_watch.add_samples([(batch, 3)], at=100)
    await other_store.batch_watch.add_samples([(batch, 4)], at=100)
    await store.batch_watch.add_samples([(await world.read_again(store, batch), 5)], at=105)
    around = await store.batch_watch.around(batch.id)
    assert [(one.at, one.answered, one.in_flight) for one in around.samples] == [(100, 0, 3), (105, 5, 5)]


async def test_old_samples_that_are_not_on_the_grid_are_deleted(world, store):
    batch, other = await world.start(store), await world.start(store)
    for at in range(0, 100, 5):
        await store.batch_watch.add_samples([(batch, 0), (other, 0)], at=at)
    await store.batch_watch.thin_samples({batch.id: 20}, before=70)
    left = [one.at for one in (await store.batch_watch.around(batch.id)).samples]
    assert left == [0, 20, 40, 60, 70, 75, 80, 85, 90, 95]
    assert len((await store.batch_watch.around(other.id)).samples) == 20


async def test_samples_and_reports_are_deleted_some_time_after_the_end(world, store):
    ended, running = await world.start(store), await world.start(store)
    for batch in (ended, running):
        await store.batch_watch.add_samples([(batch, 0)], at=5)
        assert await store.batch_watch.put_report(batch.id, "{}", before=None, detail=None)
    ended = await world.apply(store, ended, Event.CANCEL_REQUESTED)
    await world.apply(store, ended, Event.CANCELLED)
    world.clock.step(100)
    assert await store.batch_watch.forget_ended(after="", most=10, kept_s=1_000) == ""
    assert (await store.batch_watch.around(ended.id)).samples
    world.clock.step(1_000)
    await store.batch_watch.forget_ended(after="", most=10, kept_s=1_000)
    assert (await store.batch_watch.around(ended.id)).samples == []
    assert (await store.batch_watch.around(running.id)).samples == [Sample(5, 0)]
    assert list(await store.batch_watch.reports([ended.id, running.id])) == [running.id]


async def test_the_search_for_ended_batches_goes_on_where_it_stopped(world, store):
    batches = [await world.start(store) for _ in range(3)]
    for batch in batches:
        await store.batch_watch.add_samples([(batch, 0)], at=5)
    ids = sorted(batch.id for batch in batches)
    assert await store.batch_watch.forget_ended(after="", most=2, kept_s=1) == ids[1]
    assert await store.batch_watch.forget_ended(after=ids[1], most=2, kept_s=1) == ""


async def test_a_report_is_replaced_only_by_the_observer_that_read_it(world, store, other_store):
    batch = await world.start(store)
    detail = {"code": "starting"}
    assert await store.batch_watch.put_report(batch.id, "1", before=None, detail=detail)
    assert not await other_store.batch_watch.put_report(batch.id, "2", before=None, detail=detail)
    assert await other_store.batch_watch.put_report(batch.id, "2", before="1", detail=detail)
    assert not await store.batch_watch.put_report(batch.id, "3", before="1", detail=detail)
    assert await store.batch_watch.reports([batch.id]) == {batch.id: "2"}
    limited = [event for event in await store.batch_events.list(batch.id) if event.kind is EventKind.LIMITED]
    assert [event.detail for event in limited] == [detail, detail]


async def test_pauses_are_read_from_the_history(world, store):
    batch = await world.start(store)
    begin = world.clock.now
    for kind in (EventKind.PAUSED, EventKind.RESUMED, EventKind.PAUSED):
        await _record(store, batch, kind)
        world.clock.step(10)
    around = await store.batch_watch.around(batch.id)
    assert around.pauses == [(begin, begin + 10), (begin + 20, None)]
    assert (around.is_leased, around.paused_by) == (False, None)


async def test_running_batches_are_those_with_leased_segments(world, store):
    await world.start(store)
    leases = await world.lease(store, limit=1)
    await world.start(store)
    assert [batch.id for batch in await store.batch_watch.running(most=5)] == [leases[0].segment.batch_id]
    assert await store.batch_watch.running(most=0) == []


async def test_batches_in_progress_are_read_in_turns(world, store):
    batches = [await world.start(store) for _ in range(3)]
    first, after = await store.batch_watch.next_in_progress(after=0, most=2)
    rest, again = await store.batch_watch.next_in_progress(after=after, most=2)
    assert [one.id for one in (*first, *rest)] == [one.id for one in batches]
    assert again == 0


async def test_batches_that_do_not_exist_are_left_out(world, store):
    batch = await world.start(store, priority=2)
    (found,) = await store.batch_watch.some([batch.id, BatchId("batch_gone")])
    assert (found.id, found.priority, found.project_id) == (batch.id, 2, batch.project_id)
    assert await store.batch_watch.some([]) == []


async def test_who_paused_and_what_is_leased_is_read_for_several_batches_at_once(world, store):
    paused, validating = await world.start(store), await store.batches.create(world.batch())
    await store.database.write(batch_events.record, paused.id, EventKind.PAUSED, by=Actor("key_1"))
    before = await store.batch_watch.around_page([paused.id, validating.id])
    await world.batch_lease(store)
    after = await store.batch_watch.around_page([paused.id, validating.id])
    assert before[paused.id].paused_by == "key_1"
    assert [before[validating.id].is_leased, after[validating.id].is_leased] == [False, True]
    assert await store.batch_watch.around_page([]) == {}
