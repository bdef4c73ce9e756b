"""Checks a batch's line index and rebuilds it from the input file."""

from collections.abc import Iterator
from pathlib import Path

from nightmill.admin.blob import blob_chunks, blob_size
from nightmill.core.batch import Batch
from nightmill.core.segment import INDEX_RECORD_BYTES, unpack_lines
from nightmill.validation import InputRules, InputValidator

_UNLIMITED = 1 << 40
_DEEPEST = 900


def fault_of(index: bytes, *, total: int, invalid: int = 0, input_bytes: int) -> str | None:
    """Why the records cannot index `total` lines of an input of `input_bytes`; None when they can.

    Args:
        invalid: so many of the lines have no record.
    """
    if len(index) != (total - invalid) * INDEX_RECORD_BYTES:
        return f"it has {len(index)} bytes, not {total - invalid} records of {INDEX_RECORD_BYTES}"
    seen = bytearray(total)
    for line in unpack_lines(index):
        if line.ordinal >= total or seen[line.ordinal]:
            return f"it names line {line.ordinal} twice, or too many lines"
        if not line.length_bytes or line.offset + line.length_bytes > input_bytes:
            return f"line {line.ordinal} would lie outside of the input's {input_bytes} bytes"
        seen[line.ordinal] = 1
    return None


def names_same_lines(index: bytes, other: bytes) -> bool:
    """Whether both indexes have the same lines, in any order."""
    return index == other or _places(index) == _places(other)


def _places(index: bytes) -> list[tuple[int, int, int]]:
    return sorted((line.ordinal, line.offset, line.length_bytes) for line in unpack_lines(index))


def indexed_again(batch: Batch, root: Path) -> bytes | None:
    """The index as intake writes it; None when the input no longer has the batch's lines."""
    rules = InputRules(
        endpoint=batch.endpoint,
        models_per_file=_UNLIMITED,
        lines_per_file=_UNLIMITED,
        # A limit may be lower today than when the batch was accepted.
        line_bytes=blob_size(root, batch.input_blob_key) or 1,
        nesting=_DEEPEST,
        embedding_inputs=_UNLIMITED,
        listed_errors=1,
    )
    validator = InputValidator(rules)
    index = b"".join(_records(validator, blob_chunks(root, batch.input_blob_key)))
    found = validator.result()
    return index if not found.errors and found.total == batch.total else None


def _records(validator: InputValidator, chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        while not validator.is_over and (chunk := next(chunks, b"")):
            yield validator.take(chunk)
    except OSError:
        return  # the number of lines then shows what is missing
    yield validator.finish()
