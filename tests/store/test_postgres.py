"""Connections to Postgres: no session state, deadlocks, lost connections, and the error for each failure."""

import asyncio
import re
from typing import Any

import pytest
from sqlalchemy import event, text

from nightmill.errors import SetupError, UnavailableError
from nightmill.ids import ProjectId
from nightmill.store import open_store
from nightmill.store.segments import Segments

pytestmark = pytest.mark.parametrize("kind", ["postgres"])

_STOP_THE_OTHERS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)

_MANY_BATCHES = """
INSERT INTO batch (id, project_id, endpoint, input_file_id, input_blob_key, index_blob_key, completion_window,
  created_at, expires_at, status, total, segments_left, input_bytes)
SELECT 'batch_' || n, CASE n WHEN 4999 THEN 'b' WHEN 5000 THEN 'c' ELSE 'a' END,
  '/v1/embeddings', 'file-in', 'files/in', 'indexes/' || n, '24h',
  CAST(:now AS bigint), CAST(:now AS bigint) + 1 + n * 20, 'in_progress', 10, 2, n * 7919 % 10007
FROM generate_series(1, 5000) AS n"""
_THEIR_SEGMENTS = """
INSERT INTO segment (batch_id, number, first, count, state, pinned)
SELECT 'batch_' || n, number, number * 5, 5, 'waiting', '[]'
FROM generate_series(1, 5000) AS n, generate_series(0, 1) AS number"""


async def test_no_prepared_statement_is_left_in_the_session(world, store):
    for _ in range(3):
        await world.start(store)
        await world.lease(store)

    def left_behind(connection) -> list[str]:
        return connection.execute(text("SELECT name FROM pg_prepared_statements")).scalars().all()

    assert await store.database.read(left_behind) == []


async def test_prepared_statements_are_cached_only_when_the_url_asks_for_it(world):
    world.url += "&" if "?" in world.url else "?"
    world.url += "prepared_statement_cache_size=50"
    store = world.open()
    for _ in range(3):
        await world.start(store)
        await world.complete(store, await world.lease(store))

    def kept(connection) -> int:
        return connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one()

    assert await store.database.read(kept) > 5


@pytest.mark.parametrize("asked", ["many", "-1", "1&prepared_statement_cache_size=2"])
def test_an_invalid_statement_cache_size_is_refused(kind, asked):
    with pytest.raises(SetupError, match="no whole number"):
        open_store(f"postgresql://db/nightmill?prepared_statement_cache_size={asked}")


async def test_a_broken_connection_is_replaced_without_an_error_for_the_caller(world, store, other_store):
    made = await store.batches.create(world.batch())
    await other_store.database.write(lambda connection: connection.execute(_STOP_THE_OTHERS).all())
    assert await store.batches.get(world.project, made.id) == made


async def test_a_transaction_whose_connection_breaks_is_rerun_from_its_start(world, store, other_store):
    made = world.batch()
    runs = []

    def break_once(connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        if not runs:
            runs.append(pid)
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        runs.append(pid)

    await store.database.write(break_once)
    assert len(runs) == 2
    assert runs[0] != runs[1]
    assert await store.batches.create(made) == made


async def test_two_transactions_that_deadlock_both_succeed_one_after_the_other(world, store):
    first, second = [await store.batches.create(world.batch()) for _ in range(2)]
    lock = text("SELECT 1 FROM batch WHERE id = :batch_id FOR UPDATE")

    def lock_both(connection, batch_ids) -> None:
        connection.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
        connection.execute(lock, {"batch_id": batch_ids[0]})
        connection.execute(text("SELECT pg_sleep(0.1)"))
        connection.execute(lock, {"batch_id": batch_ids[1]})

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(store.database.write(lock_both, (first.id, second.id)))
        group.create_task(store.database.write(lock_both, (second.id, first.id)))


async def test_a_lock_held_too_long_is_unavailable(world, store):
    made = await store.batches.create(world.batch())
    impatient = world.open(busy_timeout_s=0.2)
    await impatient.ping()
    holds, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with store.database._engine.begin() as connection:
            await connection.execute(text("SELECT 1 FROM batch FOR UPDATE"))
            holds.set()
            await release.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(hold())
        await holds.wait()
        cancelling = made.after("cancel_requested", now=world.clock())
        with pytest.raises(UnavailableError):
            await impatient.batches.move(cancelling, expected=made.status)
        release.set()
    assert await impatient.batches.move(cancelling, expected=made.status)


async def test_an_unreachable_server_is_unavailable(world, tmp_path):
    store = open_store(f"postgresql://postgres@/nightmill?host={tmp_path}")
    with pytest.raises(UnavailableError, match="reached"):
        await store.ping()
    await store.close()


async def test_a_missing_database_is_a_setup_error(world):
    store = open_store(world.url.replace("/nightmill?", "/elsewhere?"))
    with pytest.raises(SetupError, match="check its URL"):
        await store.ping()
    await store.close()


async def test_the_store_uses_the_clock_of_the_database(world):
    """The tests move the clock inside the database; a clock passed to the store has no effect."""
    store = open_store(world.url, clock=lambda: 0.0)
    await world.start(store)
    await world.lease(store)
    world.clock.step(world.ttl_s)
    assert await store.segments.release_expired() == 2
    await store.close()


async def test_two_connections_lease_concurrently_without_waiting_for_each_other(world, store, other_store):
    await world.start(store, total=20, lines_per_segment=5)
    is_in, go_on = asyncio.Event(), asyncio.Event()

    async def lease_and_wait() -> list[int]:
        async with store.database._engine.begin() as connection:
            taken = await connection.run_sync(Segments.lease, world.worker, limit=2, ttl_s=world.ttl_s)
            is_in.set()
            await go_on.wait()
        return [lease.segment.number for lease in taken]

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        holding = group.create_task(lease_and_wait())
        await is_in.wait()
        others = await other_store.segments.lease(world.other_worker, limit=4, ttl_s=world.ttl_s)
        assert not holding.done()
        go_on.set()
    assert holding.result() == [0, 1]
    assert [lease.segment.number for lease in others] == [2, 3]


async def test_a_heartbeat_for_many_leases_is_one_statement_that_updates_rows_in_place(world, store):
    await world.start(store, total=500, lines_per_segment=5)
    leases = await store.segments.lease(world.worker, limit=100, ttl_s=world.ttl_s)
    written: list[str] = []

    def note(_connection, _cursor, statement: str, _parameters, _context, is_many: bool) -> None:
        if statement.startswith("UPDATE segment"):
            written.append("many" if is_many else "one")

    event.listen(store.database._engine.sync_engine, "before_cursor_execute", note)
    changed = text(
        "SELECT pg_stat_get_xact_tuples_updated('segment'::regclass),"
        " pg_stat_get_xact_tuples_hot_updated('segment'::regclass)"
    )

    def renew(connection, answered: int) -> tuple[int, int]:
        before = connection.execute(changed).one()
        reports = [world.report(lease, world.tally(answered)) for lease in leases]
        assert not Segments.renew(connection, world.worker, reports, ttl_s=world.ttl_s).lost
        after = connection.execute(changed).one()
        return after[0] - before[0], after[1] - before[1]

    in_place = 0
    for answered in range(1, 5):
        updated, here = await store.database.write(renew, answered)
        assert updated == 100
        in_place += here
    assert written == ["one"] * 4
    assert in_place > 200, in_place
    world.clock.step(world.ttl_s - 1)
    await store.database.write(renew, 5)
    world.clock.step(2)
    assert await store.segments.release_expired() == 0


async def test_the_lease_table_leaves_free_space_on_its_pages(world, store):
    def options(connection) -> list[str]:
        return connection.execute(
            text("SELECT reloptions FROM pg_class WHERE relname = 'segment'")
        ).scalar_one()

    assert await store.database.read(options) == ["fillfactor=70", "autovacuum_vacuum_scale_factor=0.01"]


async def test_candidates_among_many_batches_are_found_by_indexes_without_sorting(world, store):
    plans: list[str] = []
    asked: list[tuple[str, Any]] = []

    def note(_connection, _cursor, statement: str, parameters, _context, _is_many: bool) -> None:
        if "batch" in statement:
            asked.append((statement, parameters))

    engine = store.database._engine
    async with engine.begin() as connection:
        await connection.execute(text(_MANY_BATCHES), {"now": int(world.clock())})
        await connection.execute(text(_THEIR_SEGMENTS))
        await connection.execute(text("ANALYZE batch, segment"))
    event.listen(engine.sync_engine, "before_cursor_execute", note)
    found = await store.open_batches.candidates(after=ProjectId(""), most=8, passed_over=["batch_1"])
    event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert [len(batches) for batches in found.by_project] == [2, 1, 1]
    assert len(found.near) == 8
    async with engine.connect() as connection:
        for statement, parameters in asked:
            rows = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(row[0] for row in rows))
    near, projects, rows_by_sequence, _priorities = plans
    assert re.search(r"Index Scan using batch_by_deadline .*\n +Index Cond: .*expires_at <= ", near)
    for index, scans in (("batch_by_project", 2), ("batch_by_size", 1)):
        assert len(re.findall(rf"using {index} .*\n +Index Cond: .*project_id ", projects)) >= scans
    assert "Index Scan using batch_pkey" in rows_by_sequence
    for plan in plans:
        assert "Seq Scan" not in plan
        assert "Sort" not in plan
