"""From the previous release's schema to this one, with rows in it."""

import asyncio

import pytest
from sqlalchemy import create_engine, text

from nightmill.core.legal_hold import HoldKind
from nightmill.errors import SetupError
from nightmill.store import migrate, open_store
from nightmill.store.migrate import upgrade
from nightmill.store.steps import NEEDED_VERSION, SCHEMA_VERSION, Stage

PREVIOUS = "0002"
DAY = 20_000
_BATCH = (
    "INSERT INTO batch (id, project_id, endpoint, input_file_id, input_blob_key, completion_window,"
    " created_at, expires_at, status, model, total, completed, failed, output_tokens, completed_at,"
    " index_blob_key)"
    " VALUES ('{id}', 'p', '/v1/embeddings', 'file-1', 'k1', '24h', 1, 2, '{status}', {model}, 3, {done}, 0,"
    " 9, {at}, 'i')"
)
_FILE = (
    "INSERT INTO file (id, project_id, purpose, filename, size_bytes, created_at, blob_key, deleted_at)"
    " VALUES ('{id}', '{project}', 'batch', 'f', {size}, 1, '{id}', {deleted})"
)


def previous(path) -> str:
    """A store as the previous release would have left it."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        upgrade(connection, to=PREVIOUS)
        for statement in rows():
            connection.execute(text(statement))
    engine.dispose()
    return f"sqlite:///{path}"


def rows():
    at = DAY * 86_400 + 5
    yield _FILE.format(id="file-1", project="p", size=10, deleted="NULL")
    yield _FILE.format(id="file-2", project="p", size=20, deleted="7")
    yield _BATCH.format(id="batch_1", status="completed", model="'m'", done=3, at=at)
    yield _BATCH.format(id="batch_2", status="in_progress", model="'m'", done=1, at="NULL")


def later(path) -> None:
    """What an old process does while new ones are at work."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        for statement in (
            _BATCH.format(id="batch_3", status="completed", model="NULL", done=3, at=DAY * 86_400),
            _BATCH.format(id="batch_4", status="completed", model="'m'", done=3, at=DAY * 86_400),
            _FILE.format(id="file-3", project="q", size=40, deleted="NULL"),
            "UPDATE file SET deleted_at = 8 WHERE id = 'file-1'",
            _FILE.format(id="file-4", project="p", size=5, deleted="NULL"),
        ):
            connection.execute(text(statement))
    engine.dispose()


async def test_a_data_folder_of_the_previous_release_is_brought_up_to_date_with_all_its_rows(tmp_path):
    url = await asyncio.to_thread(previous, tmp_path / "nightmill.sqlite")
    assert await migrate(url) == SCHEMA_VERSION
    store = open_store(url)
    await store.ping()
    batch = await store.batch("p", "batch_2")
    assert (batch.input_bytes, batch.enqueued_tokens) == (10, 3)
    used = await store.consumption("p")
    assert (used.open.batches, used.open.bytes, used.stored_bytes) == (1, 10, 10)
    (row,) = await store.usage(["project", "model", "day"])
    assert (row.project_id, row.model, row.day, row.requests, row.tally.completed) == ("p", "m", DAY, 3, 3)
    (entry,) = (await store.audit()).items
    assert (entry.act, entry.subject_id, entry.detail) == ("schema.migrated", SCHEMA_VERSION, "from 0002")
    await store.close()


async def test_what_older_processes_left_out_is_counted_after_the_deploy(tmp_path):
    path = tmp_path / "nightmill.sqlite"
    url = await asyncio.to_thread(previous, path)
    with pytest.raises(SetupError, match="run 'nightmill migrate --before'"):
        await migrate(url, stage=Stage.AFTER)
    assert await migrate(url, stage=Stage.BEFORE) == NEEDED_VERSION
    store = open_store(url)
    await store.ping()
    assert (await store.consumption("p")).stored_bytes == 10
    with pytest.raises(SetupError, match="older nightmill may be at work"):
        await store.set_hold(HoldKind.PROJECT, "p")
    assert not await store.all_know_pieces()
    await store.close()
    await asyncio.to_thread(later, path)
    assert await migrate(url, stage=Stage.AFTER) == SCHEMA_VERSION
    assert await migrate(url, stage=Stage.AFTER) == SCHEMA_VERSION
    store = open_store(url)
    assert [(row.model, row.batches) for row in await store.usage(["model"])] == [("", 1), ("m", 2)]
    assert (await store.consumption("p")).stored_bytes == 5
    assert (await store.consumption("q")).stored_bytes == 40
    assert await store.set_hold(HoldKind.PROJECT, "p")
    assert await store.all_know_pieces()
    await store.close()
