"""Copies of a data folder go on as the original does, whatever happened to it while they were made."""

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
    """Backs the folder up, and gives what was told and the copy as a folder of its own."""

    def make(name="copy"):
        told = back_up(data.path, data.settings.store_url, tmp_path / name)
        return told, type(data)(tmp_path / name)

    return make


def test_a_batch_in_progress_goes_on_from_the_copy(data, copied):
    told, copy = copied()

    assert told.missing == []
    assert copy.check(depth=Depth.DEEP).found == ()
    shutil.rmtree(data.path)
    assert copy.ends_well().answered == 40 - 22


def test_the_copy_and_the_original_go_their_own_ways(data, copied):
    _, copy = copied()

    assert data.ends_well().answered == 40 - 22
    assert copy.ends_well().answered == 40 - 22


def test_what_was_answered_after_the_database_was_copied_is_sent_again(data, tmp_path, monkeypatch):
    """Parts that the copied database knows nothing of are not in the backup."""

    def then_the_batch_ends(url, target):
        copy_database(url, target)
        data.ends_well_but_sweeps_nothing()

    monkeypatch.setattr(backup, "copy_database", then_the_batch_ends)
    told = back_up(data.path, data.settings.store_url, tmp_path / "copy")

    assert told.missing == []
    copy = type(data)(tmp_path / "copy")
    assert len(copy.parts()) == len({path.name.split(".")[0] for path in copy.parts()})
    assert copy.ends_well().answered == 40 - 22


def test_nothing_is_deleted_while_a_backup_reads(data):
    """The warden skips its turn, and takes it afterwards."""
    file_id, key = data.ask("SELECT file.id, blob_key FROM file JOIN batch ON output_file_id = file.id")[0]

    async def delete_and_sweep():
        async with data.rooms() as components:
            assert await components.store.files.delete("default", file_id)
            await components.maintenance().turn()

    with no_deletes(data.path):
        asyncio.run(delete_and_sweep())
        assert (data.blobs / key).exists()

    async def sweep():
        async with data.rooms() as components:
            await components.maintenance().turn()

    asyncio.run(sweep())
    assert not (data.blobs / key).exists()


def test_a_reader_waits_for_maintenance_until_its_timeout(data):
    with may_delete(data.path) as is_allowed:
        assert is_allowed
        with pytest.raises(UnavailableError, match="deleting"), no_deletes(data.path, timeout_s=0.1):
            pass
    with no_deletes(data.path), no_deletes(data.path), may_delete(data.path) as is_allowed:
        assert not is_allowed, "two may read, and maintenance deletes nothing meanwhile"


def test_maintenance_without_a_folder_may_delete(tmp_path):
    with may_delete(tmp_path / "nowhere") as is_allowed:
        assert is_allowed
    assert list(tmp_path.iterdir()) == []


def test_a_backup_has_what_is_needed_and_nothing_else(data, copied):
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


def test_nobody_else_can_read_a_backup(copied):
    _, copy = copied()

    assert stat.S_IMODE(copy.path.stat().st_mode) == 0o700
    for path in copy.path.rglob("*"):
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_what_is_damaged_here_is_told_and_the_rest_is_saved(data, copied):
    key = data.ask("SELECT input_blob_key FROM batch WHERE status = 'completed'")[0][0]
    (data.blobs / key).unlink()
    part = data.parts()[0]
    os.truncate(part, part.stat().st_size - 1)

    told, copy = copied()

    assert sorted(told.missing) == sorted([key, f"parts/{part.parent.name}/{part.name}"])
    assert copy.repair().left == ()
    copy.ends_well()


def test_a_backup_that_fails_leaves_nothing_under_its_name(data, tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup.os, "fsync", no_room)
    with pytest.raises(StorageFullError, match="backup"):
        back_up(data.path, data.settings.store_url, tmp_path / "copy")
    assert list(tmp_path.glob("copy*")) == []


def test_what_a_killed_backup_left_is_cleared(data, tmp_path, copied):
    left = tmp_path / "copy.tmp" / "blobs" / "files"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")

    _, copy = copied()

    assert not (copy.blobs / "files" / "half").exists()
    assert not (tmp_path / "copy.tmp").exists()


def test_two_backups_do_not_write_one_copy(data, tmp_path, monkeypatch):
    def meanwhile(url, target):
        with pytest.raises(SetupError, match="another backup is writing"):
            back_up(data.path, url, tmp_path / "copy")
        copy_database(url, target)

    monkeypatch.setattr(backup, "copy_database", meanwhile)
    assert back_up(data.path, data.settings.store_url, tmp_path / "copy").missing == []


@pytest.mark.parametrize(
    ("place", "why"), [("there", "already exists"), ("data/copy", "is inside the data folder")]
)
def test_a_place_that_will_not_do_is_refused(data, tmp_path, place, why):
    (tmp_path / "there").mkdir()
    with pytest.raises(SetupError, match=why):
        back_up(data.path, data.settings.store_url, tmp_path / place)


def test_a_disk_without_shared_blocks_gets_plain_copies(data, copied, monkeypatch):
    def refused(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(backup.os, "copy_file_range", refused)
    told, copy = copied()

    assert told.missing == []
    assert copy.check(depth=Depth.DEEP).found == ()


def test_the_command_says_what_it_copied(data, tmp_path, capsys):
    words = ["backup", str(tmp_path / "copy"), "--folder", str(data.path), "--json"]

    assert cli.invoke(words) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["destination"] == str(tmp_path / "copy")
    size_bytes = sum(path.stat().st_size for path in Path(tmp_path / "copy").rglob("*") if path.is_file())
    assert document["bytes"] == size_bytes
    assert document["missing"] == []


def test_the_command_says_what_is_missing(data, tmp_path, capsys):
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
def test_what_lies_elsewhere_is_kept_by_other_tools(
    data, tmp_path, monkeypatch, capsys, words, setting, value, why
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(setting, value)
    assert cli.invoke([*words, "--folder", str(data.path)]) == 78
    assert why in capsys.readouterr().err
