"""Files and uploads: lookups, pages, tombstones, and which blobs may be deleted."""

import asyncio
from dataclasses import replace

import pytest

from nightmill.core.batch import Event, Status
from nightmill.core.file import Purpose, UploadStatus
from nightmill.errors import ConflictError, NotFoundError
from nightmill.ids import FileId, UploadId
from nightmill.store import Idempotency


async def test_a_file_is_read_back_as_it_was_added(world, store):
    added = world.file(filename='we"ird/..\\ña\n.jsonl', expires_at=int(world.clock()) + 60)
    assert await store.files.add(added) == added
    assert await store.files.get(world.project, added.id) == added


async def test_a_file_of_another_project_looks_unknown(world, store):
    added = await store.files.add(world.file())
    assert await store.files.get(world.other_project, added.id) is None
    assert not await store.files.delete(world.other_project, added.id)
    assert await store.files.get(world.project, added.id) == added


async def test_a_file_is_not_found_from_the_moment_it_expires(world, store):
    added = await store.files.add(world.file(expires_at=int(world.clock()) + 60))
    world.clock.step(59)
    assert await store.files.get(world.project, added.id) == added
    world.clock.step(1)
    assert await store.files.get(world.project, added.id) is None
    assert (await store.files.list(world.project)).items == ()
    assert await store.files.delete_expired() == 1
    assert await store.files.delete_expired() == 0


async def test_a_file_is_deleted_only_once(world, store):
    added = await store.files.add(world.file())
    assert await store.files.delete(world.project, added.id)
    assert not await store.files.delete(world.project, added.id)
    assert await store.files.get(world.project, added.id) is None


async def test_the_same_id_twice_is_refused(world, store):
    added = await store.files.add(world.file())
    with pytest.raises(ValueError, match="rules"):
        await store.files.add(added)


async def test_files_made_in_one_second_are_listed_newest_first(world, store):
    added = [await store.files.add(world.file()) for _ in range(5)]
    assert (await store.files.list(world.project)).items == tuple(reversed(added))
    assert (await store.files.list(world.project, order="asc")).items == tuple(added)


async def test_files_with_an_older_timestamp_are_listed_after_newer_files(world, store):
    newer = await store.files.add(world.file())
    older = await store.files.add(world.file(created_at=newer.created_at - 5))
    assert (await store.files.list(world.project)).items == (newer, older)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_are_stable_while_files_are_added_and_deleted(world, store, order):
    added = [await store.files.add(world.file()) for _ in range(7)]
    expected = added if order == "asc" else added[::-1]
    first = await store.files.list(world.project, limit=3, order=order)
    assert first.items == tuple(expected[:3])
    assert first.has_more
    await store.files.delete(world.project, first.items[-1].id)
    if order == "desc":
        await store.files.add(world.file())
    second = await store.files.list(world.project, after=first.items[-1].id, limit=4, order=order)
    assert second.items == tuple(expected[3:])
    assert not second.has_more


async def test_a_page_of_exactly_the_limit_has_no_more(world, store):
    for _ in range(3):
        await store.files.add(world.file())
    assert not (await store.files.list(world.project, limit=3)).has_more
    assert (await store.files.list(world.project, limit=2)).has_more


async def test_an_unknown_cursor_is_not_found(world, store):
    foreign = await store.files.add(world.file(project_id=world.other_project))
    for cursor in (FileId("file-unknown"), foreign.id):
        with pytest.raises(NotFoundError, match=cursor) as caught:
            await store.files.list(world.project, after=cursor)
        assert caught.value.param == "after"


async def test_files_are_listed_by_purpose(world, store):
    await store.files.add(world.file())
    output = await store.files.add(world.file(purpose=Purpose.BATCH_OUTPUT))
    assert (await store.files.list(world.project, purpose="batch_output")).items == (output,)
    assert (await store.files.list(world.project, purpose="no such purpose")).items == ()


async def test_a_repeated_create_returns_the_first_file(world, store):
    once = Idempotency("k", "f")
    first = await store.files.add(world.file(), once)
    assert await store.files.add(world.file(), once) == first
    assert (await store.files.list(world.project)).items == (first,)


async def test_a_key_used_for_another_request_is_a_conflict(world, store):
    await store.files.add(world.file(), Idempotency("k", "f"))
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        await store.files.add(world.file(), Idempotency("k", "other"))


async def test_a_key_belongs_to_one_project_and_one_operation(world, store):
    once = Idempotency("k", "f")
    await store.files.add(world.file(), once)
    foreign = world.file(project_id=world.other_project)
    assert await store.files.add(foreign, once) == foreign
    batch = world.batch()
    assert await store.batches.create(batch, once) == batch


async def test_a_key_is_forgotten_after_a_day(world, store):
    await store.files.add(world.file(), Idempotency("k", "f"))
    world.clock.step(86_400)
    later = world.file()
    assert await store.files.add(later, Idempotency("k", "other")) == later


async def test_concurrent_creates_with_one_key_make_one_file(world, store, other_store):
    once = Idempotency("k", "f")
    creates = [one.files.add(world.file(), once) for one in (store, other_store) * 5]
    made = await asyncio.gather(*creates)
    assert len({file.id for file in made}) == 1
    assert len((await store.files.list(world.project)).items) == 1


# --- bytes ---


async def test_the_blob_of_a_deleted_file_is_listed_as_unused_until_its_reference_is_removed(world, store):
    added = await store.files.add(world.file())
    assert await store.blob_references.unused() == []
    await store.files.delete(world.project, added.id)
    assert await store.blob_references.unused() == [added.blob_key]
    await store.blob_references.remove([added.blob_key])
    assert await store.blob_references.unused() == []
    page = await store.files.list(world.project, after=added.id)
    assert page.items == ()


async def test_the_input_blob_of_an_unfinished_batch_is_kept(world, store):
    added = await store.files.add(world.file())
    batch = await world.start(store, input_file_id=added.id, input_blob_key=added.blob_key)
    await store.files.delete(world.project, added.id)
    assert await store.blob_references.unused() == []
    await world.apply(store, batch, Event.CANCEL_REQUESTED)
    assert await store.blob_references.unused() == []
    lease = await world.last_batch_lease(store)
    after = lease.batch.after(Event.CANCELLED, now=world.clock())
    assert await store.batch_leases.publish(lease, after, files=())
    index_blob_key = f"indexes/{batch.id}"
    assert sorted(await store.blob_references.unused()) == [added.blob_key, index_blob_key]
    assert len(await store.blob_references.unused(limit=1)) == 1
    await store.blob_references.remove([added.blob_key, index_blob_key])
    assert await store.blob_references.unused() == []


async def test_a_blob_that_another_file_references_is_kept(world, store):
    added = await store.files.add(world.file())
    await store.files.add(world.file(blob_key=added.blob_key))
    await store.files.delete(world.project, added.id)
    assert await store.blob_references.unused() == []


async def test_removing_an_empty_list_of_references_does_nothing(store):
    await store.blob_references.remove([])


# --- uploads ---


async def test_an_upload_becomes_its_file(world, store):
    upload = world.upload(file_expires_after_s=3_600)
    await store.uploads.add(upload)
    parts = [world.upload_part(upload), world.upload_part(upload)]
    for part in parts:
        assert await store.uploads.add_part(part)
    assert await store.uploads.get(world.project, upload.id) == upload
    assert await store.uploads.parts(upload.id) == parts
    made = world.file()
    assert await store.uploads.complete(upload, made)
    completed = replace(upload, status=UploadStatus.COMPLETED, file_id=made.id)
    assert await store.uploads.get(world.project, upload.id) == completed
    assert await store.files.get(world.project, made.id) == made


async def test_an_upload_ends_only_once(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    assert await store.uploads.cancel(upload)
    made = world.file()
    assert not await store.uploads.cancel(upload)
    assert not await store.uploads.complete(upload, made)
    assert not await store.uploads.add_part(world.upload_part(upload))
    assert await store.files.get(world.project, made.id) is None
    assert (await store.uploads.get(world.project, upload.id)).status is UploadStatus.CANCELLED


async def test_an_upload_expires_after_one_hour(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    assert await store.uploads.expire() == 0
    world.clock.step(3_600)
    assert (await store.uploads.get(world.project, upload.id)).status is UploadStatus.EXPIRED
    assert not await store.uploads.add_part(world.upload_part(upload))
    assert not await store.uploads.complete(upload, world.file())
    assert not await store.uploads.cancel(upload)
    assert await store.uploads.expire() == 1
    assert (await store.uploads.get(world.project, upload.id)).status is UploadStatus.EXPIRED


async def test_the_parts_of_an_ended_upload_may_be_deleted(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    part = world.upload_part(upload)
    await store.uploads.add_part(part)
    assert await store.blob_references.unused() == []
    await store.uploads.cancel(upload)
    assert await store.blob_references.unused() == [part.blob_key]
    await store.blob_references.remove([part.blob_key])
    assert await store.blob_references.unused() == []


async def test_a_part_that_became_the_file_is_kept(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    part = world.upload_part(upload)
    await store.uploads.add_part(part)
    made = world.file(blob_key=part.blob_key)
    await store.uploads.complete(upload, made)
    assert await store.blob_references.unused() == []
    await store.files.delete(world.project, made.id)
    assert await store.blob_references.unused() == [part.blob_key]


async def test_parts_that_became_pieces_of_a_file_are_kept_until_the_list_of_pieces_is_deleted(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    parts = [world.upload_part(upload) for _ in range(3)]
    for part in parts:
        await store.uploads.add_part(part)
    keys = [part.blob_key for part in parts]
    made = world.file(blob_key="files/one.pieces")
    await store.uploads.complete(upload, made, part_keys=keys[:2])
    assert await store.blob_references.unused() == [keys[2]], "the third part is not referenced"
    await store.blob_references.remove([keys[2]])
    assert await store.blob_references.referenced([*keys, "files/one.pieces"]) == {
        *keys[:2],
        "files/one.pieces",
    }
    batch = await store.batches.create(world.batch(input_blob_key="files/one.pieces"))
    await store.files.delete(world.project, made.id)
    assert await store.blob_references.unused() == [], "an unfinished batch reads the file"
    await store.batches.move(batch.after(Event.CANCEL_REQUESTED, now=1), expected=batch.status)
    lease = await store.batch_leases.lease((Status.CANCELLING,), world.worker, ttl_s=30)
    await store.batch_leases.publish(lease, lease.batch.after(Event.CANCELLED, now=1), files=[])
    assert await store.blob_references.unused() == ["files/one.pieces"]
    await store.blob_references.remove(["files/one.pieces"])
    assert sorted(await store.blob_references.unused()) == sorted(keys[:2])
    assert await store.blob_references.referenced(keys) == set(keys[:2])
    await store.blob_references.remove(keys[:2])
    assert await store.blob_references.unused() == []
    assert await store.blob_references.referenced(keys) == set()


async def test_a_part_that_became_the_file_is_no_longer_tracked_as_a_part(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    part = world.upload_part(upload)
    await store.uploads.add_part(part)
    made = world.file(blob_key=part.blob_key)
    await store.uploads.complete(upload, made, part_keys=[part.blob_key])
    assert [it.blob_key for it in await store.uploads.parts(upload.id)] == [""]
    assert await store.blob_references.unused() == []
    assert await store.blob_references.referenced([part.blob_key]) == {part.blob_key}
    await store.files.delete(world.project, made.id)
    assert await store.blob_references.unused() == [part.blob_key]


async def test_a_cancelled_upload_cannot_be_completed_and_its_parts_may_be_deleted(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    part = world.upload_part(upload)
    await store.uploads.add_part(part)
    await store.uploads.cancel(upload)
    made = world.file(blob_key="files/one.pieces")
    assert not await store.uploads.complete(upload, made, part_keys=[part.blob_key])
    assert await store.blob_references.unused() == [part.blob_key]


async def test_an_upload_of_another_project_looks_unknown(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    assert await store.uploads.get(world.other_project, upload.id) is None
    assert await store.uploads.get(world.project, UploadId("upload_unknown")) is None


async def test_of_two_concurrent_calls_that_end_an_upload_one_succeeds(world, store, other_store):
    upload = world.upload()
    await store.uploads.add(upload)
    ended = await asyncio.gather(
        store.uploads.complete(upload, world.file()), other_store.uploads.cancel(upload)
    )
    assert sorted(ended) == [False, True]
