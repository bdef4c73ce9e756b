"""Which processes are at work, and what each holds."""

from nightmill.core.counts import ProcessCounts
from nightmill.core.process_info import ProcessInfo
from nightmill.ids import WorkerId
from nightmill.store.workers import KnownProcess, LeaseKind

A, B = WorkerId("worker_a"), WorkerId("worker_b")
INFO = ProcessInfo("gpu-3", 4711, ("worker",), "0.9", 1_760_000_000.0)


async def test_a_process_is_known_with_what_it_said_first_until_it_has_ended(store):
    await store.counts.report(A, ProcessCounts(), is_first=True, info=INFO)
    await store.counts.report(A, ProcessCounts(), is_first=False)
    await store.counts.report(B, ProcessCounts(), is_first=True)
    assert await store.workers.processes(most=10) == [KnownProcess(A, INFO, 0.0), KnownProcess(B, None, 0.0)]
    await store.leases.release_of_worker(A)
    await store.leases.release_of_worker(B)
    assert await store.workers.processes(most=10) == []


async def test_a_report_on_upstreams_is_a_sign_of_life(world, store):
    for process in (A, B):
        await store.counts.report(process, ProcessCounts(), is_first=True)
    world.clock.step(50)
    await store.upstreams.report(A, {"gpu": "{}"})
    world.clock.step(5)
    silent = {process.id: process.silent_s for process in await store.workers.processes(most=10)}
    assert silent == {A: 5.0, B: 55.0}


async def test_leased_segments_are_summed_by_holder_and_batch(world, store):
    batch = await world.start(store)
    leases = await world.lease(store, limit=2)
    held = await store.workers.leases(most=10)
    assert [(one.holder, one.kind, one.batch_id) for one in held] == [
        (WorkerId("worker-1"), LeaseKind.SEGMENTS, batch.id)
    ]
    assert (held[0].count, held[0].lines) == (2, sum(lease.segment.count for lease in leases))
    assert held[0].expires_in_s > 0


async def test_a_batch_that_is_validated_is_held_by_its_intake(world, store):
    batch = world.batch()
    await store.batches.create(batch)
    assert await store.workers.leases(most=10) == []
    await world.batch_lease(store)
    (held,) = await store.workers.leases(most=10)
    assert (held.kind, held.batch_id, held.status) == (LeaseKind.BATCH, batch.id, "validating")
