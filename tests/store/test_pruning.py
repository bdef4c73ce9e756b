"""Old rows are removed once nothing needs them, and only then."""

from dataclasses import replace
from typing import Any

import pytest

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.batch import Batch, Event, Status
from nightmill.core.file import Purpose
from nightmill.core.history import EventKind
from nightmill.core.legal_hold import HoldKind
from nightmill.ids import FileId
from nightmill.store import batch_events
from nightmill.store.batch_origins import BatchOrigin
from nightmill.store.idempotency_keys import Idempotency
from nightmill.store.pruning import OldObjects

DAY_S = 86_400
KEPT_S = 7 * DAY_S
BY = Actor("operator", "me")


async def ended(world: Any, store: Any, **changes: Any) -> Batch:
    """A batch that has failed validation, with a history."""
    made = await store.batches.create(world.batch(**changes), Idempotency(world.batch().id, "print"))
    lease = await world.batch_lease(store)
    assert await store.batch_leases.reject(lease, lease.batch.after(Event.REJECTED, now=world.clock()))
    await store.database.write(
        lambda connection: batch_events.record(connection, made.id, EventKind.CREATED, by=None)
    )
    return await world.read_again(store, made)


async def completed(world: Any, store: Any) -> Batch:
    """A completed batch with one output file."""
    made = await world.start(store, total=5)
    await world.complete(store, await world.lease(store))
    await world.apply(store, made, Event.SETTLED)
    lease = await world.last_batch_lease(store)
    output = world.file(purpose=Purpose.BATCH_OUTPUT, id=FileId(f"file-out-{made.id}"))
    after = lease.batch.after(Event.COMPLETED, now=world.clock())
    after = replace(after, output_file_id=output.id, tally=world.tally(5))
    assert await store.batch_leases.publish(lease, after, files=[output])
    index = f"indexes/{made.id}"
    assert index in await store.blob_references.unused()
    await store.blob_references.remove([index])
    return await world.read_again(store, made)


async def exists(store: Any, batch: Batch) -> bool:
    return await store.batches.get(batch.project_id, batch.id) is not None


async def rows_of(store: Any, batch: Batch) -> int:
    """Rows of the batch in all other tables."""
    tables = ("batch_event", "batch_sample", "batch_report", "line_report", "batch_origin", "segment")

    def count(connection: Any) -> int:
        queries = [f"SELECT count(*) FROM {table} WHERE batch_id = '{batch.id}'" for table in tables]
        queries.append(f"SELECT count(*) FROM idempotency WHERE object_id = '{batch.id}'")
        return sum(connection.exec_driver_sql(query).scalar_one() for query in queries)

    return await store.database.read(count)


async def test_a_batch_without_files_leaves_with_all_its_rows_when_it_is_old(world, store):
    batch = await ended(world, store)
    young = await ended(world, store)
    assert await rows_of(store, batch) > 1
    await store.database.write(
        lambda connection: connection.exec_driver_sql(
            f"UPDATE batch SET failed_at = failed_at - {KEPT_S + 1} WHERE id = '{batch.id}'"
        )
    )
    assert await store.pruning.remove_batches(kept_s=KEPT_S, by=BY) == 1
    assert await store.pruning.remove_batches(kept_s=KEPT_S, by=BY) == 0
    assert not await exists(store, batch)
    assert await rows_of(store, batch) == 0
    assert await exists(store, young)
    newest = (await store.audit.list()).items[0]
    assert (newest.action, newest.subject_id, newest.by.name) == (
        AuditAction.BATCH_REMOVED, batch.id, "operator"
    )  # fmt: skip


async def test_an_unfinished_batch_stays_whatever_its_age(world, store):
    batch = await world.start(store)
    world.clock.step(1_000 * DAY_S)
    assert await store.pruning.remove_batches(kept_s=KEPT_S) == 0
    assert (await world.read_again(store, batch)).status is Status.IN_PROGRESS


async def test_a_batch_stays_as_long_as_one_of_its_files(world, store):
    batch = await completed(world, store)
    world.clock.step(KEPT_S + 1)
    assert await store.pruning.remove_batches(kept_s=KEPT_S) == 0
    assert await store.pruning.delete_files(kept_s=KEPT_S, by=BY) == 1
    assert await store.pruning.remove_batches(kept_s=KEPT_S) == 1
    assert not await exists(store, batch)


async def test_usage_is_kept_when_its_batches_are_removed(world, store):
    await completed(world, store)
    before = await store.usage.totals(())
    world.clock.step(KEPT_S + 1)
    await store.pruning.delete_files(kept_s=KEPT_S, by=BY)
    await store.pruning.remove_batches(kept_s=KEPT_S)
    assert before
    assert await store.usage.totals(()) == before


@pytest.mark.parametrize("hold_kind", list(HoldKind))
async def test_what_is_held_stays(world, store, hold_kind):
    batch = await completed(world, store)
    subject = {HoldKind.BATCH: batch.id, HoldKind.FILE: batch.output_file_id, HoldKind.PROJECT: world.project}
    await store.holds.set(hold_kind, subject[hold_kind])
    world.clock.step(KEPT_S + 1)
    assert await store.pruning.old(kept_s=KEPT_S) == OldObjects(0, 0, 0)
    assert await store.pruning.delete_files(kept_s=KEPT_S, by=BY) == 0
    assert await store.pruning.remove_batches(kept_s=KEPT_S) == 0
    assert await exists(store, batch)


async def test_the_origin_of_a_retry_stays_as_long_as_the_retry(world, store):
    origin = await ended(world, store)
    retry = world.batch(input_file_id=FileId("file-retry"))
    link = BatchOrigin(retry.id, origin.id, 0, 1)
    await store.batch_origins.create(retry, world.file(id=FileId("file-retry")), [link])
    world.clock.step(KEPT_S + 1)
    assert await store.pruning.remove_batches(kept_s=KEPT_S) == 0
    lease = await world.batch_lease(store)
    assert await store.batch_leases.reject(lease, lease.batch.after(Event.REJECTED, now=world.clock()))
    world.clock.step(KEPT_S + 1)
    assert await store.pruning.remove_batches(kept_s=KEPT_S) == 1
    assert await store.pruning.remove_batches(kept_s=KEPT_S) == 1
    assert not await exists(store, origin)


async def test_a_project_is_pruned_alone(world, store):
    mine, other = await ended(world, store), await ended(world, store, project_id=world.other_project)
    await store.files.add(world.file(project_id=world.other_project))
    world.clock.step(KEPT_S + 1)
    assert await store.pruning.old(kept_s=KEPT_S, project_id=world.project) == OldObjects(0, 0, 1)
    assert await store.pruning.old(kept_s=KEPT_S) == OldObjects(1, 10, 2)
    assert await store.pruning.delete_files(kept_s=KEPT_S, project_id=world.project, by=BY) == 0
    assert await store.pruning.remove_batches(kept_s=KEPT_S, project_id=world.project) == 1
    assert not await exists(store, mine)
    assert await exists(store, other)


async def test_old_files_of_batches_are_deleted_but_no_other_purpose_and_no_input_in_use(world, store):
    await world.start(store, input_file_id=FileId("file-used"))
    old = [world.file(), world.file(purpose=Purpose.BATCH_OUTPUT)]
    kept = [world.file(purpose=Purpose.USER_DATA), world.file(id=FileId("file-used"))]
    for made in (*old, *kept):
        await store.files.add(made)
    world.clock.step(KEPT_S + 1)
    young = await store.files.add(world.file())
    assert (await store.pruning.old(kept_s=KEPT_S)).files == 2
    assert await store.pruning.delete_files(kept_s=KEPT_S, by=BY) == 2
    assert {it.id for it in (await store.files.list(world.project)).items} == {
        young.id, *(it.id for it in kept)
    }  # fmt: skip
    consumption = await store.projects.consumption(world.project)
    assert consumption.stored_bytes == 30


async def test_the_row_of_a_deleted_file_leaves_after_its_bytes_and_after_its_batch(world, store):
    batch = await completed(world, store)
    made = await store.files.add(world.file())
    for file_id in (made.id, batch.output_file_id):
        assert await store.files.delete(world.project, file_id)
    world.clock.step(KEPT_S + 1)
    assert await store.pruning.remove_tombstones(kept_s=KEPT_S) == 0  # their bytes are still there
    await store.blob_references.remove(await store.blob_references.unused())
    assert await store.pruning.remove_tombstones(kept_s=KEPT_S) == 1  # a batch names the other
    assert await store.pruning.remove_batches(kept_s=KEPT_S) == 1
    assert await store.pruning.remove_tombstones(kept_s=KEPT_S) == 1
    assert await store.pruning.remove_tombstones(kept_s=KEPT_S) == 0


async def test_an_upload_leaves_with_its_parts_once_they_are_deleted(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    part = world.upload_part(upload)
    await store.uploads.add_part(part)
    world.clock.step(KEPT_S + 1)
    assert await store.pruning.remove_tombstones(kept_s=KEPT_S) == 0
    await store.uploads.expire()
    assert await store.pruning.remove_tombstones(kept_s=KEPT_S) == 0
    await store.blob_references.remove([part.blob_key])
    assert await store.pruning.remove_tombstones(kept_s=KEPT_S) == 1
    assert await store.uploads.get(world.project, upload.id) is None


async def test_recorded_attempts_of_a_removed_batch_are_to_be_deleted(world, store):
    batch = await ended(world, store)
    unfinished = await world.start(store)
    asked = [batch.id, unfinished.id, "batch_removed"]
    assert await store.blob_references.ended_without_files(asked) == {batch.id, "batch_removed"}
