"""Damage a real folder in each way; see it found and repaired, and every line answered once."""

import asyncio
import json
import os
import shutil
import time

import pytest

from nightmill import cli
from nightmill.admin.check import Depth
from nightmill.core.batch import Event
from nightmill.ids import FileId
from nightmill.store import Idempotency


def kinds(findings):
    return sorted({str(finding.kind) for finding in findings})


def pinned_parts(data, where="1"):
    """Paths and pinned lengths of the unfinished batch's parts, done segments first."""
    rows = data.ask(
        f"SELECT pinned FROM segment JOIN batch ON batch.id = batch_id"
        f" WHERE batch.status = 'in_progress' AND ({where}) ORDER BY state <> 'done', number"
    )
    return [
        (data.blobs / "parts" / key, length_bytes)
        for (text,) in rows
        for key, length_bytes in json.loads(text)
    ]


def test_a_folder_that_a_killed_server_left_is_as_it_should_be(data):
    assert data.check(depth=Depth.DEEP).found == ()
    assert data.repair().found == ()
    upstream = data.ends_well()
    assert upstream.answered == 40 - 22


# --- answers that are gone --------------------------------------------------------------------------------


def cut(path):
    os.truncate(path, path.stat().st_size - 3)


def flip(path, offset=-20):
    text = bytearray(path.read_bytes())
    text[offset] ^= 0xFF
    path.write_bytes(text)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, empty, os.unlink], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("state", ["done", "waiting"])
def test_lines_whose_answers_are_damaged_are_sent_again_and_no_others(data, harm, state):
    asyncio.run(_released(data))
    path, _ = pinned_parts(data, f"segment.state = '{state}' AND segment.pinned <> '[]'")[0]
    harm(path)

    checked = data.check()

    assert kinds(checked.found) == ["part"]
    assert checked.found[0].repair is not None
    assert data.repair().left == ()
    upstream = data.ends_well()
    most_in_a_segment = 5
    assert 40 - 22 < upstream.answered <= 40 - 22 + most_in_a_segment
    assert set(upstream.asked.values()) == {1}


async def _released(data):
    async with data.rooms() as components:
        await components.store.leases.release_all()


def test_what_lies_before_the_damage_is_kept(data):
    path, length_bytes = pinned_parts(data, "segment.state = 'done'")[0]
    flip(path, offset=length_bytes - 5)

    data.repair()

    assert data.ends_well().answered == 40 - 22 + 1


def test_a_segment_that_counts_more_than_its_parts_hold_counts_again(data, unfinished):
    asyncio.run(_released(data))
    with data.rows() as rows:
        number = rows.execute(
            "SELECT number FROM segment WHERE batch_id = ? AND completed = 0 LIMIT 1", [unfinished]
        ).fetchone()[0]
        for table, where in (("segment", f"batch_id = ? AND number = {number}"), ("batch", "id = ?")):
            rows.execute(f"UPDATE {table} SET completed = completed + 2 WHERE {where}", [unfinished])

    assert kinds(data.check().found) == ["answers"]
    assert data.repair().left == ()
    assert data.ask("SELECT completed FROM batch WHERE id = ?", unfinished) == [(22,)]
    data.ends_well()


def test_a_batch_that_counts_wrong_counts_again(data, unfinished):
    with data.rows() as rows:
        rows.execute("UPDATE batch SET completed = 3, total_tokens = 1 WHERE id = ?", [unfinished])

    assert kinds(data.check().found) == ["tally"]
    assert data.repair().left == ()
    assert data.ask("SELECT completed, total_tokens FROM batch WHERE id = ?", unfinished) == [(22, 110)]
    data.ends_well()


def test_segments_to_do_are_counted_again(data, unfinished):
    with data.rows() as rows:
        rows.execute("UPDATE batch SET segments_left = 0 WHERE id = ?", [unfinished])

    assert kinds(data.check().found) == ["tally"]
    data.repair()
    data.ends_well()


def test_a_batch_about_to_be_finalized_goes_back_to_work(data, unfinished):
    """Else its lost lines would count as expired, with hours of its window left."""
    asyncio.run(_finalizing(data))
    path, _ = pinned_parts_of_all(data, unfinished)[0]
    path.unlink()

    assert kinds(data.check().found) == ["part"]
    assert data.repair().left == ()
    assert data.ask("SELECT status, finalizing_at FROM batch WHERE id = ?", unfinished) == [
        ("in_progress", None)
    ]
    data.ends_well()


async def _finalizing(data):
    """Every line answered, and not yet finalized."""
    async with data.rooms() as components:
        await components.store.leases.release_all()
    data_upstream = data.new_upstream()

    async def until(components):
        return bool(await components.store.batches.settled())

    await data.run_without_finalizer(data_upstream, until)
    async with data.rooms() as components:
        for batch in await components.store.batches.settled():
            after = batch.after(Event.SETTLED, now=time.time())
            assert await components.store.batches.move(after, expected=batch.status)


def pinned_parts_of_all(data, batch_id):
    return [
        (data.blobs / "parts" / key, length_bytes)
        for (text,) in data.ask("SELECT pinned FROM segment WHERE batch_id = ? ORDER BY number", batch_id)
        for key, length_bytes in json.loads(text)
    ]


# --- what a batch is made of ------------------------------------------------------------------------------


def index_of(data, batch_id):
    return data.blobs / data.ask("SELECT index_blob_key FROM batch WHERE id = ?", batch_id)[0][0]


def input_of(data, batch_id):
    return data.blobs / data.ask("SELECT input_blob_key FROM batch WHERE id = ?", batch_id)[0][0]


@pytest.mark.parametrize("harm", [cut, empty, os.unlink], ids=lambda harm: harm.__name__)
def test_a_damaged_line_index_is_made_again(data, unfinished, harm):
    before = index_of(data, unfinished).read_bytes()
    harm(index_of(data, unfinished))

    assert "line_index" in kinds(data.check().found)
    assert data.repair().left == ()
    assert index_of(data, unfinished).read_bytes() == before
    data.ends_well()


@pytest.mark.parametrize("place", [0, 7, 8, 12, 24 * 3 + 13])
def test_a_wrong_record_of_a_line_index_is_seen(data, unfinished, place):
    before = index_of(data, unfinished).read_bytes()
    flip(index_of(data, unfinished), offset=place)

    assert kinds(data.check().found) == ["line_index"]
    assert data.repair().left == ()
    assert index_of(data, unfinished).read_bytes() == before
    data.ends_well()


def test_an_input_that_is_gone_can_only_be_brought_back(data, unfinished):
    path = input_of(data, unfinished)
    text = path.read_bytes()
    path.unlink()

    checked = data.repair()

    assert kinds(checked.left) == ["file_missing", "input_missing"]
    path.write_bytes(text)
    assert data.ends_well().answered == 40 - 22


def test_an_input_whose_lines_changed_is_seen_by_a_deep_check(data, unfinished):
    path = input_of(data, unfinished)
    path.write_bytes(path.read_bytes().replace(b"}\n", b"} ", 1))

    assert data.check().found == ()
    found = data.check(depth=Depth.DEEP).found
    assert kinds(found) == ["input_missing"]
    assert found[0].repair is None


def test_segments_with_a_gap_are_seen(data, unfinished):
    with data.rows() as rows:
        rows.execute("DELETE FROM segment WHERE batch_id = ? AND number = 7", [unfinished])

    assert "segments" in kinds(data.check().left)


# --- files, uploads, keys ---------------------------------------------------------------------------------


def output_of(data):
    return data.ask("SELECT file.id, blob_key FROM file JOIN batch ON output_file_id = file.id")[0]


def test_a_file_whose_bytes_are_gone_is_marked_deleted(data):
    file_id, key = output_of(data)
    (data.blobs / key).unlink()

    assert kinds(data.check().found) == ["file_missing"]
    assert data.repair().left == ()

    async def find():
        async with data.rooms() as components:
            return await components.store.files.get("default", FileId(file_id))

    assert asyncio.run(find()) is None


def test_a_file_of_another_length_is_told_and_left_alone(data):
    _, key = output_of(data)
    cut(data.blobs / key)
    before = (data.blobs / key).read_bytes()

    checked = data.repair()

    assert kinds(checked.left) == ["file_size"]
    assert (data.blobs / key).read_bytes() == before


def test_an_output_that_lacks_a_line_is_seen_by_a_deep_check(data):
    file_id, key = output_of(data)
    path = data.blobs / key
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with data.rows() as rows:
        rows.execute("UPDATE file SET size_bytes = ? WHERE id = ?", [path.stat().st_size, file_id])

    assert data.check().found == ()
    assert kinds(data.check(depth=Depth.DEEP).found) == ["output_lines"]


def test_an_output_nobody_knows_is_seen(data):
    with data.rows() as rows:
        rows.execute("UPDATE batch SET error_file_id = 'file-nowhere' WHERE status = 'completed'")

    assert kinds(data.check().found) == ["output_lines"]


@pytest.mark.parametrize("harm", [cut, os.unlink], ids=lambda harm: harm.__name__)
def test_a_part_of_an_open_upload_whose_bytes_are_gone_is_forgotten(data, harm):
    harm(data.blobs / data.ask("SELECT blob_key FROM upload_part")[0][0])

    assert kinds(data.check().found) == ["upload_part"]
    assert data.repair().left == ()
    assert data.ask("SELECT * FROM upload_part") == []


def test_a_key_of_a_create_that_never_was_is_forgotten(data, unfinished):
    async def create():
        async with data.rooms() as components:
            first = await components.store.batches.get("default", unfinished)
            await components.store.batches.create(first, Idempotency("once", "print"))

    with data.rows() as rows:
        rows.execute(
            "INSERT INTO idempotency VALUES ('default', 'create_batch', 'once', 'print', 'batch_no', ?)",
            [time.time()],
        )
    assert kinds(data.check().found) == ["idempotency"]
    assert data.repair().left == ()
    assert data.ask("SELECT * FROM idempotency") == []


def test_segments_of_a_batch_that_has_ended_are_removed(data):
    ended = data.ask("SELECT id FROM batch WHERE status = 'completed'")[0][0]
    with data.rows() as rows:
        rows.execute(
            "INSERT INTO segment (batch_id, number, first, count, state, pinned)"
            " VALUES (?, 0, 0, 5, 'waiting', '[]')",
            [ended],
        )

    assert kinds(data.check().found) == ["left_segments"]
    assert data.repair().left == ()
    data.ends_well()


# --- bytes that nothing names -----------------------------------------------------------------------------


def orphaned_blobs(data, unfinished):
    ended = data.ask("SELECT id FROM batch WHERE status = 'completed'")[0][0]
    paths = [
        "files/file-nobody",
        f"lines/{ended}/7",
        f"lines/{unfinished}/9",
        "uploads/upload_1/part_2",
        "tmp/0123",
        "parts/batch_unknown/0.1.part",
        f"parts/{ended}/0.1.part",
        f"parts/{unfinished}/900.1.part",
        f"parts/{unfinished}/odd",
    ]
    for path in paths:
        (data.blobs / path).parent.mkdir(parents=True, exist_ok=True)
        (data.blobs / path).write_bytes(b"left")
    return paths


def test_strays_are_told_once_they_are_an_hour_old(data, unfinished):
    paths = orphaned_blobs(data, unfinished)

    assert data.check().found == ()
    later = data.check(clock=lambda: time.time() + 3_700).found

    assert kinds(later) == ["stray"]
    assert sorted(finding.subject for finding in later) == sorted(paths)
    assert all((data.blobs / path).exists() for path in paths), "a check changes nothing"


def test_strays_are_removed_when_nobody_is_at_work(data, unfinished):
    paths = orphaned_blobs(data, unfinished)

    checked = data.repair()

    assert sorted(finding.subject for finding in checked.found) == sorted(paths)
    assert checked.left == ()
    assert not any((data.blobs / path).exists() for path in paths)
    data.ends_well()


# --- the database -----------------------------------------------------------------------------------------


def test_a_damaged_database_is_told_and_not_touched(data):
    path = data.path / "nightmill.sqlite"
    text = bytearray(path.read_bytes())
    root_page = data.ask("SELECT rootpage FROM sqlite_schema WHERE name = 'batch_by_age'")[0][0]
    start = (root_page - 1) * 4_096
    text[start : start + 4_096] = bytes(4_096)
    path.write_bytes(text)

    checked = data.check()

    assert kinds(checked.left) == ["database"]
    assert all(finding.repair is None for finding in checked.left)


def test_a_database_of_another_nightmill_is_not_judged(data):
    with data.rows() as rows:
        rows.execute("UPDATE alembic_version SET version_num = '9999'")
        rows.execute("UPDATE schema_compatibility SET oldest = '9999'")

    assert kinds(data.check().left) == ["schema"]


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys):
    def run(*words):
        code = cli.invoke([str(word) for word in words])
        return code, capsys.readouterr()

    return run


def test_the_exit_code_says_what_to_do(data, command):
    folder = ("--folder", data.path)
    assert command("check", *folder)[0] == 0
    path, _ = pinned_parts(data)[0]
    path.unlink()

    code, told = command("check", *folder)
    assert code == 1
    assert "[repair: keep 0 answers and send 5 lines again]" in told.out
    assert "1 wrong, 1 of them can be repaired with --repair" in told.err

    code, told = command("check", *folder, "--repair")
    assert code == 0
    assert "[repaired]" in told.out

    _, key = output_of(data)
    cut(data.blobs / key)
    assert command("check", *folder)[0] == 74
    assert command("check", *folder, "--repair")[0] == 74


def test_json_lists_every_finding(data, command):
    path, _ = pinned_parts(data)[0]
    path.unlink()

    code, told = command("check", "--folder", data.path, "--json")

    document = json.loads(told.out)
    assert (code, document["wrong"]) == (1, 1)
    assert document["findings"][0]["kind"] == "part"
    assert document["findings"][0]["mended"] is False
    assert json.loads(command("check", "--folder", data.path, "--json", "--repair")[1].out)["wrong"] == 0


def test_a_folder_that_is_not_there_is_not_made(tmp_path, command):
    for words in (["check"], ["check", "--repair"], ["backup", str(tmp_path / "copy")]):
        code, told = command(*words, "--folder", tmp_path / "nowhere")
        assert code == 78
        assert "there is no" in told.err
    assert list(tmp_path.iterdir()) == []


def test_repair_wants_the_folder_to_itself(data, command):
    from nightmill.runtime.data_folder_lock import locked_folder

    with locked_folder(data.path):
        assert command("check", "--folder", data.path)[0] == 0
        code, told = command("check", "--folder", data.path, "--repair")
    assert code == 78
    assert "in use by process" in told.err


def test_a_folder_with_no_batch_at_all_is_fine(tmp_path, data):
    shutil.rmtree(data.blobs)
    with data.rows() as rows:
        for table in ("segment", "batch", "file", "upload_part", "upload"):
            rows.execute(f"DELETE FROM {table}")
    assert data.repair().found == ()
