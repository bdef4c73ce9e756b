"""Filters, orders and counts of batches, in every store, compared with all batches that there are."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import text

from nightmill.core.batch import Event, Status
from nightmill.core.batch_facets import BatchGroup, facets_of
from nightmill.core.steering import BatchFilter, BatchOrder, Pause, Resume
from nightmill.ids import BatchId, FileId
from nightmill.store import batch_counts

UNFINISHED = BatchOrder.UNFINISHED_FIRST
ALL = BatchFilter()


def ids(page) -> list[BatchId]:
    return [batch.id for batch in page.items]


async def counted(world, store, project) -> dict[tuple, int]:
    groups = await store.batch_counts.groups(project, ALL)
    return {(it.project_id, it.status, it.is_paused, it.endpoint, it.model): it.count for it in groups}


async def true_counts(store) -> dict[tuple, int]:
    found = (await store.steering.list(None, ALL, limit=1_000)).items
    return dict(
        Counter(
            (
                one.project_id,
                one.status,
                one.paused_at is not None and one.status in (Status.VALIDATING, Status.IN_PROGRESS),
                one.endpoint,
                one.model or "",
            )
            for one in found
        )
    )


@pytest.mark.parametrize("seed", range(3))
async def test_the_kept_counts_are_those_of_all_batches_whatever_is_done_to_them(world, store, seed):
    chance = random.Random(seed)
    for _ in range(60):
        world.clock.step(1)
        batches = list((await store.steering.list(None, ALL, limit=1_000)).items)
        one = chance.choice(batches) if batches else None
        step = chance.randrange(8)
        if one is None or step == 0:
            project = chance.choice([world.project, world.other_project])
            endpoint = chance.choice(["/v1/chat/completions", "/v1/embeddings"])
            await store.batches.create(world.batch(project_id=project, endpoint=endpoint))
        elif step == 1 and any(batch.status is Status.VALIDATING for batch in batches):
            lease = await store.batch_leases.lease((Status.VALIDATING,), world.worker, ttl_s=9)
            if lease is not None:
                await world.accept(store, lease, model=chance.choice(["a", "b", None]))
        elif step in (2, 3) and one.status in (Status.VALIDATING, Status.IN_PROGRESS):
            await store.steering.change(one.project_id, one.id, [chance.choice([Pause(), Resume()])])
        elif step == 4 and one.status in (Status.VALIDATING, Status.IN_PROGRESS):
            await world.apply(store, one, Event.CANCEL_REQUESTED)
        elif step == 5 and one.status is Status.CANCELLING:
            await world.apply(store, one, Event.CANCELLED)
        elif step == 6:
            await store.batch_counts.fold()
        elif chance.random() < 0.2:
            await store.database.write(lambda c: c.execute(text("DELETE FROM segment")))
            await store.database.write(
                lambda c: c.execute(text("UPDATE batch SET index_blob_key = NULL WHERE status = 'cancelled'"))
            )
            await store.pruning.remove_batches(kept_s=5)
        assert await counted(world, store, None) == await true_counts(store)
    while await store.batch_counts.fold():
        pass
    assert await counted(world, store, None) == await true_counts(store)
    assert await store.database.read(batch_counts.wrong_counts) == 0


async def test_two_processes_that_add_up_at_once_count_each_change_once(world, store, other_store):
    for _ in range(20):
        await store.batches.create(world.batch())
    folded = await asyncio.gather(*(one.batch_counts.fold() for one in (store, other_store) * 3))
    assert sum(folded) == 20
    (group,) = await store.batch_counts.groups(world.project, ALL)
    assert group.count == 20


async def test_a_wrong_count_is_found_and_counted_again(world, store):
    await store.batches.create(world.batch(metadata={"team": "a"}))
    await store.database.write(lambda c: c.execute(text("DELETE FROM batch_count_change")))
    await store.database.write(lambda c: c.execute(text("DELETE FROM batch_text")))
    assert await store.database.read(batch_counts.wrong_counts) == 1
    await store.database.write(batch_counts.recount)
    assert await store.database.read(batch_counts.wrong_counts) == 0
    assert len((await store.steering.list(world.project, BatchFilter(text="team"))).items) == 1


async def test_a_text_is_searched_in_ids_file_names_and_metadata(world, store):
    await store.files.add(world.file(id=FileId("file-night"), filename="Nightly-Tickets.jsonl"))
    named = await store.batches.create(
        world.batch(id=BatchId("batch_3f2a9c1b"), input_file_id=FileId("file-night"))
    )
    tagged = await store.batches.create(world.batch(metadata={"Team": 'search "quoted" \\ näme'}))
    other = await store.batches.create(world.batch(project_id=world.other_project, metadata={"Team": "x"}))

    async def found(wanted: str, project=world.project) -> list[BatchId]:
        page = await store.steering.list(project, BatchFilter(text=wanted))
        assert await store.steering.count(project, BatchFilter(text=wanted)) == len(page.items)
        return ids(page)

    assert await found("nightly-tick") == [named.id]
    assert await found("TEAM") == [tagged.id]
    assert await found("team", None) == [other.id, tagged.id]
    assert await found('"quoted" \\ nä') == [tagged.id]
    assert await found("%") == await found("_icket") == []
    assert await found(named.id) == [named.id]
    assert await found("3f2A") == await found("batch_3f") == [named.id]
    assert await found("3f2b") == await found("2a9c") == []
    assert await found("night" * 90) == []


async def test_times_priority_and_what_an_upstream_serves_are_compared(world, store):
    old = await world.start(store, model="a", priority=3)
    world.clock.step(100)
    young = await world.start(store, model="b")
    bare = await store.batches.create(world.batch(endpoint="/v1/embeddings"))

    async def found(**fields) -> list[BatchId]:
        return ids(await store.steering.list(world.project, BatchFilter(**fields)))

    assert await found(created_after=young.created_at) == [bare.id, young.id]
    assert await found(created_before=young.created_at) == [old.id]
    assert await found(created_before=old.created_at) == []
    assert await found(priority=3) == [old.id]
    assert await found(served={old.endpoint: frozenset({"a", "b"})}) == [young.id, old.id]
    assert await found(served={"/v1/embeddings": frozenset({"", "a"})}) == [bare.id]
    assert await found(served={}) == []


async def test_a_batch_that_has_ended_is_not_paused(world, store):
    batch = await store.batches.create(world.batch())
    await store.steering.change(world.project, batch.id, [Pause()])
    await world.apply(store, batch, Event.CANCEL_REQUESTED)
    is_paused = BatchFilter(is_paused=True)
    assert ids(await store.steering.list(world.project, is_paused)) == []
    assert ids(await store.steering.list(world.project, replace(is_paused, is_paused=False))) == [batch.id]


async def test_unfinished_batches_come_first_and_pages_keep_their_place_when_one_ends(world, store):
    made = []
    for _ in range(6):
        world.clock.step(1)
        made.append(await store.batches.create(world.batch()))
    for ended in (made[1], made[4]):
        await world.apply(store, ended, Event.CANCEL_REQUESTED)
        await world.apply(store, ended, Event.CANCELLED)
    in_order = [made[place].id for place in (5, 3, 2, 0, 4, 1)]
    assert ids(await store.steering.list(world.project, ALL, order=UNFINISHED)) == in_order
    seen, cursor = [], None
    while True:
        page = await store.steering.list(None, ALL, order=UNFINISHED, after=cursor, limit=2)
        seen += ids(page)
        if not page.has_more:
            break
        cursor = page.cursor
        if len(seen) == 2:  # the last batch of the first page ends
            await world.apply(store, made[3], Event.CANCEL_REQUESTED)
            await world.apply(store, made[3], Event.CANCELLED)
    assert seen == [made[place].id for place in (5, 3, 2, 0, 4, 3, 1)]


async def test_batches_of_all_projects_are_listed_without_one(world, store):
    first = await store.batches.create(world.batch())
    second = await store.batches.create(world.batch(project_id=world.other_project))
    assert ids(await store.steering.list(None, ALL)) == [second.id, first.id]
    assert ids(await store.steering.list(None, ALL, after=second.id)) == [first.id]
    assert ids(await store.steering.list(world.project, ALL)) == [first.id]
    assert (await store.batches.get(None, second.id)) == second


async def test_counts_under_a_filter_of_times_or_texts_are_of_what_matches(world, store):
    await world.start(store, model="a", metadata={"team": "x"})
    world.clock.step(10)
    last = await world.start(store, model="b", metadata={"team": "y"})
    for wanted, models in (
        (BatchFilter(created_after=last.created_at), {"b": 1}),
        (BatchFilter(text="team", model="b"), {"a": 1, "b": 1}),
        (BatchFilter(metadata={"team": "x"}), {"a": 1}),
    ):
        facets = facets_of(await store.batch_counts.groups(world.project, wanted), wanted)
        assert (facets.models, facets.total) == (models, 1)
    newest = await store.batch_counts.metadata_of_newest(world.project, ALL, most=1)
    assert newest == [{"team": "y"}]


def test_a_facet_is_counted_without_its_own_condition(world):
    def group(**fields) -> BatchGroup:
        plain = BatchGroup(world.project, Status.COMPLETED, False, "/v1/embeddings", "a", 1)
        return replace(plain, **fields)

    groups = [
        group(count=3),
        group(status=Status.FAILED, model="", count=2),
        group(status=Status.IN_PROGRESS, is_paused=True, model="b", count=4),
    ]
    wanted = BatchFilter(statuses=frozenset({Status.COMPLETED}))
    facets = facets_of(groups, wanted)
    assert facets.total == 3
    assert facets.statuses == {Status.COMPLETED: 3, Status.FAILED: 2, Status.IN_PROGRESS: 4}
    assert (facets.models, facets.paused) == ({"a": 3}, 0)
    facets = facets_of(groups, BatchFilter(is_paused=False, model="a"))
    assert (facets.paused, facets.models, facets.total) == (0, {"a": 3}, 3)
    assert facets_of(groups, BatchFilter(is_paused=False)).paused == 4
