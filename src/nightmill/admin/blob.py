"""Reads a blob of a data folder by its key, whether it is one file or made of pieces."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from nightmill.admin.disk import size_of
from nightmill.blobs import Piece, is_pieced, load_pieces

_CHUNK_BYTES = 1 << 20


def pieces_of(root: Path, key: str) -> Sequence[Piece] | None:
    """The pieces in order; empty for a blob of one file. None when the list of pieces is missing or
    unreadable.
    """
    if not is_pieced(key):
        return ()
    try:
        return load_pieces(key, (root / key).read_bytes())
    except (OSError, ValueError):
        return None


def blob_size(root: Path, key: str) -> int | None:
    """Size on disk in bytes. None when the file, or the list of its pieces, is missing."""
    if not is_pieced(key):
        return size_of(root / key)
    pieces = pieces_of(root, key)
    return None if pieces is None else sum(size_of(root / piece.key) or 0 for piece in pieces)


def blob_chunks(root: Path, key: str) -> Iterator[bytes]:
    """Yields the content. Raises OSError when a file is missing or unreadable."""
    if not is_pieced(key):
        yield from _chunks(root / key)
        return
    pieces = pieces_of(root, key)
    if pieces is None:
        raise FileNotFoundError(key)
    for piece in pieces:
        yield from _chunks(root / piece.key)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
