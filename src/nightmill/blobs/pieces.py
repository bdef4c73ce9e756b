"""Blobs made of pieces: a key that ends in `.pieces` holds a list of other blobs, which are read as one blob.

`PiecedBlobs` adds this to any blob store. A reader sees one blob with a size, ranges and a stream, across the
borders of the pieces, and no byte is copied to make the blob. The list is written last, so a blob of pieces
exists completely or not at all. Deleting the blob deletes the list only: the store keeps the rows that
reference the pieces, and names the pieces that are no longer used.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, cast

from nightmill.blobs.protocol import Blobs, BlobWriter, check_key, new_blob
from nightmill.errors import UnavailableError

SUFFIX: Final = ".pieces"
_KEPT_LISTS: Final = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """A blob that holds a run of another blob's bytes."""

    key: str
    size_bytes: int


def is_pieced(key: str) -> bool:
    return key.endswith(SUFFIX)


def dump_pieces(pieces: Sequence[Piece]) -> bytes:
    return json.dumps({"pieces": [[piece.key, piece.size_bytes] for piece in pieces]}).encode()


def load_pieces(key: str, text: bytes) -> Sequence[Piece]:
    """Raises ValueError when the text is not a list of pieces."""
    try:
        listed: list[Any] = json.loads(text)["pieces"]
        pieces = [Piece(check_key(piece_key), int(size_bytes)) for piece_key, size_bytes in listed]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"the list of pieces {key} is damaged; run 'nightmill check'") from None
    return pieces


class PiecedBlobs:
    """Blobs, some of which are made of pieces.

    Args:
        plain: stores the pieces and the lists; it returns a list as text.
    """

    def __init__(self, plain: Blobs) -> None:
        self.plain = plain
        # Bytes under a key never change, so a list that was read once stays valid.
        self._lists: OrderedDict[str, _Layout] = OrderedDict()

    async def join(self, key: str, pieces: Sequence[Piece]) -> None:
        """Makes the blob `key` of existing blobs.

        Raises:
            ValueError: the key does not end in `.pieces`, or the key of a piece does.
        """
        if not is_pieced(key) or any(is_pieced(piece.key) for piece in pieces):
            raise ValueError(f"{key!r} can't be made of these pieces")
        async with new_blob(self.plain, key) as writer:
            await writer.write(dump_pieces(pieces))

    async def open_writer(self, key: str) -> BlobWriter:
        if is_pieced(key):
            raise ValueError(f"{key!r} names a blob of pieces; join them")
        return await self.plain.open_writer(key)

    async def size_bytes(self, key: str) -> int | None:
        if not is_pieced(key):
            return await self.plain.size_bytes(key)
        self._lists.pop(key, None)  # another process may have deleted the list
        try:
            return (await self._layout(key)).size_bytes
        except FileNotFoundError:
            return None

    async def read(self, key: str, start: int, length_bytes: int) -> bytes:
        if not is_pieced(key):
            return await self.plain.read(key, start, length_bytes)
        layout = await self._layout(key)
        runs = [await self._run(key, *run) for run in layout.runs(start, length_bytes)]
        return runs[0] if len(runs) == 1 else b"".join(runs)

    def stream(self, key: str, *, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        """A blob of pieces that is deleted meanwhile may raise UnavailableError before its end."""
        if is_pieced(key):
            return self._stream(key, chunk_bytes)
        return self.plain.stream(key, chunk_bytes=chunk_bytes)

    async def delete(self, key: str) -> None:
        self._lists.pop(key, None)
        await self.plain.delete(key)

    async def delete_under(self, prefix: str) -> None:
        self._lists.clear()
        await self.plain.delete_under(prefix)

    def keys_under(self, prefix: str) -> AsyncIterator[str]:
        return self.plain.keys_under(prefix)

    async def free_bytes(self) -> int | None:
        return await self.plain.free_bytes()

    async def sweep_unfinished(self) -> int:
        return await self.plain.sweep_unfinished()

    async def signed_url(self, key: str, *, ttl_s: float) -> str | None:
        """None for a blob of pieces: there is no single link to all pieces."""
        return None if is_pieced(key) else await self.plain.signed_url(key, ttl_s=ttl_s)

    async def close(self) -> None:
        await self.plain.close()

    async def _layout(self, key: str) -> "_Layout":
        layout = self._lists.get(key)
        if layout is None:
            text = b"".join([chunk async for chunk in self.plain.stream(key)])
            layout = self._lists[key] = _Layout(load_pieces(key, text))
            if len(self._lists) > _KEPT_LISTS:
                self._lists.popitem(last=False)
        return layout

    async def _run(self, key: str, piece: Piece, start: int, length_bytes: int) -> bytes:
        run = await self.plain.read(piece.key, start, length_bytes)
        if len(run) != length_bytes:
            raise _short(key, piece)
        return run

    async def _stream(self, key: str, chunk_bytes: int) -> AsyncIterator[bytes]:
        has_begun = False
        for piece in (await self._layout(key)).pieces:
            left_bytes = piece.size_bytes
            stream = self.plain.stream(piece.key, chunk_bytes=chunk_bytes)
            try:
                async with aclosing(cast("AsyncGenerator[bytes]", stream)) as chunks:
                    async for chunk in chunks:
                        has_begun = True
                        left_bytes -= len(chunk)
                        yield chunk
            except FileNotFoundError:
                if not has_begun:
                    raise
                raise UnavailableError(f"blob {key} was deleted while it was read") from None
            if left_bytes:
                raise _short(key, piece)


class _Layout:
    """The offsets at which each piece begins and ends in the whole blob."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self._ends = list(accumulate(piece.size_bytes for piece in pieces))

    @property
    def size_bytes(self) -> int:
        return self._ends[-1] if self._ends else 0

    def runs(self, start: int, length_bytes: int) -> Sequence[tuple[Piece, int, int]]:
        """For each piece that overlaps the range: the piece, the start in it, and the number of bytes."""
        end = min(start + length_bytes, self.size_bytes)
        runs: list[tuple[Piece, int, int]] = []
        number = bisect_right(self._ends, start)
        while start < end:
            piece = self.pieces[number]
            piece_start = self._ends[number] - piece.size_bytes
            run_end = min(end, self._ends[number])
            if run_end > start:
                runs.append((piece, start - piece_start, run_end - start))
            start = run_end
            number += 1
        return runs


def _short(key: str, piece: Piece) -> RuntimeError:
    message = f"piece {piece.key} of {key} does not have its {piece.size_bytes} bytes; run 'nightmill check'"
    return RuntimeError(message)
