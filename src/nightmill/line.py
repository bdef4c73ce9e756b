"""Request lines and output lines: read, check, write one JSONL row (contract 3, 4.3, 5.1, 9.5). No I/O."""

import msgspec

from nightmill.batch import Usage


class OutputLine(msgspec.Struct, frozen=True, gc=False):
    """One finished row: ASCII, one line, its line break included.

    `is_error` says which file it goes to; `usage` is what it adds to the batch's totals.
    """

    text: bytes
    is_error: bool
    usage: Usage | None


class RequestLine(msgspec.Struct, frozen=True, gc=False):
    """What the worker needs of a checked line: slices of the input, never re-encoded."""

    custom_id_json: bytes
    body: bytes


def slice_line(raw: bytes) -> RequestLine:
    """Cuts a line that intake has accepted. Raises ValueError when it is not one."""
    raise NotImplementedError


def answered(
    line_id: str, line: RequestLine, *, status: int, request_id: str, body: bytes
) -> OutputLine:
    """The row of a line the upstream answered. A body that isn't JSON becomes an error object (contract 9.5)."""
    raise NotImplementedError


def unanswered(line_id: str, line: RequestLine, *, code: str, message: str) -> OutputLine:
    """The row of a line that never got an HTTP answer: `response` is null (contract 5.1)."""
    raise NotImplementedError
