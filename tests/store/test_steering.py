"""Changes of running batches, in every store, and what they mean for leases."""

import asyncio
import random
from dataclasses import replace

import pytest
from sqlalchemy import text

from nightmill.core.audit import Actor
from nightmill.core.batch import Event, Status
from nightmill.core.history import EventKind
from nightmill.core.steering import (
    BatchFilter,
    Pause,
    Resume,
    SetConcurrency,
    SetDeadline,
    SetPriority,
    steered,
)
from nightmill.errors import ConflictError, RequestError
from nightmill.ids import BatchId, ProjectId, WorkerId
from tests.store.conftest import stopping

BY = Actor("key_1")
KINDS = {
    Pause: EventKind.PAUSED,
    Resume: EventKind.RESUMED,
    SetPriority: EventKind.PRIORITY_CHANGED,
    SetDeadline: EventKind.DEADLINE_CHANGED,
    SetConcurrency: EventKind.CONCURRENCY_CHANGED,
}


async def steer(world, store, batch, *changes):
    found = await store.steering.change(world.project, batch.id, changes, by=BY)
    assert found is not None
    return found


def a_change(chance: random.Random, now: float):
    return chance.choice(
        [
            Pause(),
            Resume(),
            SetPriority(chance.randint(-2, 2)),
            SetDeadline(int(now) + chance.choice([-5, 0, 1, 50, 50_000])),
            SetConcurrency(chance.choice([None, 1, 2])),
        ]
    )


@pytest.mark.parametrize("seed", range(6))
async def test_any_changes_between_any_moves_leave_what_the_model_says(world, store, other_store, seed):
    chance = random.Random(seed)
    model = await store.batches.create(world.batch())
    history = [EventKind.CREATED]
    for _ in range(60):
        world.clock.step(chance.choice([0, 0, 1, 3]))
        one = chance.choice([store, other_store])
        if chance.random() < 0.1 and model.status is Status.VALIDATING:
            lease = await world.batch_lease(one)
            assert await world.accept(one, lease)
            model = await world.read_again(one, model)
            history.append(EventKind.IN_PROGRESS)
            continue
        if chance.random() < 0.02 and not model.status.is_terminal and model.status is not Status.CANCELLING:
            model = await world.apply(one, model, Event.CANCEL_REQUESTED)
            history.append(EventKind.CANCELLING)
            continue
        changes = [a_change(chance, world.clock()) for _ in range(chance.randint(1, 3))]
        after, kinds, error = model, [], None
        try:
            for change in changes:
                changed = steered(after, change, now=world.clock())
                kinds += [KINDS[type(change)]] * (changed != after)
                after = changed
        except RequestError as refused:
            error = type(refused)
        if error is not None:
            with pytest.raises(error):
                await one.steering.change(world.project, model.id, changes, by=BY)
        else:
            assert await one.steering.change(world.project, model.id, changes, by=BY) == (after, bool(kinds))
            model = after
            history += kinds
        assert await world.read_again(one, model) == model
    events = await store.batch_events.list(model.id)
    assert [event.kind for event in events] == history
    assert {event.actor for event in events if event.kind in KINDS.values()} <= {BY.name}


async def test_a_paused_batch_is_neither_a_candidate_nor_leased_until_it_is_resumed(world, store):
    batch = await world.start(store)
    await steer(world, store, batch, Pause())
    found = await store.open_batches.candidates(after=ProjectId(""), most=8, passed_over=[], after_model="")
    assert (found.near, found.by_project, found.by_model) == ([], [], [])
    assert await world.lease(store) == []
    preferred = [(batch.id, 1)]
    assert await store.segments.lease(world.worker, limit=0, ttl_s=30, preferred=preferred) == []
    assert (await store.batches.backlog()).waiting_segments == 0
    assert (await store.batches.backlog()).batches == {Status.IN_PROGRESS: 1}
    await steer(world, store, batch, Resume())
    assert len(await world.lease(store)) == 2


async def test_a_heartbeat_brings_the_terms_of_its_batches(world, store):
    batch = await world.start(store)
    leases = await world.lease(store)
    later = batch.expires_at + 100
    await steer(world, store, batch, Pause(), SetDeadline(later), SetConcurrency(3))
    reports = [world.report(lease, world.tally(1)) for lease in leases]
    reply = await store.segments.renew(world.worker, reports, ttl_s=30)
    terms = reply.terms[batch.id]
    assert (terms.status, terms.is_paused) == (Status.IN_PROGRESS, True)
    assert (terms.deadline, terms.concurrency) == (later, 3)
    assert (reply.lost, stopping(reply)) == (frozenset(), {})


async def test_a_paused_batch_settles_and_lapses(world, store):
    settled, lapsed = await world.start(store), await world.start(store)
    await world.complete(
        store, [lease for lease in await world.lease(store) if lease.segment.batch_id == settled.id]
    )
    for batch in (settled, lapsed):
        await steer(world, store, batch, Pause())
    assert [batch.id for batch in await store.batches.settled()] == [settled.id]
    world.clock.step(86_400)
    assert {batch.id for batch in await store.batches.overdue()} == {settled.id, lapsed.id}
    overdue = await world.read_again(store, lapsed)
    assert await store.batches.lapse(overdue.after(Event.LAPSED, now=world.clock()))
    assert (await world.read_again(store, lapsed)).status is Status.FINALIZING


async def test_a_batch_does_not_lapse_once_its_deadline_has_moved(world, store, other_store):
    batch = await world.start(store)
    world.clock.step(86_400)
    [overdue] = await store.batches.overdue()
    await steer(world, other_store, batch, SetDeadline(int(world.clock()) + 60))
    assert not await store.batches.lapse(overdue.after(Event.LAPSED, now=world.clock()))
    assert (await world.read_again(store, batch)).status is Status.IN_PROGRESS
    assert await store.batches.overdue() == []


async def test_a_refused_change_takes_back_the_changes_before_it(world, store):
    batch = await world.start(store)
    past = SetDeadline(int(world.clock()))
    with pytest.raises(RequestError, match="deadline"):
        await store.steering.change(world.project, batch.id, [SetPriority(3), past], by=BY)
    assert await world.read_again(store, batch) == batch
    cancelling = await world.apply(store, batch, Event.CANCEL_REQUESTED)
    with pytest.raises(ConflictError, match="cancelling"):
        await store.steering.change(world.project, batch.id, [Pause()], by=BY)
    assert await store.steering.change(world.other_project, batch.id, [Pause()]) is None
    assert await world.read_again(store, batch) == cancelling


async def test_a_limited_batch_is_leased_by_one_worker_at_a_time(world, store, other_store):
    batch = await world.start(store, total=20, concurrency=4)
    free = await world.start(store, total=20)
    [first] = await world.lease(store, limit=1)
    assert (first.segment.batch_id, first.concurrency) == (batch.id, 4)
    others = await world.lease(other_store, worker=world.other_worker, limit=2)
    assert {lease.segment.batch_id for lease in others} == {free.id}
    assert others[0].concurrency is None
    seen = {
        worker: await store.open_batches.candidates(
            after=ProjectId(""), most=8, passed_over=[], worker_id=worker
        )
        for worker in (world.worker, world.other_worker)
    }
    offered = {worker: found.by_project[0][0].id for worker, found in seen.items()}
    assert offered == {world.worker: batch.id, world.other_worker: free.id}
    # The worker that has it may lease more of it; another may once it has none.
    preferred = [(batch.id, 1)]
    [second] = await store.segments.lease(world.worker, limit=0, ttl_s=30, preferred=preferred)
    assert await store.segments.lease(world.other_worker, limit=0, ttl_s=30, preferred=preferred) == []
    await world.complete(store, [first, second])
    [third] = await store.segments.lease(world.other_worker, limit=0, ttl_s=30, preferred=preferred)
    assert third.segment.batch_id == batch.id


async def test_workers_that_race_for_a_limited_batch_do_not_share_it(world, store, other_store):
    batch = await world.start(store, total=100, concurrency=2)
    for round_ in range(5):
        asked = [
            one.segments.lease(WorkerId(f"w{round_}-{number}"), limit=1, ttl_s=30)
            for number, one in enumerate([store, other_store] * 4)
        ]
        leased = [leases for leases in await asyncio.gather(*asked) if leases]
        assert len(leased) == 1
        await world.complete(store, leased[0])
    assert (await world.read_again(store, batch)).tally.answered == 25


async def test_filters_are_counted_and_listed(world, store):
    made = [
        await store.batches.create(world.batch(metadata={"team": name, "n": "1"}, endpoint=endpoint))
        for name, endpoint in (("a", "/v1/embeddings"), ("A", "/v1/embeddings"), ("a%", "/v1/completions"))
    ]
    world.clock.step(100)
    young = await store.batches.create(world.batch())
    await store.batches.create(world.batch(project_id=world.other_project, metadata={"team": "a"}))

    async def found(wanted: BatchFilter) -> list[BatchId]:
        page = await store.steering.list(world.project, wanted, limit=10)
        assert await store.steering.count(world.project, wanted) == len(page.items)
        return [batch.id for batch in page.items]

    a, upper, percent = (batch.id for batch in made)
    assert await found(BatchFilter()) == [young.id, percent, upper, a]
    assert await found(BatchFilter(metadata={"team": "a"})) == [a]
    assert await found(BatchFilter(metadata={"team": "A", "n": "1"})) == [upper]
    assert await found(BatchFilter(metadata={"team": "%"})) == []
    assert await found(BatchFilter(older_than_s=50)) == [percent, upper, a]
    assert await found(BatchFilter(endpoint="/v1/completions")) == [percent]
    assert await found(BatchFilter(id_prefix=upper)) == [upper]
    assert await found(BatchFilter(id_prefix="%")) == []
    assert await found(BatchFilter(statuses=frozenset({Status.COMPLETED}))) == []
    await steer(world, store, made[0], Pause())
    assert await found(BatchFilter(is_paused=True)) == [a]
    assert await found(BatchFilter(is_paused=False)) == [young.id, percent, upper]
    page = await store.steering.list(world.project, BatchFilter(), after=young.id, limit=1)
    assert ([batch.id for batch in page.items], page.has_more) == ([percent], True)


_PAUSED = """
INSERT INTO batch (id, project_id, endpoint, input_file_id, input_blob_key, index_blob_key, completion_window,
  created_at, expires_at, status, paused_at, segments_left, input_bytes, priority, model)
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000)
SELECT 'paused_' || n, 'proj_a', '/v1/embeddings', 'f', 'b', 'i', '24h',
  :now, :now + 60 + n % 100, 'in_progress', :now, 1, 1, 10, 'tiny' FROM numbers
"""
_PAUSED_SEGMENTS = """
INSERT INTO segment (batch_id, number, first, count, state, pinned)
SELECT id, 0, 0, 1, 'waiting', '[]' FROM batch WHERE paused_at IS NOT NULL
"""


async def test_a_hundred_thousand_paused_batches_cost_a_lease_nothing(world, store):
    """Counted in rows that SQLite reads: its progress handler runs every so many steps of its machine."""
    if not world.url.startswith("sqlite"):
        pytest.skip("only SQLite counts the steps of a statement")

    def fill(connection):
        connection.execute(text(_PAUSED), {"now": int(world.clock())})
        connection.execute(text(_PAUSED_SEGMENTS))

    await store.database.write(fill)
    batch = await world.start(store)
    steps = 0

    def counted(connection, work):
        nonlocal steps
        raw = connection.connection.driver_connection

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        raw.set_progress_handler(step, 100)
        try:
            return work(connection)
        finally:
            raw.set_progress_handler(None, 100)

    found = await store.database.read(
        counted,
        lambda connection: type(store.open_batches).candidates(
            connection, after=ProjectId(""), most=8, passed_over=[], after_model=""
        ),
    )
    assert [batch_.id for batch_ in found.by_project[0]] == [batch.id]
    leases = await store.database.write(
        counted,
        lambda connection: type(store.segments).lease(connection, world.worker, limit=4, ttl_s=30),
    )
    assert len(leases) == 2
    assert steps < 100, "a query has read the paused batches"


def test_steered_says_what_becomes_of_a_batch(world):
    batch = world.batch()
    paused = steered(batch, Pause(), now=5.9)
    assert paused == replace(batch, paused_at=5)
    assert steered(paused, Pause(), now=9.0) is paused
    assert steered(paused, Resume(), now=9.0) == batch
