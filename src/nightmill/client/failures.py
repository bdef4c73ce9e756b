"""Why lines of a batch failed: the first lines of its error file, grouped by code and message.

At most `MOST_LINES` lines are read, so the groups of a batch with more failures are those of the first ones.
Where failures cannot be read, for example because the file was deleted, there are no groups. The sentence is
made by `words.failures_text`.
"""

import json
import re
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any, Final, cast

from openai import APIError, OpenAI
from openai.types import Batch

from nightmill.client import download
from nightmill.client.results import WantedResults, read_page
from nightmill.core.batch import TERMINAL
from nightmill.core.words import FailureGroup
from nightmill.errors import NightmillError

MOST_LINES: Final = 1_000
_MOST_BYTES: Final = 4 << 20
# To find the failures of a running batch, the server reads all of its answers once.
_MOST_ANSWERS: Final = 50_000
_NOT_SENT: Final = ("batch_expired", "batch_cancelled")
_WITH_DIGITS: Final = re.compile(r"\S*\d\S*")


def read_failures(openai: OpenAI, batch: Batch) -> list[FailureGroup]:
    """The groups of a batch's failed lines, the most frequent first.

    A running batch has some only on a nightmill server, and while it has few answers.
    """
    return FailureReader(openai).read(batch)


def grouped(lines: Iterable[bytes]) -> list[FailureGroup]:
    """Groups of the lines of an error file, the most frequent first.

    Messages that differ only in words with digits, such as a number of tokens, are of one group. Lines that
    were not sent before the batch expired or was cancelled are left, not failed.
    """
    groups = _Groups()
    groups.add(lines)
    return groups.listed()


class FailureReader:
    """Reads the failures of one batch, of a running one only those that are new since the last time."""

    def __init__(self, openai: OpenAI) -> None:
        self._openai = openai
        self._groups = _Groups()
        self._cursor: str | None = None

    def read(self, batch: Batch) -> list[FailureGroup]:
        """As `read_failures`."""
        counts = batch.request_counts
        if counts is None or not counts.failed:
            return []
        try:
            if batch.status in TERMINAL:
                file_id = batch.error_file_id
                if file_id is None:
                    return []
                with closing(_error_lines(self._openai, file_id)) as lines:
                    return grouped(lines)
            if self._cursor is not None or counts.completed + counts.failed <= _MOST_ANSWERS:
                self._read_new(batch.id)
        except (APIError, NightmillError):
            return []
        return self._groups.listed()

    def _read_new(self, batch_id: str) -> None:
        if self._groups.lines >= MOST_LINES:
            return
        wanted = WantedResults(after=self._cursor, outcome="failed")
        page = read_page(self._openai, batch_id, wanted, limit=MOST_LINES - self._groups.lines)
        self._cursor = page.cursor
        self._groups.add(line.text for line in page.lines)


class _Groups:
    """Counts lines by their code and message, and keeps the first message of each group."""

    def __init__(self) -> None:
        self.lines = 0
        self._first: dict[tuple[str, str], str] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if self.lines == MOST_LINES:
                return
            found = _code_and_message(line)
            if found is None or found[0] in _NOT_SENT:
                continue
            code, message = found
            kind = code, _WITH_DIGITS.sub("0", message)
            self._first.setdefault(kind, message)
            self._counts[kind] += 1
            self.lines += 1

    def listed(self) -> list[FailureGroup]:
        return [FailureGroup(count, kind[0], self._first[kind]) for kind, count in self._counts.most_common()]


def _error_lines(openai: OpenAI, file_id: str) -> Generator[bytes]:
    with closing(_beginning(openai, file_id)) as pieces:
        yield from download.lines(pieces)


def _beginning(openai: OpenAI, file_id: str) -> Generator[bytes]:
    """The first bytes of a file, with one line that may be cut off."""
    taken_bytes = 0
    for chunk in download.chunks(openai, file_id):
        yield chunk
        taken_bytes += len(chunk)
        if taken_bytes >= _MOST_BYTES:
            return


def _code_and_message(line: bytes) -> tuple[str, str] | None:
    """The HTTP status or the code of a line of an error file, and its message; None for another text."""
    try:
        row = _object(json.loads(line))
    except (ValueError, RecursionError):
        return None
    response, error = _object(row.get("response")), _object(row.get("error"))
    if response:
        return str(response.get("status_code")), _message(response.get("body"))
    return (str(error.get("code") or "error"), _message(error)) if error else None


def _message(body: object) -> str:
    """The message in an answer, of any of the forms that servers have."""
    if isinstance(body, str):
        return body
    fields = _object(body)
    for name in ("error", "detail", "message", "msg"):
        value: object = fields.get(name)
        if isinstance(value, list):
            value = next(iter(cast("list[object]", value)), None)
        if value:
            return _message(value)
    return ""


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
