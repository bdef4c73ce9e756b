"""Each kind of damage to a real folder is found and repaired, and every line is answered once."""

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


def test_the_folder_of_a_killed_server_passes_the_check(data):
    assert data.check(depth=Depth.DEEP).found == ()
    assert data.repair().found == ()
    upstream = data.run_to_successful_end()
    assert upstream.answered == 40 - 22


# --- lost answers -----------------------------------------------------------------------------------------


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
def test_only_lines_with_damaged_answers_are_sent_again(data, harm, state):
    asyncio.run(_release_all_leases(data))
    path, _ = pinned_parts(data, f"segment.state = '{state}' AND segment.pinned <> '[]'")[0]
    harm(path)

    checked = data.check()

    assert kinds(checked.found) == ["part"]
    assert checked.found[0].repair is not None
    assert data.repair().left == ()
    upstream = data.run_to_successful_end()
    most_in_a_segment = 5
    assert 40 - 22 < upstream.answered <= 40 - 22 + most_in_a_segment
    assert set(upstream.asked.values()) == {1}


async def _release_all_leases(data):
    async with data.open_components_of_folder() as components:
        await components.store.leases.release_all()


def test_answers_before_the_damage_are_kept(data):
    path, length_bytes = pinned_parts(data, "segment.state = 'done'")[0]
    flip(path, offset=length_bytes - 5)

    data.repair()

    assert data.run_to_successful_end().answered == 40 - 22 + 1


def test_the_tally_of_a_segment_is_recomputed_from_its_parts(data, unfinished):
    asyncio.run(_release_all_leases(data))
    with data.rows() as rows:
        number = rows.execute(
            "SELECT number FROM segment WHERE batch_id = ? AND completed = 0 LIMIT 1", [unfinished]
        ).fetchone()[0]
        for table, where in (("segment", f"batch_id = ? AND number = {number}"), ("batch", "id = ?")):
            rows.execute(f"UPDATE {table} SET completed = completed + 2 WHERE {where}", [unfinished])

    assert kinds(data.check().found) == ["answers"]
    assert data.repair().left == ()
    assert data.ask("SELECT completed FROM batch WHERE id = ?", unfinished) == [(22,)]
    data.run_to_successful_end()


def test_a_wrong_tally_of_a_batch_is_recomputed(data, unfinished):
    with data.rows() as rows:
        rows.execute("UPDATE batch SET completed = 3, total_tokens = 1 WHERE id = ?", [unfinished])

    assert kinds(data.check().found) == ["tally"]
    assert data.repair().left == ()
    assert data.ask("SELECT completed, total_tokens FROM batch WHERE id = ?", unfinished) == [(22, 110)]
    data.run_to_successful_end()


def test_a_wrong_number_of_remaining_segments_is_recomputed(data, unfinished):
    with data.rows() as rows:
        rows.execute("UPDATE batch SET segments_left = 0 WHERE id = ?", [unfinished])

    assert kinds(data.check().found) == ["tally"]
    data.repair()
    data.run_to_successful_end()


def test_a_finalizing_batch_with_a_lost_part_returns_to_in_progress(data, unfinished):
    """Otherwise its lost lines would count as expired although hours of its completion window remain."""
    asyncio.run(_bring_to_finalizing(data))
    path, _ = pinned_parts_of_all(data, unfinished)[0]
    path.unlink()

    assert kinds(data.check().found) == ["part"]
    assert data.repair().left == ()
    assert data.ask("SELECT status, finalizing_at FROM batch WHERE id = ?", unfinished) == [
        ("in_progress", None)
    ]
    data.run_to_successful_end()


async def _bring_to_finalizing(data):
    """Brings the batch to the state where every line is answered and it is not yet finalized."""
    async with data.open_components_of_folder() as components:
        await components.store.leases.release_all()
    data_upstream = data.new_upstream()

    async def until(components):
        return bool(await components.store.batches.settled())

    await data.run_without_finalizer(data_upstream, until)
    async with data.open_components_of_folder() as components:
        for batch in await components.store.batches.settled():
            after = batch.after(Event.SETTLED, now=time.time())
            assert await components.store.batches.move(after, expected=batch.status)


def pinned_parts_of_all(data, batch_id):
    return [
        (data.blobs / "parts" / key, length_bytes)
        for (text,) in data.ask("SELECT pinned FROM segment WHERE batch_id = ? ORDER BY number", batch_id)
        for key, length_bytes in json.loads(text)
    ]


# --- inputs, line indexes and segments --------------------------------------------------------------------


def index_of(data, batch_id):
    return data.blobs / data.ask("SELECT index_blob_key FROM batch WHERE id = ?", batch_id)[0][0]


def input_of(data, batch_id):
    return data.blobs / data.ask("SELECT input_blob_key FROM batch WHERE id = ?", batch_id)[0][0]


@pytest.mark.parametrize("harm", [cut, empty, os.unlink], ids=lambda harm: harm.__name__)
def test_a_damaged_line_index_is_rebuilt(data, unfinished, harm):
    before = index_of(data, unfinished).read_bytes()
    harm(index_of(data, unfinished))

    assert "line_index" in kinds(data.check().found)
    assert data.repair().left == ()
    assert index_of(data, unfinished).read_bytes() == before
    data.run_to_successful_end()


@pytest.mark.parametrize("offset", [0, 7, 8, 12, 24 * 3 + 13])
def test_a_wrong_record_in_a_line_index_is_found(data, unfinished, offset):
    before = index_of(data, unfinished).read_bytes()
    flip(index_of(data, unfinished), offset=offset)

    assert kinds(data.check().found) == ["line_index"]
    assert data.repair().left == ()
    assert index_of(data, unfinished).read_bytes() == before
    data.run_to_successful_end()


def test_a_missing_input_cannot_be_repaired(data, unfinished):
    path = input_of(data, unfinished)
    text = path.read_bytes()
    path.unlink()

    checked = data.repair()

    assert kinds(checked.left) == ["file_missing", "input_missing"]
    path.write_bytes(text)
    assert data.run_to_successful_end().answered == 40 - 22


def test_an_input_with_changed_lines_is_found_by_a_deep_check(data, unfinished):
    path = input_of(data, unfinished)
    path.write_bytes(path.read_bytes().replace(b"}\n", b"} ", 1))

    assert data.check().found == ()
    found = data.check(depth=Depth.DEEP).found
    assert kinds(found) == ["input_missing"]
    assert found[0].repair is None


def test_a_gap_between_segments_is_found(data, unfinished):
    with data.rows() as rows:
        rows.execute("DELETE FROM segment WHERE batch_id = ? AND number = 7", [unfinished])

    assert "segments" in kinds(data.check().left)


# --- files, uploads, keys ---------------------------------------------------------------------------------


def output_of(data):
    return data.ask("SELECT file.id, blob_key FROM file JOIN batch ON output_file_id = file.id")[0]


def test_a_file_with_a_missing_blob_is_marked_deleted(data):
    file_id, key = output_of(data)
    (data.blobs / key).unlink()

    assert kinds(data.check().found) == ["file_missing"]
    assert data.repair().left == ()

    async def find():
        async with data.open_components_of_folder() as components:
            return await components.store.files.get("default", FileId(file_id))

    assert asyncio.run(find()) is None


def test_a_file_of_the_wrong_length_is_reported_and_left_unchanged(data):
    _, key = output_of(data)
    cut(data.blobs / key)
    before = (data.blobs / key).read_bytes()

    checked = data.repair()

    assert kinds(checked.left) == ["file_size"]
    assert (data.blobs / key).read_bytes() == before


def test_an_output_that_lacks_a_line_is_found_by_a_deep_check(data):
    file_id, key = output_of(data)
    path = data.blobs / key
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with data.rows() as rows:
        rows.execute("UPDATE file SET size_bytes = ? WHERE id = ?", [path.stat().st_size, file_id])

    assert data.check().found == ()
    assert kinds(data.check(depth=Depth.DEEP).found) == ["output_lines"]


def test_a_reference_to_an_unknown_output_file_is_found(data):
    with data.rows() as rows:
        rows.execute("UPDATE batch SET error_file_id = 'file-nowhere' WHERE status = 'completed'")

    assert kinds(data.check().found) == ["output_lines"]


@pytest.mark.parametrize("harm", [cut, os.unlink], ids=lambda harm: harm.__name__)
def test_an_upload_part_with_a_missing_blob_is_removed(data, harm):
    harm(data.blobs / data.ask("SELECT blob_key FROM upload_part")[0][0])

    assert kinds(data.check().found) == ["upload_part"]
    assert data.repair().left == ()
    assert data.ask("SELECT * FROM upload_part") == []


def test_an_idempotency_key_without_its_batch_is_removed(data, unfinished):
    async def create():
        async with data.open_components_of_folder() as components:
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
    data.run_to_successful_end()


# --- orphaned blobs ---------------------------------------------------------------------------------------


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


MISCOUNT = (
    "INSERT INTO batch_count_change (project_id, status, is_paused, endpoint, model, change)"
    " VALUES ('default', 'failed', 0, '/v1/embeddings', '', 1)"
)


@pytest.mark.parametrize("harm", [MISCOUNT, "DELETE FROM batch_text"], ids=["count", "text"])
def test_wrong_counts_of_batches_are_counted_again(data, harm):
    with data.rows() as rows:
        rows.execute(harm)
    assert kinds(data.check().found) == ["batch_counts"]
    repaired = data.repair()
    assert (kinds(repaired.found), repaired.left) == (["batch_counts"], ())
    assert data.check().found == ()


def test_orphaned_blobs_are_reported_once_they_are_an_hour_old(data, unfinished):
    paths = orphaned_blobs(data, unfinished)

    assert data.check().found == ()
    later = data.check(clock=lambda: time.time() + 3_700).found

    assert kinds(later) == ["stray"]
    assert sorted(finding.subject for finding in later) == sorted(paths)
    assert all((data.blobs / path).exists() for path in paths), "a check changes nothing"


def test_orphaned_blobs_are_deleted_by_a_repair(data, unfinished):
    paths = orphaned_blobs(data, unfinished)

    checked = data.repair()

    assert sorted(finding.subject for finding in checked.found) == sorted(paths)
    assert checked.left == ()
    assert not any((data.blobs / path).exists() for path in paths)
    data.run_to_successful_end()


# --- the database -----------------------------------------------------------------------------------------


def test_a_damaged_database_is_reported_and_not_changed(data):
    path = data.path / "nightmill.sqlite"
    text = bytearray(path.read_bytes())
    root_page = data.ask("SELECT rootpage FROM sqlite_schema WHERE name = 'batch_by_age'")[0][0]
    start = (root_page - 1) * 4_096
    text[start : start + 4_096] = bytes(4_096)
    path.write_bytes(text)

    checked = data.check()

    assert kinds(checked.left) == ["database"]
    assert all(finding.repair is None for finding in checked.left)


def test_a_database_of_another_release_is_not_checked_further(data):
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


def test_the_exit_code_shows_whether_damage_is_left(data, command):
    folder = ("--folder", data.path)
    assert command("check", *folder)[0] == 0
    path, _ = pinned_parts(data)[0]
    path.unlink()

    code, printed = command("check", *folder)
    assert code == 1
    assert "[repair: keep 0 answers and send 5 lines again]" in printed.out
    assert "1 wrong, 1 of them can be repaired with --repair" in printed.err

    code, printed = command("check", *folder, "--repair")
    assert code == 0
    assert "[repaired]" in printed.out

    _, key = output_of(data)
    cut(data.blobs / key)
    assert command("check", *folder)[0] == 74
    assert command("check", *folder, "--repair")[0] == 74


def test_json_lists_every_finding(data, command):
    path, _ = pinned_parts(data)[0]
    path.unlink()

    code, printed = command("check", "--folder", data.path, "--json")

    document = json.loads(printed.out)
    assert (code, document["wrong"]) == (1, 1)
    assert document["findings"][0]["kind"] == "part"
    assert document["findings"][0]["mended"] is False
    assert json.loads(command("check", "--folder", data.path, "--json", "--repair")[1].out)["wrong"] == 0


def test_a_missing_folder_is_not_created(tmp_path, command):
    for words in (["check"], ["check", "--repair"], ["backup", str(tmp_path / "copy")]):
        code, printed = command(*words, "--folder", tmp_path / "nowhere")
        assert code == 78
        assert "there is no" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_repair_needs_an_exclusive_lock_on_the_folder(data, command):
    from nightmill.runtime.data_folder_lock import locked_folder

    with locked_folder(data.path):
        assert command("check", "--folder", data.path)[0] == 0
        code, printed = command("check", "--folder", data.path, "--repair")
    assert code == 78
    assert "in use by process" in printed.err


def test_a_folder_without_batches_passes_the_check(tmp_path, data):
    shutil.rmtree(data.blobs)
    with data.rows() as rows:
        for table in ("segment", "batch", "file", "upload_part", "upload"):
            rows.execute(f"DELETE FROM {table}")
    assert data.repair().found == ()
