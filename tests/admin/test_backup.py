"""A backup continues as the original would, whatever happened to the original during the backup."""

import asyncio
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from nightmill import cli
from nightmill.admin import backup
from nightmill.admin.backup import back_up
from nightmill.admin.check import Depth
from nightmill.admin.delete_lock import may_delete, no_deletes
from nightmill.errors import SetupError, StorageFullError, UnavailableError
from nightmill.store.snapshot import copy_database


@pytest.fixture
def copied(data, tmp_path):
    """Backs the folder up; returns the result of the backup and the copy as a `DataFolder`."""

    def make(name="copy"):
        result = back_up(data.path, data.settings.store_url, tmp_path / name)
        return result, type(data)(tmp_path / name)

    return make


def test_a_batch_in_progress_continues_from_the_copy(data, copied):
    result, copy = copied()

    assert result.missing == []
    assert copy.check(depth=Depth.DEEP).found == ()
    shutil.rmtree(data.path)
    assert copy.run_to_successful_end().answered == 40 - 22


def test_the_copy_and_the_original_continue_independently(data, copied):
    _, copy = copied()

    assert data.run_to_successful_end().answered == 40 - 22
    assert copy.run_to_successful_end().answered == 40 - 22


def test_lines_answered_after_the_database_was_copied_are_sent_again(data, tmp_path, monkeypatch):
    """Parts that the copied database does not reference are not in the backup."""

    def copy_database_and_finish_the_batch(url, target):
        copy_database(url, target)
        data.finish_without_sweeping()

    monkeypatch.setattr(backup, "copy_database", copy_database_and_finish_the_batch)
    result = back_up(data.path, data.settings.store_url, tmp_path / "copy")

    assert result.missing == []
    copy = type(data)(tmp_path / "copy")
    assert len(copy.parts()) == len({path.name.split(".")[0] for path in copy.parts()})
    assert copy.run_to_successful_end().answered == 40 - 22


def test_nothing_is_deleted_while_a_backup_reads(data):
    """Maintenance skips its turn during the backup, and deletes afterwards."""
    file_id, key = data.ask("SELECT file.id, blob_key FROM file JOIN batch ON output_file_id = file.id")[0]

    async def delete_and_sweep():
        async with data.open_components_of_folder() as components:
            assert await components.store.files.delete("default", file_id)
            await components.maintenance().turn()

    with no_deletes(data.path):
        asyncio.run(delete_and_sweep())
        assert (data.blobs / key).exists()

    async def sweep():
        async with data.open_components_of_folder() as components:
            await components.maintenance().turn()

    asyncio.run(sweep())
    assert not (data.blobs / key).exists()


def test_a_reader_waits_for_maintenance_until_its_timeout(data):
    with may_delete(data.path) as is_allowed:
        assert is_allowed
        with pytest.raises(UnavailableError, match="deleting"), no_deletes(data.path, timeout_s=0.1):
            pass
    with no_deletes(data.path), no_deletes(data.path), may_delete(data.path) as is_allowed:
        assert not is_allowed, "two readers may hold the lock, and maintenance may not delete meanwhile"


def test_maintenance_without_a_data_folder_may_delete(tmp_path):
    with may_delete(tmp_path / "nowhere") as is_allowed:
        assert is_allowed
    assert list(tmp_path.iterdir()) == []


def test_a_backup_contains_only_the_files_that_are_needed(data, copied):
    (data.blobs / "files/file-nobody").write_bytes(b"stray")
    (data.blobs / "tmp/0123").write_bytes(b"unfinished")

    _, copy = copied()

    names = {path.relative_to(copy.path).as_posix() for path in copy.path.rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith("blobs/")} == {"nightmill.sqlite"}
    assert "blobs/files/file-nobody" not in names
    assert "blobs/tmp/0123" not in names
    assert {name.split("/")[1] for name in names if name.startswith("blobs/")} == {
        "files",
        "lines",
        "parts",
        "uploads",
    }


def test_a_backup_is_readable_by_its_owner_only(copied):
    _, copy = copied()

    assert stat.S_IMODE(copy.path.stat().st_mode) == 0o700
    for path in copy.path.rglob("*"):
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_damaged_blobs_are_reported_and_the_rest_is_backed_up(data, copied):
    key = data.ask("SELECT input_blob_key FROM batch WHERE status = 'completed'")[0][0]
    (data.blobs / key).unlink()
    part = data.parts()[0]
    os.truncate(part, part.stat().st_size - 1)

    result, copy = copied()

    assert sorted(result.missing) == sorted([key, f"parts/{part.parent.name}/{part.name}"])
    assert copy.repair().left == ()
    copy.run_to_successful_end()


def test_a_backup_that_fails_leaves_nothing_under_its_name(data, tmp_path, monkeypatch):
    def raise_no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup.os, "fsync", raise_no_space)
    with pytest.raises(StorageFullError, match="backup"):
        back_up(data.path, data.settings.store_url, tmp_path / "copy")
    assert list(tmp_path.glob("copy*")) == []


def test_the_remains_of_a_killed_backup_are_deleted(data, tmp_path, copied):
    left = tmp_path / "copy.tmp" / "blobs" / "files"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")

    _, copy = copied()

    assert not (copy.blobs / "files" / "half").exists()
    assert not (tmp_path / "copy.tmp").exists()


def test_a_second_backup_to_the_same_destination_is_refused(data, tmp_path, monkeypatch):
    def start_a_second_backup(url, target):
        with pytest.raises(SetupError, match="another backup is writing"):
            back_up(data.path, url, tmp_path / "copy")
        copy_database(url, target)

    monkeypatch.setattr(backup, "copy_database", start_a_second_backup)
    assert back_up(data.path, data.settings.store_url, tmp_path / "copy").missing == []


@pytest.mark.parametrize(
    ("destination", "why"), [("there", "already exists"), ("data/copy", "is inside the data folder")]
)
def test_an_unsuitable_destination_is_refused(data, tmp_path, destination, why):
    (tmp_path / "there").mkdir()
    with pytest.raises(SetupError, match=why):
        back_up(data.path, data.settings.store_url, tmp_path / destination)


def test_a_file_system_without_shared_blocks_gets_plain_copies(data, copied, monkeypatch):
    def raise_cross_device_link(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(backup.os, "copy_file_range", raise_cross_device_link)
    result, copy = copied()

    assert result.missing == []
    assert copy.check(depth=Depth.DEEP).found == ()


def test_the_command_reports_what_it_copied(data, tmp_path, capsys):
    words = ["backup", str(tmp_path / "copy"), "--folder", str(data.path), "--json"]

    assert cli.invoke(words) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["destination"] == str(tmp_path / "copy")
    size_bytes = sum(path.stat().st_size for path in Path(tmp_path / "copy").rglob("*") if path.is_file())
    assert document["bytes"] == size_bytes
    assert document["missing"] == []


def test_the_command_reports_what_is_missing(data, tmp_path, capsys):
    data.parts()[0].unlink()

    assert cli.invoke(["backup", str(tmp_path / "copy"), "--folder", str(data.path)]) == 74
    assert "is not whole in the data folder itself" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["backup", "copy"], ["check"], ["check", "--repair"]])
@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("NIGHTMILL_BLOBS__URL", "s3://bucket/prefix", "the blobs lie in s3://bucket/prefix"),
        ("NIGHTMILL_STORE", "postgresql://user@localhost/x", "Postgres's own tools"),
    ],
)
def test_a_store_or_blobs_outside_the_folder_are_refused(
    data, tmp_path, monkeypatch, capsys, words, setting, value, why
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(setting, value)
    assert cli.invoke([*words, "--folder", str(data.path)]) == 78
    assert why in capsys.readouterr().err
