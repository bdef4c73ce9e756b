"""Which output lines of a batch a client wants: by outcome, error code or custom_id. No I/O."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, cast

import msgspec

from nightmill.core.written_line import codes_in_answer

_ORDINAL_DIGITS: Final = 8
_ID_START: Final = b'{"id": "batch_req_'
_ID_END: Final = len(_ID_START) + 24 + _ORDINAL_DIGITS


class LineOutcome(StrEnum):
    """Whether a line is in the output file (`completed`) or in the error file (`failed`)."""

    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFilter:
    """The lines that a client wants; without any field all of them.

    Args:
        outcome: only lines with this outcome.
        codes: only failed lines with one of these error codes or HTTP statuses.
        custom_ids: only lines of these requests.
    """

    outcome: LineOutcome | None = None
    codes: frozenset[str] = frozenset()
    custom_ids: frozenset[str] = frozenset()

    def wants(self, outcome: LineOutcome) -> bool:
        """Whether any line with the outcome can match."""
        if self.codes and outcome is LineOutcome.COMPLETED:
            return False
        return self.outcome is None or self.outcome is outcome

    def matches(self, line: bytes, outcome: LineOutcome) -> bool:
        if not self.wants(outcome):
            return False
        if not self.codes and not self.custom_ids:
            return True
        row = _decoded(line)
        if self.custom_ids and row.custom_id not in self.custom_ids:
            return False
        return not self.codes or not self.codes.isdisjoint(_codes(row))


class _Error(msgspec.Struct, gc=False):
    code: str | None = None


class _Response(msgspec.Struct, gc=False):
    status_code: int
    body: msgspec.Raw


class _Row(msgspec.Struct, gc=False):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


_DECODER: Final = msgspec.json.Decoder(_Row)


def ordinal_of(line: bytes) -> int:
    """The ordinal of an output line, which is a part of its id.

    Raises:
        ValueError: the line does not begin as output lines do.
    """
    if not line.startswith(_ID_START):
        raise ValueError("not an output line")
    return int(line[_ID_END - _ORDINAL_DIGITS : _ID_END], 16)


def _decoded(line: bytes) -> _Row:
    try:
        return _DECODER.decode(line)
    except msgspec.DecodeError:  # a lone surrogate in a custom_id
        row = cast("dict[str, Any]", json.loads(line))
        response, error = row["response"], row["error"]
        return _Row(
            row["custom_id"],
            response
            and _Response(response["status_code"], msgspec.Raw(json.dumps(response["body"]).encode())),
            error and _Error(error.get("code")),
        )


def _codes(row: _Row) -> frozenset[str]:
    """Every code that a failed line has: of nightmill, of the upstream's error object, the HTTP status."""
    codes: set[str] = set()
    if row.error is not None and row.error.code is not None:
        codes.add(row.error.code)
    if row.response is not None:
        codes.add(str(row.response.status_code))
        codes.update(codes_in_answer(bytes(row.response.body)))
    return frozenset(codes)
