"""A blob made of pieces reads as the joined bytes of the pieces, for any cuts and in any store."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.blobs import Blobs, Piece, PiecedBlobs
from nightmill.errors import UnavailableError
from tests.blobs.test_blobs import everything, put


async def pieced(plain: Blobs, key: str, texts: list[bytes]) -> PiecedBlobs:
    blobs = PiecedBlobs(plain)
    pieces = []
    for number, text in enumerate(texts):
        await put(blobs, f"uploads/{number}", text)
        pieces.append(Piece(f"uploads/{number}", len(text)))
    await blobs.join(key, pieces)
    return blobs


@given(
    texts=st.lists(st.binary(max_size=40), max_size=8),
    ranges=st.lists(st.tuples(st.integers(0, 350), st.integers(0, 350)), max_size=8),
    chunk_bytes=st.integers(1, 50),
)
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_range_over_any_pieces_is_that_of_the_joined_bytes(any_plain_blobs, texts, ranges, chunk_bytes):
    async def look() -> None:
        blobs = await pieced(any_plain_blobs(), "files/one.pieces", texts)
        whole = b"".join(texts)
        assert await blobs.size_bytes("files/one.pieces") == len(whole)
        streamed = [chunk async for chunk in blobs.stream("files/one.pieces", chunk_bytes=chunk_bytes)]
        assert b"".join(streamed) == whole
        for start, length_bytes in ranges:
            found = await blobs.read("files/one.pieces", start, length_bytes)
            assert found == whole[start : start + length_bytes]

    asyncio.run(look())


async def test_pieces_are_read_as_one_in_every_store(any_blobs: Blobs) -> None:
    blobs = await pieced(any_blobs, "files/one.pieces", [b"abc", b"", b"defg", b"h"])
    assert await everything(blobs, "files/one.pieces") == b"abcdefgh"
    assert await blobs.read("files/one.pieces", 2, 5) == b"cdefg"
    assert await blobs.read("files/one.pieces", 8, 5) == b""
    assert await blobs.size_bytes("files/one.pieces") == 8
    assert await PiecedBlobs(any_blobs).read("files/one.pieces", 3, 1) == b"d"
    assert await blobs.signed_url("files/one.pieces", ttl_s=60) is None


async def test_a_blob_that_is_none_of_pieces_is_what_it_is_below(any_blobs: Blobs) -> None:
    blobs = PiecedBlobs(any_blobs)
    await put(blobs, "files/one", b"plain")
    assert await blobs.read("files/one", 1, 3) == b"lai"
    assert await everything(blobs, "files/one") == b"plain"
    assert await blobs.size_bytes("files/one") == 5


async def test_deleting_a_blob_of_pieces_leaves_the_pieces_to_whom_they_belong(any_blobs: Blobs) -> None:
    blobs = await pieced(any_blobs, "files/one.pieces", [b"abc", b"def"])
    other = PiecedBlobs(any_blobs)
    assert await other.read("files/one.pieces", 0, 6) == b"abcdef"
    await blobs.delete("files/one.pieces")
    await blobs.delete("files/one.pieces")
    assert await blobs.size_bytes("files/one.pieces") is None
    assert await other.size_bytes("files/one.pieces") is None, "what others deleted is not remembered"
    with pytest.raises(FileNotFoundError):
        await everything(blobs, "files/one.pieces")
    assert await blobs.read("uploads/1", 0, 3) == b"def"


async def test_a_missing_or_short_piece_raises_an_error_and_is_never_skipped(any_blobs: Blobs) -> None:
    blobs = await pieced(any_blobs, "files/one.pieces", [b"abc", b"def", b"ghi"])
    await blobs.delete("uploads/1")
    with pytest.raises(UnavailableError, match="deleted while it was read"):
        await everything(blobs, "files/one.pieces")
    with pytest.raises(FileNotFoundError):
        await blobs.read("files/one.pieces", 2, 3)
    await put(blobs, "uploads/1", b"de")
    for reading in (everything(blobs, "files/one.pieces"), blobs.read("files/one.pieces", 2, 5)):
        with pytest.raises(
            RuntimeError, match=r"uploads/1 .* does not have its 3 bytes; run 'nightmill check'"
        ):
            await reading


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"pieces": [["../x", 1]]}', b'{"pieces": [["a"]]}'])
async def test_a_damaged_list_raises_an_error(any_blobs: Blobs, text: bytes) -> None:
    await put(any_blobs, "files/one.pieces", text)
    with pytest.raises(ValueError, match="run 'nightmill check'"):
        await PiecedBlobs(any_blobs).read("files/one.pieces", 0, 1)


async def test_only_a_join_makes_a_blob_of_pieces_and_never_of_such(any_blobs: Blobs) -> None:
    blobs = PiecedBlobs(any_blobs)
    with pytest.raises(ValueError, match="join them"):
        await blobs.open_writer("files/one.pieces")
    with pytest.raises(ValueError, match="can't be made of these pieces"):
        await blobs.join("files/one", [Piece("a", 1)])
    with pytest.raises(ValueError, match="can't be made of these pieces"):
        await blobs.join("files/two.pieces", [Piece("files/one.pieces", 1)])


async def test_many_lists_are_read_without_keeping_them_all(any_blobs: Blobs) -> None:
    blobs = PiecedBlobs(any_blobs)
    await put(blobs, "piece", b"abc")
    for number in range(20):
        await blobs.join(f"files/{number}.pieces", [Piece("piece", 3)] * 2)
        assert await blobs.read(f"files/{number}.pieces", 2, 2) == b"ca"
    assert await blobs.read("files/0.pieces", 2, 2) == b"ca"
