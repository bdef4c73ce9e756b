"""Downloads are streamed, complete or an error, and split at line feeds only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.client import download
from nightmill.errors import UnavailableError


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", "\u2028".encode(), b"\x85", b"\x0b", b""])), st.data())
def test_lines_do_not_depend_on_chunk_boundaries(pieces, data):
    whole = b"".join(pieces)
    cut = data.draw(st.integers(0, len(whole)))
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert list(download.lines(pieces)) == expected
    assert list(download.lines([whole[:cut], whole[cut:]])) == expected


def test_a_file_is_saved_byte_for_byte(server, client, tmp_path):
    content = bytes(range(256)) * 5_000
    server.answer = lambda _: (200, content, {"content-type": "application/octet-stream"})
    path = tmp_path / "out.jsonl"
    assert client.save("file-1", str(path)) == len(content)
    assert path.read_bytes() == content
    assert server.asked[0].path == "/v1/files/file-1/content"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_truncated_download_is_an_error_and_leaves_the_old_file(server, client, tmp_path):
    server.answer = lambda _: (200, b"half a li", {"content-length": "100"})
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"old\n")
    with pytest.raises(UnavailableError, match=r"file-1 broke after .* of 100 bytes; try again"):
        client.save("file-1", path)
    assert path.read_bytes() == b"old\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_lines_of_a_file_are_returned_unchanged(server, client):
    server.answer = lambda _: (200, '{"a": "\u2028"}\r\n{"b": 1}'.encode(), {})
    assert list(client.lines("file-1")) == ['{"a": "\u2028"}\r'.encode(), b'{"b": 1}']


def test_downloads_do_not_request_compression(server, client):
    server.answer = lambda _: (200, b"", {})
    assert list(client.lines("file-1")) == []
    assert server.asked[0].headers["accept-encoding"] == "identity"
