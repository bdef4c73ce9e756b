"""The candidates that the store offers for a lease, and leases of preferred batches."""

import asyncio

import pytest

from nightmill.core.batch import HIGHEST_PRIORITY, LOWEST_PRIORITY, Event
from nightmill.core.schedule import NEAR_DEADLINE_S, Candidates, OpenBatch
from nightmill.core.steering import SetPriority
from nightmill.errors import ConflictError
from nightmill.ids import ProjectId


async def _candidates(
    store, *, after: str = "", most: int = 8, passed_over=(), after_model=None
) -> Candidates:
    return await store.open_batches.candidates(
        after=ProjectId(after), most=most, passed_over=passed_over, after_model=after_model
    )


def _ids(batches) -> list[str]:
    return [batch.id for batch in batches]


async def test_the_oldest_and_the_smallest_batch_of_each_project_are_candidates(world, store):
    oldest = await world.start(store, input_bytes=600)
    await world.start(store, input_bytes=500)
    smallest = await world.start(store, input_bytes=10)
    await world.start(store, input_bytes=10)
    other = await world.start(store, project_id=world.other_project, input_bytes=7)
    found = await _candidates(store)
    assert [_ids(batches) for batches in found.by_project] == [[oldest.id, smallest.id], [other.id]]
    assert found.by_project[1] == [OpenBatch(other.id, world.other_project, 5, other.expires_at, 7)]
    assert (found.near, found.next_after) == ([], "")


async def test_the_oldest_batch_of_the_highest_priority_is_a_candidate(world, store):
    await world.start(store, input_bytes=600)
    await world.start(store, input_bytes=1, priority=-3)
    highest = await world.start(store, input_bytes=900, priority=2)
    await world.start(store, input_bytes=900, priority=2)
    await world.start(store, project_id=world.other_project, priority=-10)
    found = await _candidates(store)
    assert [[it.priority for it in batches] for batches in found.by_project] == [[2, 0, -3], [-10]]
    assert found.by_project[0][0].id == highest.id
    below = await _candidates(store, passed_over=_ids(found.by_project[0]))
    assert [it.priority for it in below.by_project[0]] == [2]


async def test_the_oldest_batch_of_each_model_is_a_candidate_if_models_are_looked_at(world, store):
    of_b = await world.start(store, model="b")
    of_a = await world.start(store, model="a")
    await world.start(store, model="a")
    of_c = await world.start(store, model="c")
    mixed = await world.start(store, model=None)
    assert (await _candidates(store)).by_model == []
    first = await _candidates(store, most=2, after_model="")
    assert [(model, batch.id) for model, batch in first.by_model] == [
        ("a", of_a.id),
        ("b", of_b.id),
        (None, mixed.id),
    ]
    second = await _candidates(store, most=2, after_model=first.next_model, passed_over=[mixed.id])
    assert [(model, batch.id) for model, batch in second.by_model] == [("c", of_c.id)]
    assert second.next_model == ""


async def test_a_look_reads_the_priorities_of_the_batches_that_are_passed_over(world, store):
    held, other = await world.start(store), await world.start(store, priority=4)
    await store.steering.change(world.project, held.id, [SetPriority(-7)])
    found = await _candidates(store, passed_over=[held.id])
    assert found.priorities == {held.id: -7}
    assert (await _candidates(store)).priorities == {}
    leases = await store.segments.lease(world.worker, limit=0, ttl_s=30, preferred=[(other.id, 1)])
    assert [lease.priority for lease in leases] == [4]


async def test_the_priority_of_an_ended_or_foreign_batch_stays(world, store):
    batch = await world.start(store, priority=1)
    assert await store.steering.change(world.other_project, batch.id, [SetPriority(5)]) is None
    assert await store.steering.change(world.project, batch.id, [SetPriority(2)])
    for event in (Event.CANCEL_REQUESTED, Event.CANCELLED):
        await world.apply(store, batch, event)
    with pytest.raises(ConflictError):
        await store.steering.change(world.project, batch.id, [SetPriority(5)])
    assert (await world.read_again(store, batch)).priority == 2


@pytest.mark.parametrize("priority", [LOWEST_PRIORITY - 1, HIGHEST_PRIORITY + 1])
async def test_the_store_refuses_a_priority_outside_the_range(world, store, priority):
    batch = await world.start(store)
    with pytest.raises(ValueError, match="batch_priority"):
        await store.steering.change(world.project, batch.id, [SetPriority(priority)])


async def test_a_look_continues_after_the_last_project_and_begins_again_at_the_end(world, store):
    for name in ("a", "b", "c"):
        for _ in range(2):
            await world.start(store, project_id=ProjectId(name), input_bytes=9)
    seen, after = [], ""
    for _ in range(3):
        found = await _candidates(store, after=after, most=2)
        seen.append([batches[0].project_id for batches in found.by_project])
        after = found.next_after
    assert seen == [["a", "b"], ["c"], ["a", "b"]]


async def test_batches_with_near_deadlines_are_candidates_in_the_order_of_their_deadlines(world, store):
    now = int(world.clock())
    deadlines = (now + NEAR_DEADLINE_S + 1, now + 50, now + NEAR_DEADLINE_S, now + 40)
    batches = [await world.start(store, expires_at=deadline) for deadline in deadlines]
    found = await _candidates(store)
    assert _ids(found.near) == [batches[3].id, batches[1].id, batches[2].id]
    assert _ids((await _candidates(store, most=2)).near) == [batches[3].id, batches[1].id]
    world.clock.now = now + 40
    assert _ids((await _candidates(store)).near) == [batches[1].id, batches[2].id, batches[0].id]


async def test_batches_without_waiting_segments_are_no_candidates(world, store):
    leased = await world.start(store)
    await world.lease(store)
    held = await world.start(store)
    ending = await world.start(store)
    await world.apply(store, ending, Event.CANCEL_REQUESTED)
    waiting = await world.start(store)
    found = await _candidates(store, passed_over=[held.id])
    assert [_ids(batches) for batches in found.by_project] == [[waiting.id]]
    assert leased.id != waiting.id


async def test_preferred_batches_are_leased_first_then_the_oldest(world, store):
    old = await world.start(store, total=5, lines_per_segment=1)
    small = await world.start(store, total=2, lines_per_segment=1, input_bytes=7)
    leases = await store.segments.lease(
        world.worker, limit=4, ttl_s=30, preferred=[(small.id, 1), ("batch_gone", 1)]
    )
    expected = [(small.id, 0), (old.id, 0), (old.id, 1), (old.id, 2)]
    assert [(it.segment.batch_id, it.segment.number) for it in leases] == expected
    assert (leases[0].project_id, leases[0].batch_sequence, leases[0].batch_bytes) == (world.project, 2, 7)


async def test_with_a_limit_of_0_only_preferred_batches_are_leased(world, store):
    await world.start(store, total=5, lines_per_segment=1)
    small = await world.start(store, total=3, lines_per_segment=1)
    leases = await store.segments.lease(world.worker, limit=0, ttl_s=30, preferred=[(small.id, 2)])
    assert [(it.segment.batch_id, it.segment.number) for it in leases] == [(small.id, 0), (small.id, 1)]
    assert await store.segments.lease(world.worker, limit=0, ttl_s=30) == []


async def test_a_preferred_batch_that_ends_or_expires_is_not_leased(world, store):
    ending, expired = await world.start(store), await world.start(store, expires_at=int(world.clock()) + 5)
    await world.apply(store, ending, Event.CANCEL_REQUESTED)
    world.clock.step(5)
    preferred = [(ending.id, 1), (expired.id, 1)]
    assert await store.segments.lease(world.worker, limit=0, ttl_s=30, preferred=preferred) == []


async def test_workers_that_prefer_the_same_batch_never_share_a_segment(world, store, other_store):
    batch = await world.start(store, total=30, lines_per_segment=1)
    asked = [
        one.segments.lease(world.worker, limit=0, ttl_s=30, preferred=[(batch.id, 2)])
        for one in (store, other_store) * 10
    ]
    leased = [lease.segment.number for leases in await asyncio.gather(*asked) for lease in leases]
    assert sorted(leased) == list(range(30))
