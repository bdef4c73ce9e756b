"""How Postgres is reached: no session state, deadlocks, lost connections, and what each failure means."""

import asyncio

import pytest
from sqlalchemy import text

from nightmill.errors import SetupError, UnavailableError
from nightmill.store import open_store

pytestmark = pytest.mark.parametrize("kind", ["postgres"])

_STOP_THE_OTHERS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


async def test_no_statement_is_left_behind_in_the_session(world, store):
    for _ in range(3):
        await world.start(store)
        await world.lease(store)

    def left_behind(connection) -> list[str]:
        return connection.execute(text("SELECT name FROM pg_prepared_statements")).scalars().all()

    assert await store._read(left_behind) == []


async def test_a_connection_that_broke_is_replaced_without_the_caller_noticing(world, store, other_store):
    made = await store.create_batch(world.batch())
    await other_store._write(lambda connection: connection.execute(_STOP_THE_OTHERS).all())
    assert await store.batch(world.project, made.id) == made


async def test_a_transaction_whose_connection_breaks_is_run_again_whole(world, store, other_store):
    made = world.batch()
    runs = []

    def break_once(connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        if not runs:
            runs.append(pid)
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        runs.append(pid)

    await store._write(break_once)
    assert len(runs) == 2
    assert runs[0] != runs[1]
    assert await store.create_batch(made) == made


async def test_of_two_that_deadlock_both_succeed_one_after_the_other(world, store):
    first, second = [await store.create_batch(world.batch()) for _ in range(2)]
    lock = text("SELECT 1 FROM batch WHERE id = :batch_id FOR UPDATE")

    def lock_both(connection, batch_ids) -> None:
        connection.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
        connection.execute(lock, {"batch_id": batch_ids[0]})
        connection.execute(text("SELECT pg_sleep(0.1)"))
        connection.execute(lock, {"batch_id": batch_ids[1]})

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(store._write(lock_both, (first.id, second.id)))
        group.create_task(store._write(lock_both, (second.id, first.id)))


async def test_a_lock_held_too_long_is_unavailable(world, store):
    made = await store.create_batch(world.batch())
    impatient = world.open(busy_timeout_s=0.2)
    await impatient.ping()
    holds, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with store._database._engine.begin() as connection:
            await connection.execute(text("SELECT 1 FROM batch FOR UPDATE"))
            holds.set()
            await release.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(hold())
        await holds.wait()
        cancelling = made.after("cancel_requested", now=world.clock())
        with pytest.raises(UnavailableError):
            await impatient.move_batch(cancelling, expected=made.status)
        release.set()
    assert await impatient.move_batch(cancelling, expected=made.status)


async def test_a_server_that_is_away_is_unavailable(world, tmp_path):
    store = open_store(f"postgresql://postgres@/nightmill?host={tmp_path}")
    with pytest.raises(UnavailableError, match="reached"):
        await store.ping()
    await store.close()


async def test_a_database_that_is_not_there_is_the_operators_to_mend(world):
    store = open_store(world.url.replace("/nightmill?", "/elsewhere?"))
    with pytest.raises(SetupError, match="check its URL"):
        await store.ping()
    await store.close()


async def test_the_clock_is_the_databases_own(world):
    """The suite moves it there; a clock given to the store changes nothing."""
    store = open_store(world.url, clock=lambda: 0.0)
    await world.start(store)
    await world.lease(store)
    world.clock.step(world.ttl_s)
    assert await store.reap_segments() == 2
    await store.close()
