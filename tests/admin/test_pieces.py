"""An input stored in pieces is backed up, checked and swept like any other."""

import shutil

import pytest

from nightmill.admin.backup import back_up
from nightmill.admin.check import Depth
from tests.admin.conftest import cut_into_pieces


@pytest.fixture
def pieces(data, unfinished):
    """Paths of the pieces of the unfinished batch's input."""
    key = data.ask("SELECT input_blob_key FROM batch WHERE id = ?", unfinished)[0][0]
    return [data.blobs / piece for piece in cut_into_pieces(data, key)]


def kinds(findings):
    return [finding.kind for finding in findings]


def test_a_batch_whose_input_is_in_pieces_continues_from_a_copy(data, pieces, tmp_path):
    assert data.check(depth=Depth.DEEP).found == ()
    result = back_up(data.path, data.settings.store_url, tmp_path / "copy")
    assert result.missing == []
    shutil.rmtree(data.path)
    copy = type(data)(tmp_path / "copy")
    assert copy.check(depth=Depth.DEEP).found == ()
    assert copy.run_to_successful_end().answered == 40 - 22


def test_a_line_index_is_rebuilt_from_pieces(data, unfinished, pieces):
    index = data.blobs / data.ask("SELECT index_blob_key FROM batch WHERE id = ?", unfinished)[0][0]
    before = index.read_bytes()
    index.unlink()
    assert data.repair().left == ()
    assert index.read_bytes() == before
    data.run_to_successful_end()


def test_a_missing_piece_is_reported_and_the_others_are_kept(data, pieces, tmp_path):
    pieces[1].unlink()
    checked = data.repair()
    assert "file_size" in kinds(checked.left)
    assert "stray" not in kinds(checked.found)
    assert pieces[0].exists()
    assert pieces[2].exists()
    result = back_up(data.path, data.settings.store_url, tmp_path / "copy")
    assert set(result.missing) == {str(pieces[1].relative_to(data.blobs))}


def test_a_file_with_a_missing_list_of_pieces_is_marked_deleted_and_its_pieces_are_deleted(data):
    key = data.ask("SELECT input_blob_key FROM batch WHERE status = 'completed'")[0][0]
    pieces = [data.blobs / piece for piece in cut_into_pieces(data, key)]
    (data.blobs / f"{key}.pieces").unlink()
    assert kinds(data.check().found) == ["file_missing"]
    assert data.repair().left == ()
    data.run_to_successful_end()
    assert not any(piece.exists() for piece in pieces)


def test_deleting_a_file_deletes_its_list_of_pieces_and_then_the_pieces(data):
    key = data.ask("SELECT input_blob_key FROM batch WHERE status = 'completed'")[0][0]
    pieces = [data.blobs / piece for piece in cut_into_pieces(data, key)]
    with data.rows() as rows:
        rows.execute("UPDATE file SET deleted_at = 1 WHERE blob_key = ?", [f"{key}.pieces"])
    data.run_to_successful_end()
    assert not (data.blobs / f"{key}.pieces").exists()
    assert not any(piece.exists() for piece in pieces)
    assert data.ask("SELECT * FROM piece") == []
