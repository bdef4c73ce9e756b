"""Limits, holds, usage and the audit log: each store verb, on both databases."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text

from nightmill.core.api_key import ApiKey, Scope
from nightmill.core.audit import Actor, AuditAction
from nightmill.core.batch import Event, Status
from nightmill.core.legal_hold import HoldKind
from nightmill.core.limits import Limits, ProjectRules
from nightmill.errors import ConflictError, NotFoundError, QuotaError, RequestError
from nightmill.store import Idempotency, files

BY = Actor("key_1", "wxyz", "192.0.2.7", "req_1")


async def stored_bytes(world, store) -> int:
    return (await store.projects.consumption(world.project)).stored_bytes


async def audit_actions(store, **asked) -> list[tuple[str, str]]:
    return [(entry.action, entry.subject_id) for entry in (await store.audit.list(**asked)).items]


async def publish(world, store, made, event=Event.COMPLETED, *, tally=None, files=()):
    lease = await world.last_batch_lease(store)
    after = lease.batch.after(event, now=world.clock())
    if tally is not None:
        after = replace(after, tally=tally)
    assert await store.batch_leases.publish(lease, after, files=files)
    return after


# --- limits -----------------------------------------------------------------------------------------------


async def test_a_project_cannot_open_more_batches_than_its_limit(world, store):
    limits = Limits(open_batches=2)
    first, _ = [await store.batches.create(world.batch(), limits=limits) for _ in range(2)]
    with pytest.raises(QuotaError, match="2 enqueued batches") as caught:
        await store.batches.create(world.batch(), limits=limits)
    assert caught.value.headers["x-should-retry"] == "false"
    await store.batches.create(world.batch(project_id=world.other_project), limits=limits)
    assert await store.batches.move(
        first.after(Event.CANCEL_REQUESTED, now=world.clock()), expected=Status.VALIDATING
    )
    with pytest.raises(QuotaError):  # it has not ended yet
        await store.batches.create(world.batch(), limits=limits)
    await publish(world, store, first, Event.CANCELLED)
    await store.batches.create(world.batch(), limits=limits)


async def test_concurrent_creates_succeed_exactly_up_to_the_limit(world, store, other_store):
    limits = Limits(open_bytes=50)

    async def create(one) -> bool:
        try:
            await one.batches.create(world.batch(input_bytes=10), limits=limits)
        except QuotaError:
            return False
        return True

    made = await asyncio.gather(*(create((store, other_store)[number % 2]) for number in range(12)))
    assert sum(made) == 5
    assert (await store.projects.consumption(world.project)).open.bytes == 50


async def test_concurrent_file_uploads_succeed_exactly_up_to_the_limit(world, store, other_store):
    limits = Limits(stored_bytes=35)

    async def add(one) -> bool:
        try:
            await one.files.add(world.file(), limits=limits)
        except RequestError as error:
            assert error.code == "storage_limit_exceeded"
            return False
        return True

    kept = await asyncio.gather(*(add((store, other_store)[number % 2]) for number in range(8)))
    assert sum(kept) == 3
    assert await stored_bytes(world, store) == 30


async def test_a_refused_create_does_not_use_up_its_idempotency_key(world, store):
    once = Idempotency("key", "print")
    with pytest.raises(RequestError, match="Split the file"):
        await store.batches.create(world.batch(input_bytes=2), once, limits=Limits(open_bytes=1))
    made = await store.batches.create(world.batch(input_bytes=2), once, limits=Limits(open_bytes=2))
    assert await store.batches.create(world.batch(input_bytes=2), once, limits=Limits(open_bytes=2)) == made


async def test_tokens_beyond_the_models_limit_fail_the_batch_as_at_openai(world, store):
    limits = Limits(enqueued_tokens=1_500)

    async def accept(tokens: int, model: str = "tiny"):
        await store.batches.create(world.batch())
        lease = await world.batch_lease(store)
        after = lease.batch.after(Event.ACCEPTED, now=world.clock())
        after = replace(after, model=model, total=1, enqueued_tokens=tokens)
        return await store.batch_leases.accept(lease, after, index_blob_key="i", segments=[], limits=limits)

    assert (await accept(1_000)).status is Status.IN_PROGRESS
    refused = await accept(501)
    assert refused.status is Status.FAILED
    (error,) = refused.errors
    assert error.code == "token_limit_exceeded"
    assert error.message == (
        "Enqueued token limit reached for tiny in project proj_a. Limit: 1,500 enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    )
    assert await world.read_again(store, refused) == refused
    assert (await accept(1_500, "other")).status is Status.IN_PROGRESS
    assert (await accept(500)).status is Status.IN_PROGRESS
    assert (await store.projects.consumption(world.project)).enqueued_tokens == {
        "tiny": 1_500,
        "other": 1_500,
    }


async def test_lines_beyond_the_limit_fail_the_batch_and_a_used_up_limit_refuses_the_create(world, store):
    limits = Limits(open_lines=10)

    async def accept(total: int):
        await store.batches.create(world.batch(), limits=limits)
        lease = await world.batch_lease(store)
        after = replace(lease.batch.after(Event.ACCEPTED, now=world.clock()), total=total)
        return await store.batch_leases.accept(lease, after, index_blob_key="i", segments=[], limits=limits)

    assert (await accept(8)).status is Status.IN_PROGRESS
    (error,) = (await accept(3)).errors
    assert error.code == "request_limit_exceeded"
    assert (await accept(2)).status is Status.IN_PROGRESS
    with pytest.raises(QuotaError, match="10 enqueued requests"):
        await store.batches.create(world.batch(), limits=limits)


async def test_rules_of_a_project_override_the_settings(world, store):
    assert await store.projects.rules(world.project) == ProjectRules()
    rules = ProjectRules(open_batches=1, stored_bytes=0, output_ttl_s=3_600)
    await store.projects.set_rules(world.project, rules, by=BY)
    assert await store.projects.rules(world.project) == rules
    await store.batches.create(world.batch())
    with pytest.raises(QuotaError):
        await store.batches.create(world.batch(), limits=Limits(open_batches=5))
    await store.files.add(world.file(), limits=Limits(stored_bytes=1))
    await store.projects.set_rules(world.project, ProjectRules())
    await store.batches.create(world.batch(), limits=Limits(open_batches=5))
    assert await stored_bytes(world, store) == 10


async def test_stored_bytes_of_a_project_count_its_files_that_are_not_deleted(world, store):
    upload = world.upload()
    await store.uploads.add(upload)
    await store.uploads.complete(upload, world.file(size_bytes=100))
    short = await store.files.add(world.file(expires_at=int(world.clock()) + 10))
    gone = await store.files.add(world.file())
    assert await stored_bytes(world, store) == 120
    assert await store.files.delete(world.project, gone.id)
    assert not await store.files.delete(world.project, gone.id)
    world.clock.step(11)
    assert await store.files.delete_expired() == 1
    assert await stored_bytes(world, store) == 100
    assert await store.files.get(world.project, short.id) is None
    made = await world.start(store)
    await world.apply(store, made, Event.CANCEL_REQUESTED)
    await publish(world, store, made, Event.CANCELLED, files=[world.file(size_bytes=7)])
    assert await stored_bytes(world, store) == 107


# --- holds ------------------------------------------------------------------------------------------------


async def test_a_held_file_cannot_be_deleted_and_stays_readable(world, store):
    held = await store.files.add(world.file(expires_at=int(world.clock()) + 10))
    assert await store.holds.set(HoldKind.FILE, held.id, reason="case 7")
    assert not await store.holds.set(HoldKind.FILE, held.id)
    world.clock.step(11)
    assert await store.files.delete_expired() == 0
    with pytest.raises(ConflictError, match="legal hold") as caught:
        await store.files.delete(world.project, held.id)
    assert caught.value.code == "legal_hold"
    assert await store.files.get(world.project, held.id) == held
    assert (await store.files.list(world.project)).items == (held,)
    assert await store.blob_references.unused() == []
    (hold,) = await store.holds.list()
    assert (hold.subject_id, hold.reason) == (held.id, "case 7")
    assert await store.holds.clear(HoldKind.FILE, held.id)
    assert not await store.holds.clear(HoldKind.FILE, held.id)
    assert await store.files.get(world.project, held.id) is None
    assert await store.files.delete_expired() == 1


async def test_nothing_of_a_held_project_is_deleted_and_other_projects_are_unaffected(world, store):
    held, other = world.file(), world.file(project_id=world.other_project)
    gone = world.file()
    for file in (held, other, gone):
        await store.files.add(file)
    await store.files.delete(world.project, gone.id)
    await store.holds.set(HoldKind.PROJECT, world.project)
    with pytest.raises(ConflictError):
        await store.files.delete(world.project, held.id)
    assert await store.files.delete(world.other_project, other.id)
    assert await store.blob_references.unused() == [
        other.blob_key
    ]  # blobs of files deleted before the hold are kept too
    await store.holds.clear(HoldKind.PROJECT, world.project)
    assert set(await store.blob_references.unused()) == {other.blob_key, gone.blob_key}


async def test_a_held_batch_keeps_its_input_output_and_error_file(world, store):
    files = [await store.files.add(world.file()) for _ in range(3)]
    source, output, error = files
    made = await world.start(store, input_file_id=source.id, input_blob_key=source.blob_key)
    await store.holds.set(HoldKind.BATCH, made.id)
    await world.apply(store, made, Event.CANCEL_REQUESTED)
    lease = await world.last_batch_lease(store)
    after = lease.batch.after(Event.CANCELLED, now=world.clock())
    after = replace(after, output_file_id=output.id, error_file_id=error.id)
    assert await store.batch_leases.publish(lease, after, files=[])
    for file in files:
        with pytest.raises(ConflictError):
            await store.files.delete(world.project, file.id)
    await store.holds.clear(HoldKind.BATCH, made.id)
    for file in files:
        assert await store.files.delete(world.project, file.id)


async def test_a_held_batch_keeps_its_input_blob_after_the_input_file_was_deleted(world, store):
    source = await store.files.add(world.file())
    made = await world.start(store, input_file_id=source.id, input_blob_key=source.blob_key)
    await store.files.delete(world.project, source.id)
    await store.holds.set(HoldKind.BATCH, made.id)
    await world.apply(store, made, Event.CANCEL_REQUESTED)
    await publish(world, store, made, Event.CANCELLED)
    assert source.blob_key not in await store.blob_references.unused()
    await store.holds.clear(HoldKind.BATCH, made.id)
    assert source.blob_key in await store.blob_references.unused()


async def test_a_hold_on_a_missing_file_or_batch_is_an_error(world, store):
    gone = await store.files.add(world.file())
    await store.files.delete(world.project, gone.id)
    for kind, subject_id in [(HoldKind.FILE, gone.id), (HoldKind.BATCH, "batch_unknown")]:
        with pytest.raises(NotFoundError, match=subject_id):
            await store.holds.set(kind, subject_id)
    assert await store.holds.list() == []


@pytest.mark.parametrize("kind", ["postgres"])
async def test_setting_a_hold_waits_for_a_deletion_in_progress(kind, world, store, other_store):
    """Otherwise a file could disappear after the hold was confirmed."""
    file = await store.files.add(world.file())
    is_in, go_on = asyncio.Event(), asyncio.Event()

    async def delete_slowly() -> None:
        async with store.database._engine.begin() as connection:
            await connection.execute(text("SELECT 1 FROM project FOR UPDATE"))
            is_in.set()
            await go_on.wait()
            await connection.execute(text("UPDATE file SET deleted_at = 1"))

    async with asyncio.TaskGroup() as group:
        group.create_task(delete_slowly())
        await is_in.wait()
        holding = group.create_task(held_or_gone(other_store, file.id))
        await asyncio.sleep(0.2)
        assert not holding.done()
        go_on.set()
    assert holding.result() == "gone"


async def held_or_gone(store, file_id) -> str:
    try:
        await store.holds.set(HoldKind.FILE, file_id)
    except NotFoundError:
        return "gone"
    return "held"


# --- usage ------------------------------------------------------------------------------------------------


async def test_usage_counts_each_ended_batch_once_by_project_model_and_day(world, store):
    day = int(world.clock()) // 86_400
    for project, event in [
        (world.project, Event.CANCELLED),
        (world.project, Event.CANCELLED),
        (world.other_project, Event.CANCELLED),
    ]:
        made = await world.start(store, project_id=project)
        await world.apply(store, made, Event.CANCEL_REQUESTED)
        lease = await world.last_batch_lease(store)
        after = replace(lease.batch.after(event, now=world.clock()), tally=world.tally(4, 1))
        assert await store.batch_leases.publish(lease, after, files=[])
        assert not await store.batch_leases.publish(lease, after, files=[])
    world.clock.step(86_400)
    late = await world.start(store)
    world.clock.step(86_400)
    await world.apply(store, late, Event.LAPSED)
    await publish(world, store, late, Event.EXPIRED, tally=world.tally(2))

    rows = await store.usage.totals(["project", "model", "day"])
    assert [(row.project_id, row.model, row.day - day, row.batches, row.requests) for row in rows] == [
        (world.project, "tiny", 0, 2, 20),
        (world.project, "tiny", 2, 1, 10),
        (world.other_project, "tiny", 0, 1, 10),
    ]
    assert rows[0].tally == world.tally(4, 1).plus(world.tally(4, 1))
    (total,) = await store.usage.totals([], project_id=world.project)
    assert (total.batches, total.tally) == (3, world.tally(8, 2).plus(world.tally(2)))
    assert [row.batches for row in await store.usage.totals(["day"], first_day=day + 1)] == [1]
    assert [row.batches for row in await store.usage.totals(["project"], last_day=day + 1, model="tiny")] == [
        2,
        1,
    ]
    assert await store.usage.totals([], model="other") == []


async def test_a_batch_that_failed_validation_has_no_usage(world, store):
    await store.batches.create(world.batch())
    lease = await world.batch_lease(store)
    assert await store.batch_leases.reject(lease, lease.batch.after(Event.REJECTED, now=world.clock()))
    assert await store.usage.totals(["project"]) == []


# --- the audit log ----------------------------------------------------------------------------------------


async def test_every_change_is_recorded_with_its_actor_and_nothing_else_is_recorded(world, store):
    file = await store.files.add(world.file(), by=BY)
    upload = world.upload()
    await store.uploads.add(upload, by=BY)
    await store.uploads.cancel(upload, by=BY)
    made = await store.batches.create(world.batch(), by=BY)
    after = made.after(Event.CANCEL_REQUESTED, now=world.clock())
    assert await store.batches.move(after, expected=made.status, by=BY)
    key = ApiKey("key_2", world.project, "name", "digest", "wxyz", 1, scope=Scope.ADMIN)
    await store.api_keys.add(key, by=BY)
    await store.api_keys.revoke(key.id, by=BY)
    await store.holds.set(HoldKind.FILE, file.id, by=BY)
    await store.holds.clear(HoldKind.FILE, file.id, by=BY)
    await store.projects.set_rules(world.project, ProjectRules(open_lines=5), by=BY)
    await store.audit.add(BY, AuditAction.FILE_DOWNLOADED, file.id, project_id=world.project)
    await store.files.delete(world.project, file.id, by=BY)

    page = await store.audit.list()
    assert [(entry.action, entry.subject_id) for entry in reversed(page.items)] == [
        ("file.created", file.id),
        ("upload.created", upload.id),
        ("upload.cancelled", upload.id),
        ("batch.created", made.id),
        ("batch.cancelled", made.id),
        ("key.created", key.id),
        ("key.revoked", key.id),
        ("hold.set", file.id),
        ("hold.cleared", file.id),
        ("project.changed", world.project),
        ("file.downloaded", file.id),
        ("file.deleted", file.id),
    ]
    assert {entry.by for entry in page.items} == {BY}
    assert {entry.at for entry in page.items} == {world.clock()}
    assert {entry.project_id for entry in page.items} == {world.project}


async def test_calls_that_change_nothing_are_not_recorded(world, store):
    assert not await store.files.delete(world.project, "file-unknown", by=BY)
    assert not await store.api_keys.revoke("key_unknown", by=BY)
    with pytest.raises(RequestError):
        await store.batches.create(world.batch(input_bytes=2), limits=Limits(open_bytes=1), by=BY)
    assert (await store.audit.list()).items == ()


async def test_expiry_is_recorded_with_nightmill_as_the_actor(world, store):
    files = [await store.files.add(world.file(expires_at=int(world.clock()) + 10)) for _ in range(2)]
    world.clock.step(10)
    await store.files.delete_expired()
    page = await store.audit.list()
    assert {(entry.action, entry.subject_id, entry.by.name) for entry in page.items} == {
        ("file.expired", file.id, "nightmill") for file in files
    }


async def test_expired_files_are_deleted_in_bounded_transactions(world, store, monkeypatch):
    monkeypatch.setattr(files, "_EXPIRED_AT_ONCE", 2)
    for _ in range(5):
        await store.files.add(world.file(expires_at=int(world.clock()) + 10))
    world.clock.step(10)
    assert [await store.files.delete_expired() for _ in range(4)] == [2, 2, 1, 0]
    assert await stored_bytes(world, store) == 0


async def test_the_audit_log_is_read_in_pages_by_project_and_time(world, store):
    for _ in range(5):
        await store.files.add(world.file(), by=BY)
        world.clock.step(1)
    await store.files.add(world.file(project_id=world.other_project), by=BY)
    page = await store.audit.list(project_id=world.project, limit=3)
    assert page.has_more
    rest = await store.audit.list(project_id=world.project, before=page.items[-1].sequence, limit=3)
    assert not rest.has_more
    sequences = [entry.sequence for entry in (*page.items, *rest.items)]
    assert len(sequences) == 5
    assert sequences == sorted(sequences, reverse=True)
    assert len((await store.audit.list(since=world.clock() - 2)).items) == 3


async def test_old_entries_are_deleted_except_those_of_held_projects(world, store):
    await store.files.add(world.file(), by=BY)
    await store.files.add(world.file(project_id=world.other_project), by=BY)
    await store.audit.add(BY, AuditAction.SCHEMA_MIGRATED, "0003")
    await store.holds.set(HoldKind.PROJECT, world.project)
    world.clock.step(100)
    assert await store.audit.delete_older(kept_s=101) == 0
    assert await store.audit.delete_older(kept_s=100) == 2
    assert [entry.project_id for entry in (await store.audit.list()).items] == [world.project]
