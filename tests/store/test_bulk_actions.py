"""Actions on many batches, in every store: order, pages, undo, and what a second process sees."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import insert

from nightmill.core.audit import Actor
from nightmill.core.batch import Batch, Event, Status
from nightmill.core.bulk_action import UNDO_S, BulkAction, BulkActionState, ItemResult
from nightmill.core.history import EventKind
from nightmill.core.steering import BatchFilter, SetPriority, SteeringAction
from nightmill.errors import ConflictError
from nightmill.ids import BatchId
from nightmill.store import BatchOrigin, Store
from nightmill.store.bulk_action_pages import NewRetry
from nightmill.store.bulk_actions import Chosen
from nightmill.store.schema import batch as batch_table
from tests.slow import only_slow

BY = Actor("key_1", "abcd", "127.0.0.1", "req_1")
ANY = BatchFilter()
TTL_S = 30.0


async def order(world, store: Store, action: str, chosen=ANY, *, delay_s: float = 0, key=None, **values):
    return await store.bulk_actions.order(
        f"action_{next(world.numbers)}",
        world.project,
        SteeringAction(action),
        values,
        Chosen(world.project, chosen),
        delay_s=delay_s,
        by=BY,
        key=key,
    )


async def state_of(world, store: Store, action: BulkAction) -> BulkAction:
    found = await store.bulk_actions.get(world.project, action.id)
    assert found is not None
    return found[0]


async def run_to_end(store: Store, action: BulkAction, *, most: int = 3) -> int:
    """The number of transactions it took."""
    turns = 0
    while await store.bulk_action_pages.turn_page(action.id, most=most) is not None:
        turns += 1
    return turns


async def batches(world, store: Store, count: int, **changes) -> list[Batch]:
    return [await store.batches.create(world.batch(**changes)) for _ in range(count)]


async def read_all(world, store: Store, made: list[Batch]) -> list[Batch]:
    return [await world.read_again(store, batch) for batch in made]


async def ended(world, store: Store, *, failed: int) -> Batch:
    """A cancelled batch of which some lines failed."""
    made = await store.batches.create(world.batch())
    await world.apply(store, made, Event.CANCEL_REQUESTED)
    cancelling = await world.read_again(store, made)
    cancelled = await world.apply(store, cancelling, Event.CANCELLED)
    values = {"total": 10, "failed": failed, "error_file_id": "file-e"}
    statement = batch_table.update().where(batch_table.c.id == made.id).values(**values)
    await store.database.write(lambda connection: connection.execute(statement).rowcount)
    return cancelled


async def test_a_bulk_action_changes_every_batch_in_pages_and_undo_gives_back_what_was(
    world, store, other_store
):
    made = await batches(world, store, 7, priority=2)
    await store.steering.change(world.project, made[0].id, [SetPriority(-4)])
    action = await order(world, store, "prioritize", priority=9)
    assert (action.matched, action.total, action.state) == (7, 7, BulkActionState.PENDING)
    assert await run_to_end(other_store, action) == 4
    done = await state_of(world, store, action)
    assert (done.state, done.counts[ItemResult.CHANGED]) == (BulkActionState.DONE, 7)
    assert {batch.priority for batch in await read_all(world, store, made)} == {9}
    undoing = await other_store.bulk_actions.undo(world.project, action.id, by=Actor("key_2"))
    assert undoing.state is BulkActionState.UNDOING
    await run_to_end(store, action)
    undone = await state_of(world, store, action)
    assert (undone.state, undone.counts[ItemResult.UNDONE]) == (BulkActionState.UNDONE, 7)
    assert [batch.priority for batch in await read_all(world, store, made)] == [-4, 2, 2, 2, 2, 2, 2]
    actors = [event.actor for event in await store.batch_events.list(made[1].id)]
    assert actors[-2:] == ["key_1", "key_2"]


async def test_a_batch_that_is_created_after_the_order_is_left_alone(world, store):
    made = await batches(world, store, 2)
    action = await order(world, store, "cancel", delay_s=10)
    later = await store.batches.create(world.batch())
    world.clock.step(10)
    await run_to_end(store, action)
    assert {batch.status for batch in await read_all(world, store, made)} == {Status.CANCELLING}
    assert (await world.read_again(store, later)).status is Status.VALIDATING


async def test_nothing_is_done_before_its_time_and_calling_off_leaves_everything(world, store, other_store):
    made = await batches(world, store, 2)
    action = await order(world, store, "cancel", delay_s=10)
    world.clock.step(9)
    assert list(await store.bulk_action_pages.due("runner")) == []
    assert await store.bulk_action_pages.turn_page(action.id, most=10) is None
    off = await other_store.bulk_actions.undo(world.project, action.id, by=BY)
    assert off.state is BulkActionState.CANCELLED
    again = await store.bulk_actions.undo(world.project, action.id, by=BY)
    assert again == off
    world.clock.step(60)
    assert list(await store.bulk_action_pages.due("runner")) == []
    assert await run_to_end(store, action) == 0
    assert {batch.status for batch in await read_all(world, store, made)} == {Status.VALIDATING}


async def test_a_cancellation_that_has_begun_can_be_stopped_and_one_that_has_ended_stays(world, store):
    made = await batches(world, store, 5)
    action = await order(world, store, "cancel")
    page = await store.bulk_action_pages.turn_page(action.id, most=2)
    assert page.changed == 2
    assert [moved.status for moved in page.moved] == [Status.CANCELLING] * 2
    stopped = await store.bulk_actions.undo(world.project, action.id, by=BY)
    assert (stopped.state, stopped.counts[ItemResult.CHANGED]) == (BulkActionState.CANCELLED, 2)
    assert await run_to_end(store, action) == 0
    statuses = [batch.status for batch in await read_all(world, store, made)]
    assert statuses == [Status.CANCELLING] * 2 + [Status.VALIDATING] * 3
    rest = await order(world, store, "cancel")
    assert (rest.matched, rest.total) == (5, 3)
    await run_to_end(store, rest)
    with pytest.raises(ConflictError, match="what it did stays"):
        await store.bulk_actions.undo(world.project, rest.id, by=BY)


async def test_undo_is_refused_once_its_time_has_passed(world, store):
    await batches(world, store, 1)
    action = await order(world, store, "pause")
    await run_to_end(store, action)
    world.clock.step(UNDO_S + 1)
    with pytest.raises(ConflictError, match="can't be undone any more"):
        await store.bulk_actions.undo(world.project, action.id, by=BY)


async def test_undo_in_the_middle_changes_back_only_what_was_changed_and_not_changed_again(world, store):
    made = await batches(world, store, 4, priority=1)
    action = await order(world, store, "prioritize", priority=5)
    await store.bulk_action_pages.turn_page(action.id, most=3)
    await store.steering.change(world.project, made[1].id, [SetPriority(7)])
    await store.bulk_actions.undo(world.project, action.id, by=BY)
    await run_to_end(store, action)
    assert [batch.priority for batch in await read_all(world, store, made)] == [1, 7, 1, 1]
    undone = await state_of(world, store, action)
    assert undone.counts[ItemResult.UNDONE] == 2
    kept = await store.bulk_actions.items(action.id, results=[ItemResult.CHANGED])
    assert [item.message for item in kept.items] == ["It was changed again meanwhile and stays so."]


async def test_a_paused_batch_is_resumed_by_undo_and_a_resumed_one_is_paused(world, store):
    first, second = await batches(world, store, 2)
    pause = await order(world, store, "pause", [first.id])
    await run_to_end(store, pause)
    assert (await world.read_again(store, first)).paused_at is not None
    resume = await order(world, store, "resume", [first.id, second.id])
    assert (resume.matched, resume.total) == (2, 1)
    await run_to_end(store, resume)
    assert (await world.read_again(store, first)).paused_at is None
    await store.bulk_actions.undo(world.project, resume.id, by=BY)
    await run_to_end(store, resume)
    assert (await world.read_again(store, first)).paused_at is not None
    await store.bulk_actions.undo(world.project, pause.id, by=BY)
    await run_to_end(store, pause)
    assert [batch.paused_at for batch in await read_all(world, store, [first, second])] == [None, None]


async def test_a_batch_that_refuses_or_is_gone_does_not_keep_others_from_the_change(world, store):
    made = await batches(world, store, 3)
    action = await order(world, store, "deadline", deadline=int(world.clock()) + 50)
    await world.apply(store, made[1], Event.CANCEL_REQUESTED)
    delete = batch_table.delete().where(batch_table.c.id == made[2].id)
    await store.database.write(lambda connection: connection.execute(delete).rowcount)
    await run_to_end(store, action)
    done = await state_of(world, store, action)
    counts = {result: count for result, count in done.counts.items() if count}
    assert counts == {ItemResult.CHANGED: 1, ItemResult.REFUSED: 1, ItemResult.NOT_FOUND: 1}
    refused = await store.bulk_actions.items(action.id, results=[ItemResult.REFUSED])
    assert refused.items[0].message == "Cannot change the deadline of a batch with status 'cancelling'."


async def test_a_second_order_with_the_same_key_is_the_first(world, store, other_store):
    await batches(world, store, 1)
    first = await order(world, store, "cancel", key="once", delay_s=10)
    second = await order(world, other_store, "cancel", key="once", delay_s=10)
    assert second == first
    assert len((await store.bulk_actions.list(world.project)).items) == 1


async def test_actions_of_other_projects_are_not_seen_and_not_touched(world, store):
    foreign = await store.batches.create(world.batch(project_id=world.other_project))
    made = await batches(world, store, 1)
    action = await order(world, store, "pause", [foreign.id, made[0].id])
    assert (action.matched, action.total) == (1, 1)
    assert await store.bulk_actions.get(world.other_project, action.id) is None
    assert await store.bulk_actions.undo(world.other_project, action.id, by=BY) is None
    assert await store.bulk_actions.start(world.other_project, action.id) is None
    assert (await store.bulk_actions.list(world.other_project)).items == ()


async def test_two_servers_at_once_change_each_batch_once_and_undo_each_once(world, store, other_store):
    made = await batches(world, store, 12)
    action = await order(world, store, "pause")
    turns = await asyncio.gather(*(run_to_end(one, action, most=2) for one in (store, other_store) * 2))
    assert sum(turns) == 7
    await store.bulk_actions.undo(world.project, action.id, by=BY)
    await asyncio.gather(*(run_to_end(one, action, most=2) for one in (store, other_store) * 2))
    undone = await state_of(world, store, action)
    assert (undone.counts[ItemResult.CHANGED], undone.counts[ItemResult.UNDONE]) == (12, 12)
    for batch in made:
        kinds = [event.kind for event in await store.batch_events.list(batch.id)]
        assert kinds == [EventKind.CREATED, EventKind.PAUSED, EventKind.RESUMED]


async def test_two_actions_on_the_same_batches_end_without_waiting_for_each_other(world, store, other_store):
    made = await batches(world, store, 12)
    first = await order(world, store, "prioritize", priority=1)
    second = await order(world, other_store, "prioritize", [batch.id for batch in reversed(made)], priority=2)
    await asyncio.gather(run_to_end(store, first, most=5), run_to_end(other_store, second, most=4))
    for action in (first, second):
        assert (await state_of(world, store, action)).state is BulkActionState.DONE
    assert {batch.priority for batch in await read_all(world, store, made)} <= {1, 2}


async def test_an_order_for_all_projects_reaches_every_project(world, store):
    foreign = await store.batches.create(world.batch(project_id=world.other_project))
    (own,) = await batches(world, store, 1)
    action = await store.bulk_actions.order(
        "action_all",
        world.project,
        SteeringAction.PRIORITIZE,
        {"priority": 3},
        Chosen(None, ANY),
        delay_s=0,
        by=BY,
    )
    await run_to_end(store, action)
    for made in (foreign, own):
        stored = await store.batches.get(None, made.id)
        assert stored.priority == 3
    assert await store.bulk_actions.get(None, action.id) is not None


async def test_the_preview_counts_what_the_order_changes(world, store):
    made = await batches(world, store, 3)
    await world.apply(store, made[0], Event.CANCEL_REQUESTED)
    counts, newest = await store.bulk_actions.preview(
        SteeringAction.PAUSE, {}, Chosen(world.project, ANY), first=1
    )
    assert (counts.matched, counts.total) == (3, 2)
    assert [batch.id for batch in newest] == [made[2].id]
    assert counts.kinds[Status.CANCELLING, False, False] == (1, 0, 0)
    action = await order(world, store, "pause")
    assert (action.matched, action.total) == (3, 2)


def a_retry(world, item) -> NewRetry:
    file = world.file()
    new = world.batch(input_file_id=file.id, input_blob_key=file.blob_key)
    return NewRetry(new, file, [BatchOrigin(new.id, BatchId(item.batch_id), 0, 2)])


async def test_two_runners_never_repeat_the_lines_of_a_batch_twice(world, store, other_store):
    origin = await ended(world, store, failed=2)
    await ended(world, store, failed=0)
    action = await order(world, store, "retry")
    assert (action.matched, action.total) == (2, 1)
    pages, others = store.bulk_action_pages, other_store.bulk_action_pages
    running, item = await pages.lease_retry(action.id, "one", ttl_s=TTL_S)
    assert (running.state, item.batch_id) == (BulkActionState.RUNNING, origin.id)
    assert await others.lease_retry(action.id, "two", ttl_s=TTL_S) is None
    assert list(await others.due("two")) == []
    assert list(await others.due("one")) == [action.id]
    world.clock.step(TTL_S + 1)  # the first runner is slow, or dead
    _, same = await others.lease_retry(action.id, "two", ttl_s=TTL_S)
    assert same == item
    assert await others.finish_retry(action.id, item, a_retry(world, item), result=ItemResult.CHANGED)
    late = a_retry(world, item)
    assert not await pages.finish_retry(action.id, item, late, result=ItemResult.CHANGED)
    assert await store.batches.get(world.project, late.batch.id) is None
    assert len(await store.batch_origins.retries(origin.id)) == 1
    ended_action, nothing = await pages.lease_retry(action.id, "one", ttl_s=TTL_S)
    assert (ended_action.state, nothing) == (BulkActionState.DONE, None)
    again = await order(world, store, "retry")
    assert again.total == 0, "what is repeated already is not repeated once more"
    assert (await order(world, store, "retry", [origin.id])).total == 1


async def test_a_retry_that_was_called_off_while_its_file_was_written_is_not_stored(world, store):
    origin = await ended(world, store, failed=2)
    action = await order(world, store, "retry")
    _, item = await store.bulk_action_pages.lease_retry(action.id, "one", ttl_s=TTL_S)
    await store.bulk_actions.undo(world.project, action.id, by=BY)
    new = a_retry(world, item)
    assert not await store.bulk_action_pages.finish_retry(action.id, item, new, result=ItemResult.CHANGED)
    assert not await store.batch_origins.retries(origin.id)


async def test_an_action_that_is_put_off_waits_and_says_why(world, store):
    await ended(world, store, failed=2)
    action = await order(world, store, "retry")
    await store.bulk_action_pages.lease_retry(action.id, "one", ttl_s=TTL_S)
    await store.bulk_action_pages.put_off(action.id, delay_s=60, note="too many batches")
    assert (await state_of(world, store, action)).note == "too many batches"
    assert list(await store.bulk_action_pages.due("one")) == []
    world.clock.step(60)
    assert list(await store.bulk_action_pages.due("two")) == [action.id]


async def test_an_action_can_begin_before_its_time_and_old_ones_are_deleted(world, store):
    await batches(world, store, 2)
    action = await order(world, store, "cancel", delay_s=3_600)
    await store.bulk_actions.start(world.project, action.id)
    assert await run_to_end(store, action) == 2
    assert await store.bulk_actions.delete_old(kept_s=60) == 0
    world.clock.step(60)
    while await store.bulk_actions.delete_old(kept_s=60):
        pass
    assert await store.bulk_actions.get(world.project, action.id) is None
    assert (await store.bulk_actions.items(action.id)).items == ()


@only_slow
async def test_twelve_thousand_batches_are_ordered_at_once_and_paused_in_pages(world, store):
    example = await store.batches.create(world.batch())

    def add(connection):
        row = connection.execute(batch_table.select().where(batch_table.c.id == example.id)).one()._mapping
        rows = [
            {**row, "id": f"batch_many_{number}", "sequence": row["sequence"] + number}
            for number in range(1, 12_000)
        ]
        connection.execute(insert(batch_table), rows)

    await store.database.write(add)
    action = await order(world, store, "pause")
    assert (action.matched, action.total) == (12_000, 12_000)
    for _ in range(3):
        page = await store.bulk_action_pages.turn_page(action.id, most=50)
        assert page.changed == 50
    paused = replace(ANY, is_paused=True)
    assert await store.steering.count(world.project, paused) == 150
    await store.bulk_actions.undo(world.project, action.id, by=BY)
    while (page := await store.bulk_action_pages.turn_page(action.id, most=4_000)) is not None:
        pass
    assert await store.steering.count(world.project, paused) == 0
