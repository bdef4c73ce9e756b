"""`nightmill prune` on a data folder, with and without a server on it."""

import asyncio
import time
from pathlib import Path

import pytest

from nightmill.blobs import new_blob
from nightmill.core.batch import Batch, Event, Status
from nightmill.core.file import File, Purpose
from nightmill.ids import BatchId, FileId, ProjectId, WorkerId
from nightmill.runtime.data_folder_lock import locked_folder
from nightmill.runtime.storage import open_storage
from nightmill.settings import load
from nightmill.store import migrate, open_store

DAY_S = 86_400
OLD, YOUNG = 40 * DAY_S, 1 * DAY_S


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data folder with an old and a young batch that failed, and an old and a young input file."""
    path = tmp_path / "data"
    path.mkdir()
    asyncio.run(_fill(path))
    return path


async def _fill(folder: Path) -> None:
    settings = load(flags={"folder": folder}, environment={})
    await migrate(settings.store_url)
    blobs, parts = open_storage(settings)
    for name, age_s in (("old", OLD), ("young", YOUNG)):
        at = time.time() - age_s
        store = open_store(settings.store_url, clock=lambda at=at: at)
        key = f"files/file-{name}"
        async with new_blob(blobs, key) as writer:
            await writer.write(b"x" * 2_000)
        await store.files.add(
            File(
                FileId(f"file-{name}"), ProjectId("default"), Purpose.BATCH, "in.jsonl", 2_000, int(at),
                int(at) + 90 * DAY_S, key,
            )
        )  # fmt: skip
        await store.batches.create(
            Batch(
                id=BatchId(f"batch_{name}"),
                project_id=ProjectId("default"),
                endpoint="/v1/chat/completions",
                input_file_id=FileId(f"file-{name}"),
                input_blob_key=key,
                completion_window="24h",
                created_at=int(at),
                expires_at=int(at) + DAY_S,
            )
        )
        lease = await store.batch_leases.lease((Status.VALIDATING,), WorkerId("worker-1"), ttl_s=30)
        assert lease is not None
        assert await store.batch_leases.reject(lease, lease.batch.after(Event.REJECTED, now=at))
        await store.close()
    await parts.close()


def left_in(folder: Path) -> tuple[set[str], set[str], set[str]]:
    """The batches, the live files and the blobs of the folder."""

    async def read() -> tuple[set[str], set[str]]:
        store = open_store(f"sqlite:///{folder / 'nightmill.sqlite'}")
        project = ProjectId("default")
        batches = (await store.batches.list(project)).items
        files = (await store.files.list(project)).items
        await store.close()
        return {batch.id for batch in batches}, {file.id for file in files}

    blobs = {path.name for path in (folder / "blobs/files").iterdir()}
    return *asyncio.run(read()), blobs


ALL = {"batch_old", "batch_young"}, {"file-old", "file-young"}, {"file-old", "file-young"}


def test_a_dry_run_counts_what_is_old_and_changes_nothing(nightmill, folder):
    ran = nightmill("prune", "--older-than", "30d", "--dry-run", "--folder", folder)
    assert (ran.code, ran.out) == (0, "would delete 1 file (2.0 kB) and the rows of 1 ended batch\n")
    assert left_in(folder) == ALL


def test_in_a_pipe_nothing_is_deleted_without_yes(nightmill, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    ran = nightmill("prune", "--older-than", "30d", "--folder", folder)
    assert ran.code == 2
    assert "add --yes to do it" in ran.err
    assert left_in(folder) == ALL


def test_what_is_old_goes_with_its_bytes_and_what_is_young_stays(nightmill, folder):
    ran = nightmill("prune", "--older-than", "30d", "--yes", "--folder", folder)
    assert (ran.code, ran.out) == (0, "deleted 1 file, and the rows of 1 batch and 0 deleted files\n")
    assert "the database file is " in ran.err
    assert left_in(folder) == ({"batch_young"}, {"file-young"}, {"file-young"})
    assert nightmill("check", "--folder", folder).code == 0
    audit = nightmill("audit", "--folder", folder, "--json").out
    assert '"batch.removed"' in audit
    assert '"file.deleted"' in audit


def test_beside_a_server_the_bytes_are_left_to_it(nightmill, folder):
    with locked_folder(folder):
        ran = nightmill("prune", "--older-than", "30d", "--yes", "--folder", folder)
    assert ran.code == 0
    assert "the server that runs here deletes the files' bytes within 5 s" in ran.err
    assert left_in(folder) == ({"batch_young"}, {"file-young"}, {"file-old", "file-young"})


def test_the_database_file_becomes_smaller(nightmill, folder):
    database = folder / "nightmill.sqlite"

    async def grow() -> None:
        store = open_store(f"sqlite:///{database}")
        await store.database.write(
            lambda connection: connection.exec_driver_sql(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
                "INSERT INTO batch_event (batch_id, at, kind, detail) "
                "SELECT 'batch_old', i, 'created', hex(zeroblob(100)) FROM n"
            )
        )
        await store.close()

    asyncio.run(grow())
    before_bytes = database.stat().st_size
    ran = nightmill("prune", "--older-than", "30d", "--yes", "--json", "--folder", folder)
    assert database.stat().st_size < before_bytes / 2
    assert ran.json["database_freed_bytes"] == before_bytes - database.stat().st_size


@pytest.mark.parametrize("age", ["30", "d", "3m", "-1d"])
def test_an_age_that_is_none_is_refused(nightmill, folder, age):
    ran = nightmill("prune", f"--older-than={age}", "--folder", folder)
    assert ran.code == 2
    assert "--older-than wants a number and h, d or w, such as 30d" in ran.err


def test_a_missing_folder_is_not_made(nightmill, tmp_path):
    ran = nightmill("prune", "--older-than", "1d", "--folder", tmp_path / "nowhere")
    assert ran.code == 78
    assert not (tmp_path / "nowhere").exists()
