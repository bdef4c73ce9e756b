"""A blob in a data folder, read from the disk by its key, whether it lies there in one file or in pieces."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from nightmill.admin.disk import size_of
from nightmill.blobs import Piece, is_pieced, load_pieces

_CHUNK_BYTES = 1 << 20


def pieces_of(root: Path, key: str) -> Sequence[Piece] | None:
    """In order; none for a blob that has none. None when its list is gone or can't be read."""
    if not is_pieced(key):
        return ()
    try:
        return load_pieces(key, (root / key).read_bytes())
    except (OSError, ValueError):
        return None


def blob_size(root: Path, key: str) -> int | None:
    """How many bytes are there. None without a file, or without the list of its pieces."""
    if not is_pieced(key):
        return size_of(root / key)
    pieces = pieces_of(root, key)
    return None if pieces is None else sum(size_of(root / piece.key) or 0 for piece in pieces)


def blob_chunks(root: Path, key: str) -> Iterator[bytes]:
    """Raises OSError for what is missing or can't be read."""
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
