"""Connections to SQLite: journal mode, locks, crashes, and the error raised for each failure."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from nightmill.core.batch import Event, Status
from nightmill.errors import SetupError, StorageFullError, UnavailableError
from nightmill.store import migrate, open_store
from nightmill.store.sqlite import sqlite_engine, sqlite_failure, sqlite_library


@pytest.fixture(params=["sqlite"])
def kind(request) -> str:
    """These tests run on SQLite only."""
    return request.param


@pytest.fixture
def path(world) -> str:
    return world.url.removeprefix("sqlite:///")


def _connect(path: str):
    # Two SQLite libraries in one process don't see each other's locks, so the test uses the store's library.
    return sqlite_library().module.connect(path, isolation_level=None)


def _library(version: tuple[int, int, int]):
    return sqlite_library(SimpleNamespace(sqlite_version_info=version))


@pytest.mark.parametrize(
    ("version", "mode"), [((3, 51, 2), "TRUNCATE"), ((3, 51, 3), "WAL"), ((3, 40, 1), "TRUNCATE")]
)
def test_wal_is_used_only_where_it_cannot_corrupt(version, mode):
    assert _library(version).journal_mode == mode


@pytest.mark.parametrize("module", ["sqlite3", "pysqlite3.dbapi2"])
def test_commits_are_synced_to_disk_in_either_journal_mode(tmp_path, module):
    library = sqlite_library(pytest.importorskip(module, reason="that SQLite is not installed"))
    engine = sqlite_engine(tmp_path / "db", begin="BEGIN IMMEDIATE", clock=lambda: 7.0, library=library)
    with engine.connect() as connection, connection.begin():
        pragma = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        assert connection.execute(text("SELECT nightmill_now()")).scalar_one() == 7.0
    engine.dispose()
    expected = {"journal_mode": library.journal_mode.lower(), "synchronous": 2, "foreign_keys": 1}
    assert pragma == {**expected, "busy_timeout": 10_000}


async def test_a_locked_database_is_unavailable_and_nothing_is_written(world, path):
    store = world.open(busy_timeout_s=0.05)
    made = world.batch()
    with closing(_connect(path)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            await store.batches.create(made)
        locker.execute("ROLLBACK")
    assert await store.batches.get(world.project, made.id) is None
    assert await store.batches.create(made) == made


async def test_reads_succeed_while_another_process_writes(world, store, path):
    made = await store.batches.create(world.batch())
    if sqlite_library().journal_mode != "WAL":
        pytest.skip("only with WAL do readers pass writers")
    with closing(_connect(path)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        assert await store.batches.get(world.project, made.id) == made


async def test_calls_queued_behind_a_lock_share_one_timeout(world, path):
    store = world.open(busy_timeout_s=1)
    await store.ping()
    with closing(_connect(path)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(30):  # one call after the other would take 50 s
            calls = [store.batches.create(world.batch()) for _ in range(50)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {UnavailableError}


async def test_a_cancelled_caller_leaves_no_transaction_open(world, store):
    async with asyncio.timeout(60):
        for _ in range(20):
            call = asyncio.create_task(store.batches.create(world.batch()))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        made = await store.batches.create(world.batch())
    assert (await store.batches.list(world.project)).items[0] == made


async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/no/such/folder.sqlite")
    with pytest.raises(UnavailableError):
        await store.ping()
    await store.close()


async def test_opening_a_file_that_is_not_a_database_fails_with_a_clear_error(tmp_path):
    path = tmp_path / "notes.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(SetupError, match="damaged"):
        await migrate(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["mysql://localhost/x", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_a_url_with_an_unknown_scheme_is_refused_with_a_one_line_error(url):
    with pytest.raises(SetupError) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("SQLITE_BUSY", UnavailableError),
        ("SQLITE_BUSY_SNAPSHOT", UnavailableError),
        ("SQLITE_LOCKED_SHAREDCACHE", UnavailableError),
        ("SQLITE_FULL", StorageFullError),
        ("SQLITE_IOERR_WRITE", UnavailableError),
        ("SQLITE_READONLY", UnavailableError),
        ("SQLITE_CANTOPEN", UnavailableError),
        ("SQLITE_CORRUPT", SetupError),
        ("SQLITE_NOTADB", SetupError),
        ("SQLITE_CONSTRAINT_CHECK", ValueError),
        ("SQLITE_ERROR", sqlite3.OperationalError),
    ],
)
def test_each_sqlite_error_code_maps_to_the_right_error(code, kind):
    error = sqlite3.OperationalError("secret")
    error.sqlite_errorname = code
    assert type(sqlite_failure(error)) is kind


_CRASH = """
import asyncio, os, signal, sys
from nightmill.store import batch_leases, open_store
from nightmill.core.batch import Event, Status

point, url = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = open_store(url, clock=lambda: 1_760_000_000.0)
    lease = await store.batch_leases.lease((Status.VALIDATING,), "intake", ttl_s=30)
    after = lease.batch.after(Event.ACCEPTED, now=1_760_000_000)
    segments = []
    if point == "after the first statement":
        real = batch_leases.write_status
        batch_leases.write_status = lambda *a, **k: (real(*a, **k), die())
    if point == "before the commit":
        real_insert = batch_leases.insert_all
        batch_leases.insert_all = lambda *a: (real_insert(*a), die())
    await store.batch_leases.accept(lease, after, index_blob_key="i", segments=segments)
    die()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("point", "status"),
    [
        ("after the first statement", Status.VALIDATING),
        ("before the commit", Status.VALIDATING),
        ("after the commit", Status.IN_PROGRESS),
    ],
)
async def test_a_killed_process_leaves_no_partial_transaction(world, store, point, status):
    made = await store.batches.create(world.batch())
    crashed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", _CRASH, point, world.url], timeout=60, check=False
    )
    assert crashed.returncode == -signal.SIGKILL
    assert (await world.read_again(store, made)).status is status
    world.clock.step(world.ttl_s)
    if status is Status.VALIDATING:
        assert await world.accept(store, await world.batch_lease(store))
    assert (await world.apply(store, made, Event.CANCEL_REQUESTED)).status is Status.CANCELLING


async def test_ping_fails_when_the_schema_version_differs(world, store, path):
    await store.ping()
    with closing(_connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE schema_compatibility SET oldest = '9999'")
    with pytest.raises(UnavailableError, match="9999"):
        await store.ping()
