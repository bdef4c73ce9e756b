"""Slices: which finalizer may join which slice, the effect of late reports, and the rows that name pieces."""

from dataclasses import replace

import pytest

from nightmill.core.batch import Event, Status, Tally
from nightmill.core.file import Purpose
from nightmill.core.slice import JoinedPiece, JoinedSlice, cut_slices


async def finalizing(world, store, **changes):
    batch = await world.start(store, **changes)
    after = batch.after(Event.LAPSED, now=world.clock())
    assert await store.batches.move(after, expected=batch.status)
    return after


async def cut(world, store, *, count=2, **changes):
    """Cuts a batch into `count` slices."""
    batch = await finalizing(world, store, **changes)
    lease = await world.last_batch_lease(store)
    slices = list(cut_slices(batch.id, segments=count, segments_per_slice=1))
    assert await store.slices.cut(lease, slices)
    return batch, slices


def joined(lease, *, missing=0):
    it = lease.slice
    output = JoinedPiece(f"files/out.{it.number}.{lease.token}", 50)
    error = JoinedPiece(f"files/err.{it.number}.{lease.token}", 20) if missing else None
    return JoinedSlice(it, output, error, lines=5, missing=missing, tally=Tally(5 - missing))


def test_segments_are_cut_into_runs_that_cover_them():
    slices = list(cut_slices("batch_1", segments=7, segments_per_slice=3))
    assert [(it.number, it.first, it.count) for it in slices] == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]


async def test_slices_are_joined_by_several_finalizers_and_published_by_one(world, store, other_store):
    batch, slices = await cut(world, store)
    assert await world.last_batch_lease(store) is None, "published before all slices were joined"
    first = await store.slices.lease(world.worker, ttl_s=30)
    second = await other_store.slices.lease(world.other_worker, ttl_s=30)
    assert [first.slice, second.slice] == slices
    assert (first.batch.id, first.token, first.index_blob_key) == (batch.id, 1, f"indexes/{batch.id}")
    assert await store.slices.lease(world.worker, ttl_s=30) is None
    assert await store.slices.complete(first, joined(first))
    assert await world.last_batch_lease(store) is None
    assert await other_store.slices.complete(second, joined(second, missing=2))
    assert await store.slices.joined(batch.id) == [joined(first), joined(second, missing=2)]

    lease = await world.last_batch_lease(store)
    assert lease.is_sliced
    output = world.file(purpose=Purpose.BATCH_OUTPUT, blob_key="files/out.pieces")
    error = world.file(purpose=Purpose.BATCH_OUTPUT, blob_key="files/err.1.1")
    after = replace(lease.batch.after(Event.EXPIRED, now=world.clock()), output_file_id=output.id)
    pieces = {"files/out.pieces": ["files/out.0.1", "files/out.1.1"]}
    assert await store.batch_leases.publish(lease, after, files=[output, error], pieces=pieces)
    assert await store.slices.joined(batch.id) == []
    keys = ["files/out.0.1", "files/out.1.1", "files/err.1.1", "files/out.pieces"]
    assert await store.blob_references.referenced(keys) == set(keys)
    await store.files.delete(world.project, output.id)
    assert "files/out.0.1" not in await store.blob_references.unused()
    await store.blob_references.remove(["files/out.pieces"])
    assert {"files/out.0.1", "files/out.1.1"} <= set(await store.blob_references.unused())


async def test_the_lease_of_a_batch_without_slices_says_so(world, store):
    await finalizing(world, store)
    lease = await world.last_batch_lease(store)
    assert not lease.is_sliced
    assert await store.slices.lease(world.worker, ttl_s=30) is None


async def test_an_expired_batch_lease_cannot_cut_slices(world, store):
    batch = await finalizing(world, store)
    late = await world.last_batch_lease(store)
    world.clock.step(world.ttl_s + 1)
    lease = await world.last_batch_lease(store)
    assert not await store.slices.cut(late, list(cut_slices(batch.id, segments=2, segments_per_slice=1)))
    assert await store.slices.lease(world.worker, ttl_s=30) is None
    assert await store.batch_leases.renew(lease)


async def test_an_expired_slice_lease_goes_to_another_worker_and_its_old_holder_changes_nothing(
    world, store, other_store
):
    batch, _ = await cut(world, store, count=1)
    late = await store.slices.lease(world.worker, ttl_s=30)
    world.clock.step(29)
    assert await store.slices.renew(late)
    world.clock.step(29)
    assert await other_store.slices.lease(world.other_worker, ttl_s=30) is None
    world.clock.step(2)
    quick = await other_store.slices.lease(world.other_worker, ttl_s=30)
    assert (quick.slice, quick.token) == (late.slice, late.token + 1)
    assert not await store.slices.renew(late)
    assert not await store.slices.complete(late, joined(late))
    await store.slices.release(late)
    assert await store.blob_references.referenced(["files/out.0.1", "files/out.0.2"]) == set()
    assert await other_store.slices.complete(quick, joined(quick))
    assert not await store.slices.complete(late, joined(late))
    assert await store.slices.joined(batch.id) == [joined(quick)]
    assert await store.blob_references.referenced(["files/out.0.1", "files/out.0.2"]) == {"files/out.0.2"}


async def test_a_released_slice_can_be_leased_again(world, store):
    await cut(world, store, count=1)
    first = await store.slices.lease(world.worker, ttl_s=30)
    await store.slices.release(first)
    second = await store.slices.lease(world.other_worker, ttl_s=30)
    assert second.token == 2
    assert await store.leases.release_of_worker(world.worker) == 0
    assert await store.leases.release_of_worker(world.other_worker) == 1
    assert (await store.slices.lease(world.worker, ttl_s=30)).token == 3
    assert await store.leases.release_all() == 1
    assert (await store.slices.lease(world.worker, ttl_s=30)).token == 4


@pytest.mark.parametrize(("lines", "missing", "answered"), [(0, 0, 0), (5, 1, 5), (5, 0, 4)])
async def test_a_slice_with_a_wrong_line_count_is_not_completed(world, store, lines, missing, answered):
    await cut(world, store, count=1)
    lease = await store.slices.lease(world.worker, ttl_s=30)
    with pytest.raises(ValueError, match="slice 0 has"):
        await store.slices.complete(
            lease, JoinedSlice(lease.slice, None, None, lines, missing, Tally(answered))
        )


async def test_a_cancelled_batch_is_also_cut_into_slices(world, store):
    batch = await world.start(store)
    after = batch.after(Event.CANCEL_REQUESTED, now=world.clock())
    assert await store.batches.move(after, expected=batch.status)
    lease = await world.last_batch_lease(store)
    assert await store.slices.cut(lease, list(cut_slices(batch.id, segments=2, segments_per_slice=2)))
    assert (await store.slices.lease(world.worker, ttl_s=30)).batch.status is Status.CANCELLING
