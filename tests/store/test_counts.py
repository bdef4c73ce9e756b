"""What processes count is stored, and its sum never falls."""

import asyncio

from nightmill.core.counts import ProcessCounts
from nightmill.ids import WorkerId

A, B = WorkerId("a"), WorkerId("b")


def counted(attempts: int) -> ProcessCounts:
    counts = ProcessCounts()
    for _ in range(attempts):
        counts.of_upstream("gpu").note_attempt("answered", 0.1)
    return counts


async def total(store) -> int:
    upstreams = (await store.counts.total()).upstreams
    return upstreams["gpu"].attempts["answered"] if upstreams else 0


async def test_a_report_replaces_that_of_the_same_process_only(store, other_store):
    assert await total(store) == 0
    assert await store.counts.report(A, counted(1), is_first=True)
    assert await other_store.counts.report(B, counted(10), is_first=True)
    assert await store.counts.report(A, counted(3), is_first=False)
    assert await total(store) == 13


async def test_the_sums_of_ended_processes_stay(store):
    await store.counts.report(A, counted(1), is_first=True)
    await store.counts.report(B, counted(10), is_first=True)
    await store.leases.release_of_worker(A)
    assert await total(store) == 11
    await store.leases.release_all()
    await store.leases.release_all()
    assert await total(store) == 11


async def test_a_process_that_starts_again_under_its_id_counts_on(store):
    await store.counts.report(A, counted(5), is_first=True)
    await store.counts.report(A, counted(1), is_first=True)
    assert await total(store) == 6


async def test_a_silent_process_counts_as_ended_and_is_not_counted_twice(world, store):
    await store.counts.report(A, counted(5), is_first=True)
    assert await store.counts.end_silent(max_age_s=60) == 0
    world.clock.step(60)
    assert await store.counts.end_silent(max_age_s=60) == 1
    assert not await store.counts.report(A, counted(7), is_first=False)
    assert await total(store) == 5


async def test_processes_that_end_at_the_same_time_are_all_counted(store, other_store):
    for number in range(6):
        await store.counts.report(WorkerId(f"w{number}"), counted(1), is_first=True)
    stores = (store, other_store) * 3
    await asyncio.gather(
        *(each.leases.release_of_worker(WorkerId(f"w{number}")) for number, each in enumerate(stores))
    )
    assert await total(store) == 6
