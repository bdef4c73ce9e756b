"""Writes request lines of rows, and joins output lines with their requests. Works on files with constant
memory.

`joined` gives one answer per request, in the order of the requests, whatever the order of the
answers. While the answers are in order too (nightmill's are), memory does not grow; otherwise it holds an
offset for each answer that is ahead. What a row may be belongs to `request_rows`, the network to `session`
and `download`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, cast

from typing_extensions import TypeVar

from nightmill.client.answer_bodies import text_in, vector_in
from nightmill.client.download import CHUNK_BYTES, lines
from nightmill.client.request_rows import RequestFile, Row, RowFormat
from nightmill.core import json_text
from nightmill.core.request_line import endpoint_in
from nightmill.errors import RequestError

T = TypeVar("T", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """The result of one request.

    Attributes:
        request: the body that was sent.
        custom_id: empty where an invalid line that was skipped has none.
        status_code: the HTTP status, or None when the request was never answered.
        body: the decoded answer, also that of an HTTP error.
        error: the reason of a failure: the line's own error, `body["error"]` of an HTTP error, or that the
            answer is not of the type that was asked for; None where there is no failure.
        parsed: the answer as an instance of the type that was asked for; None without one, or on a failure.

    Example:
        ```python
        from nightmill import Client

        with Client() as client:
            for answer in client.send(["a river", "a mountain"], model="llama3.2"):
                print(answer.text if answer.is_ok else answer.error_message)
        ```
    """

    custom_id: str
    request: Row
    status_code: int | None
    body: Any
    error: Any
    parsed: T | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the request was answered with a 2xx, and with the type that was asked for."""
        return self.error is None and self.status_code is not None and 200 <= self.status_code < 300

    @property
    def text(self) -> str | None:
        """The text of a chat completion, completion or response; None where the answer has none."""
        return text_in(self.body)

    @property
    def vector(self) -> list[float] | None:
        """The embedding; None where the answer is none."""
        return vector_in(self.body)

    @property
    def error_message(self) -> str | None:
        """The reason of a failure in words; None where there is no failure."""
        if self.is_ok:
            return None
        reason: Any = self.error
        if isinstance(self.error, Mapping):
            fields = cast("Mapping[str, Any]", self.error)
            reason = fields.get("message") or fields.get("code") or fields
        if reason is not None:
            return str(reason)
        return "not answered" if self.status_code is None else f"HTTP {self.status_code}"


def write_rows(
    rows: Iterable[Row | str],
    path: Path,
    *,
    endpoint: str | None,
    model: str | None,
    prompt: str | None = None,
    parameters: Row | None = None,
) -> str:
    """Writes request lines and returns their endpoint.

    A row is a request line (it has a `body` that is an object), the body alone, a text, or with a prompt the
    fields for it. A missing `custom_id` becomes `request-<n>`, counted from 1; a missing `url` the endpoint;
    a missing model `model`.

    Raises:
        RequestError: there are no rows, a row is not JSON, or the endpoint is unknown.
    """
    row_format = RowFormat(prompt=prompt, model=model, parameters=parameters, endpoint=endpoint)
    with RequestFile(path, row_format) as file:
        for row in rows:
            file.add(row)
        return file.endpoint


def endpoint_of(path: Path) -> str:
    """The `url` of the first request line.

    Raises:
        RequestError: there is none.
    """
    with path.open("rb") as stream:
        url = endpoint_in(next((line for line in stream if line.strip()), b""))
    if url is None:
        raise RequestError(f"the first line of {path} names no endpoint in 'url'; name it with --endpoint")
    return url


def joined(requests: Path, *answer_files: Path) -> Iterator[Answer]:
    """One answer per request line, in the order of the requests.

    A request without an output line (a batch that failed validation has no files) has neither status nor
    error.
    """
    with _Answers(answer_files) as answers, requests.open("rb") as stream:
        for raw in lines(iter(lambda: stream.read(CHUNK_BYTES), b"")):
            if not raw.strip():
                continue
            custom_id, body = _request(raw.removeprefix(b"\xef\xbb\xbf"))
            yield _answer(custom_id or "", body, answers.take(custom_id))


def _request(raw: bytes) -> tuple[str | None, Row]:
    """The custom_id and the body; None and an empty body where an invalid line has none that can be read."""
    try:
        json_text.validate(raw)  # Python alone would accept NaN, and read a custom_id that the server did not
        line: object = json.loads(raw)
    except ValueError:
        return None, {}
    if not isinstance(line, Mapping):
        return None, {}
    fields = cast("Mapping[str, Any]", line)
    custom_id, body = fields.get("custom_id"), fields.get("body")
    return (
        custom_id if isinstance(custom_id, str) else None,
        cast("Row", body) if isinstance(body, Mapping) else {},
    )


def _answer(custom_id: str, body: Row, line: Mapping[str, Any] | None) -> Answer:
    response = cast("Mapping[str, Any]", (line or {}).get("response") or {})
    answer_body: Any = response.get("body")
    status_code = cast("int | None", response.get("status_code"))
    error: Any = (line or {}).get("error")
    if error is None and status_code is not None and status_code >= 400 and isinstance(answer_body, Mapping):
        error = cast("Mapping[str, Any]", answer_body).get("error")
    return Answer(custom_id=custom_id, request=body, status_code=status_code, body=answer_body, error=error)


@dataclass(frozen=True, slots=True)
class _Head:
    start: int
    line: dict[str, Any]


class _AnswerFile:
    """One file of output lines, read forward by `head` and `step`, and again anywhere by `line_at`."""

    def __init__(self, path: Path) -> None:
        self._forward = path.open("rb")
        self._anywhere = path.open("rb")
        self._offset = 0
        self.head: _Head | None = None
        self.step()

    def close(self) -> None:
        self._forward.close()
        self._anywhere.close()

    def step(self) -> None:
        """Moves `head` to the next line; None after the last."""
        self.head = None
        # BufferedReader.readline splits at b"\n" only.
        while raw := self._forward.readline():
            start = self._offset
            self._offset += len(raw)
            if raw.strip():
                self.head = _Head(start, json.loads(raw))
                return

    def line_at(self, start: int) -> dict[str, Any]:
        self._anywhere.seek(start)
        return json.loads(self._anywhere.readline())


class _Answers:
    """Output lines by custom_id over several files, read only as far as needed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = [_AnswerFile(path) for path in paths]
        self._ahead: dict[str | None, tuple[_AnswerFile, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for file in self._files:
            file.close()

    def take(self, custom_id: str | None) -> dict[str, Any] | None:
        place = self._ahead.pop(custom_id, None)
        if place is not None:
            file, start = place
            return file.line_at(start)
        for file in self._files:
            head = file.head
            if head is not None and head.line["custom_id"] == custom_id:
                file.step()
                return head.line
        return self._searched(custom_id)

    def _searched(self, custom_id: str | None) -> dict[str, Any] | None:
        for file in self._files:
            while (head := file.head) is not None:
                file.step()
                if head.line["custom_id"] == custom_id:
                    return head.line
                self._ahead[head.line["custom_id"]] = (file, head.start)
        return None
