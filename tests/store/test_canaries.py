"""Canaries in the store: which segments may be leased, and one decision for each batch."""

from dataclasses import replace

import msgspec
import pytest

from nightmill.core.batch import Event, Status
from nightmill.core.batch_options import BatchOptions
from nightmill.core.canary import Canary, CanaryState
from nightmill.core.history import EventKind
from nightmill.core.steering import Resume
from tests.store_doubles import even_segments

OPTIONS = BatchOptions(canary=4, canary_max_failed=0.25)


@pytest.fixture
async def held(world, store):
    return await accepted(world, store, OPTIONS)


async def accepted(world, store, options):
    """A batch of 10 lines in segments of 2, of which the first two are the canary."""
    made = await store.batches.create(world.batch(options=options))
    lease = await world.batch_lease(store)
    after = replace(made.after(Event.ACCEPTED, now=world.clock()), total=10, canary_segments=2, model="tiny")
    segments = even_segments(made.id, total=10, lines_per_segment=2)
    assert await store.batch_leases.accept(lease, after, index_blob_key="indexes/1", segments=segments)
    return await world.read_again(store, made)


async def answered(world, store, completed, failed):
    for lease, (done, bad) in zip(await world.lease(store), ((completed, failed), (2, 0)), strict=True):
        report = world.report(lease, world.tally(done, bad))
        assert await store.segments.complete(lease, report, [world.part(lease)])


async def test_only_segments_of_the_canary_are_leased_and_a_waiting_batch_is_no_candidate(world, store, held):
    assert [lease.segment.number for lease in await world.lease(store)] == [0, 1]
    assert await world.lease(store) == []
    candidates = await store.open_batches.candidates(after="", most=10, passed_over=())
    assert candidates.by_project == [[]] or not any(candidates.by_project)
    ((found, canary),) = await store.canaries.running()
    assert (found.id, canary) == (held.id, Canary(4, 0, 0, 0.25))


async def test_a_canary_passes_once_and_its_counts_stay_known(world, store, other_store, held):
    await answered(world, store, 1, 1)
    ((batch, canary),) = await store.canaries.running()
    assert canary.state is CanaryState.PASSED
    assert await other_store.canaries.let_pass(batch, canary)
    assert not await store.canaries.let_pass(batch, canary)
    assert await store.canaries.running() == []
    now = await world.read_again(store, held)
    assert await store.canaries.counted(now) == Canary(4, 3, 1, 0.25)
    assert [lease.segment.number for lease in await world.lease(store)] == [2, 3, 4]
    kinds = [event.kind for event in await store.batch_events.list(held.id)]
    assert kinds.count(EventKind.CANARY_PASSED) == 1


async def test_a_batch_that_asks_for_it_is_paused_when_its_canary_has_passed(world, store):
    await accepted(world, store, msgspec.structs.replace(OPTIONS, canary_pause=True))
    await answered(world, store, 2, 0)
    ((batch, canary),) = await store.canaries.running()
    assert await store.canaries.let_pass(batch, canary)
    now = await world.read_again(store, batch)
    assert (now.canary_segments, now.paused_at) == (None, int(world.clock()))
    assert await world.lease(store) == []
    kinds = [event.kind for event in await store.batch_events.list(batch.id)]
    assert kinds[-2:] == [EventKind.CANARY_PASSED, EventKind.PAUSED]
    await store.steering.change(batch.project_id, batch.id, [Resume()])
    assert [lease.segment.number for lease in await world.lease(store)] == [2, 3, 4]


async def test_a_canary_stops_its_batch_once_and_a_cancel_comes_first_or_second(world, store, held):
    await answered(world, store, 0, 2)
    ((batch, canary),) = await store.canaries.running()
    assert canary.state is CanaryState.STOPPED
    after = replace(batch.after(Event.CANCEL_REQUESTED, now=world.clock()), stop_reason=canary.stop_reason)
    assert await store.canaries.stop(after, canary)
    assert not await store.canaries.stop(after, canary)
    assert not await store.canaries.let_pass(batch, canary)
    now = await world.read_again(store, held)
    assert (now.status, now.stop_reason) == (Status.CANCELLING, canary.stop_reason)


async def test_a_cancelled_batch_is_neither_passed_nor_stopped(world, store, held):
    await answered(world, store, 0, 2)
    ((batch, canary),) = await store.canaries.running()
    await world.apply(store, held, Event.CANCEL_REQUESTED)
    after = replace(batch.after(Event.CANCEL_REQUESTED, now=world.clock()))
    assert not await store.canaries.stop(after, canary)
    assert not await store.canaries.let_pass(batch, canary)
    assert await store.canaries.running() == []
