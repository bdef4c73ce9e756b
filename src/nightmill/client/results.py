"""The output lines of a batch while it runs, over `/nightmill/v1/batches/{id}/results`.

`follow` gives each line once, as it is answered, until the batch has ended. When the connection breaks or the
server restarts, it connects again behind the last line. Only nightmill has these operations.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Final, Literal, TypeAlias, cast
from urllib.parse import urlencode

import httpx2
import msgspec
from openai import (
    APIResponse,
    AsyncAPIResponse,
    AsyncOpenAI,
    OpenAI,
)

from nightmill.client.error_family import AWAY
from nightmill.client.own_api import STREAMED, own_url
from nightmill.errors import RequestError, UnavailableError

Outcome: TypeAlias = Literal["completed", "failed"]

# How long the server may be unreachable before a follower gives up.
PATIENCE_S: Final = 120.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 3.0
_PAUSE_GROWTH: Final = 1.6
# The server sends something every few seconds, also while nothing is answered.
_SILENCE_S: Final = 60.0
_RAW: Final = {**STREAMED, "Accept": "application/x-ndjson"}
_FOLLOWING: Final[Any] = {"headers": _RAW, "timeout": _SILENCE_S, "max_retries": 0}
_AWAY: Final = (*AWAY, httpx2.HTTPError)


@dataclass(frozen=True, slots=True)
class FollowedLine:
    """One output line of a batch.

    Attributes:
        cursor: goes on behind this line, as `after`.
        outcome: `completed` for a line of the output file, `failed` for one of the error file.
        text: the line as the file has it, without its line break.
    """

    cursor: str
    outcome: Outcome
    text: bytes

    @property
    def row(self) -> dict[str, Any]:
        """The decoded line."""
        return msgspec.json.decode(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPage:
    """The lines that were there when the page was read.

    Attributes:
        status: of the batch.
        lines: in the order in which they were answered while the batch runs.
        cursor: goes on behind the page, as `after`.
        has_more: False once the batch has ended and every line was given.
        message: why there are no lines, if there can't be any.
    """

    status: str
    lines: tuple[FollowedLine, ...]
    cursor: str
    has_more: bool
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedResults:
    """Which lines, and behind which cursor. Without any field all lines from the start.

    Args:
        codes: only failed lines with one of these error codes or HTTP statuses.
    """

    after: str | None = None
    outcome: Outcome | None = None
    codes: Sequence[str] = ()
    custom_ids: Sequence[str] = ()

    def url(self, client: OpenAI | AsyncOpenAI, batch_id: str, after: str | None, **more: str | int) -> str:
        """With all parameters: of one that is repeated the package would send the last value only."""
        given: dict[str, Any] = {
            "after": after,
            "outcome": self.outcome,
            "code": list(self.codes),
            "custom_id": list(self.custom_ids),
            **more,
        }
        query = urlencode({name: value for name, value in given.items() if value}, doseq=True)
        return f"{own_url(client, 'batches', batch_id, 'results')}?{query}"


class _Document(msgspec.Struct):
    cursor: str | None = None
    outcome: Outcome | None = None
    line: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    end: str | None = None
    error: dict[str, Any] | None = None


class _Page(msgspec.Struct):
    status: str
    cursor: str
    has_more: bool
    data: list[_Document]
    message: str | None = None


def read_page(openai: OpenAI, batch_id: str, wanted: WantedResults, *, limit: int = 100) -> ResultPage:
    response = cast(
        "APIResponse[object]",
        openai.get(
            wanted.url(openai, batch_id, wanted.after, limit=limit), cast_to=object, options={"headers": _RAW}
        ),
    )
    with closing(response):
        return _page(response.read())


async def read_page_async(
    openai: AsyncOpenAI, batch_id: str, wanted: WantedResults, *, limit: int = 100
) -> ResultPage:
    response = cast(
        "AsyncAPIResponse[object]",
        await openai.get(
            wanted.url(openai, batch_id, wanted.after, limit=limit), cast_to=object, options={"headers": _RAW}
        ),
    )
    try:
        return _page(await response.read())
    finally:
        await response.close()


def follow(
    openai: OpenAI, batch_id: str, wanted: WantedResults, *, patience_s: float = PATIENCE_S
) -> Generator[FollowedLine]:
    """Each line once, as it is answered; ends when the batch has ended.

    Args:
        patience_s: how long the server may be unreachable.

    Raises:
        UnavailableError: the server was unreachable for `patience_s`, or could not read the lines.
        RequestError: lines that were not given yet have been deleted.
        openai.APIStatusError: the server refused, for instance an unknown batch.
    """
    connection = _Reconnecting(wanted.after, batch_id, patience_s)
    while True:
        try:
            with closing(_documents(openai, batch_id, wanted, connection.after)) as documents:
                for document in documents:
                    connection.succeeded()
                    if document is None:
                        continue
                    if connection.is_end(document):
                        return
                    yield connection.line(document)
        except _AWAY as error:
            failure: Exception | None = error
        else:
            failure = None
        sleep(connection.pause_s(failure))


async def follow_async(
    openai: AsyncOpenAI, batch_id: str, wanted: WantedResults, *, patience_s: float = PATIENCE_S
) -> AsyncGenerator[FollowedLine]:
    """As `follow`."""
    connection = _Reconnecting(wanted.after, batch_id, patience_s)
    while True:
        try:
            async with aclosing(_documents_async(openai, batch_id, wanted, connection.after)) as documents:
                async for document in documents:
                    connection.succeeded()
                    if document is None:
                        continue
                    if connection.is_end(document):
                        return
                    yield connection.line(document)
        except _AWAY as error:
            failure: Exception | None = error
        else:
            failure = None
        await asyncio.sleep(connection.pause_s(failure))


class _Reconnecting:
    """Where a follower goes on, and how long it waits before it connects again."""

    def __init__(self, after: str | None, batch_id: str, patience_s: float) -> None:
        self.after = after
        self._batch_id = batch_id
        self._patience_s = patience_s
        self._pause_s = _FIRST_PAUSE_S
        self._seen_at = monotonic()

    def succeeded(self) -> None:
        self._pause_s = _FIRST_PAUSE_S
        self._seen_at = monotonic()

    def is_end(self, document: _Document) -> bool:
        if document.error is not None:
            message = str(document.error.get("message"))
            is_refused = document.error.get("type") == "invalid_request_error"
            raise RequestError(message) if is_refused else UnavailableError(message)
        return document.end is not None

    def line(self, document: _Document) -> FollowedLine:
        line = _line(document)
        self.after = line.cursor
        return line

    def pause_s(self, failure: Exception | None) -> float:
        """Raises UnavailableError when the server was away for too long."""
        if monotonic() - self._seen_at > self._patience_s:
            message = (
                f"the server was unreachable for {self._patience_s:g} s; {self._batch_id} continues on it"
            )
            raise UnavailableError(message) from failure
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * _PAUSE_GROWTH, _LONGEST_PAUSE_S)
        return pause_s


def _documents(
    openai: OpenAI, batch_id: str, wanted: WantedResults, after: str | None
) -> Generator[_Document | None]:
    """The documents of one connection; None for a sign of life."""
    response = cast(
        "APIResponse[object]",
        openai.get(wanted.url(openai, batch_id, after, follow=1), cast_to=object, options=_FOLLOWING),
    )
    with closing(response):
        splitter = _Splitter()
        for chunk in response.iter_bytes():
            yield from splitter.documents(chunk)


async def _documents_async(
    openai: AsyncOpenAI, batch_id: str, wanted: WantedResults, after: str | None
) -> AsyncGenerator[_Document | None]:
    response = cast(
        "AsyncAPIResponse[object]",
        await openai.get(wanted.url(openai, batch_id, after, follow=1), cast_to=object, options=_FOLLOWING),
    )
    try:
        splitter = _Splitter()
        async for chunk in response.iter_bytes():
            for document in splitter.documents(chunk):
                yield document
    finally:
        await response.close()


class _Splitter:
    """Cuts chunks into documents. A line that the connection cut off is not a document."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []

    def documents(self, chunk: bytes) -> Iterator[_Document | None]:
        first, *rest = chunk.split(b"\n")
        self._begun.append(first)
        for begun in rest:
            text = b"".join(self._begun)
            self._begun = [begun]
            try:
                yield msgspec.json.decode(text, type=_Document) if text else None
            except msgspec.DecodeError:
                raise _foreign() from None


def _page(content: bytes) -> ResultPage:
    try:
        page = msgspec.json.decode(content, type=_Page)
    except msgspec.DecodeError:
        raise _foreign() from None
    return ResultPage(
        status=page.status,
        lines=tuple(_line(document) for document in page.data),
        cursor=page.cursor,
        has_more=page.has_more,
        message=page.message,
    )


def _line(document: _Document) -> FollowedLine:
    if document.cursor is None or document.outcome is None:
        raise _foreign()
    return FollowedLine(document.cursor, document.outcome, bytes(document.line))


def _foreign() -> UnavailableError:
    return UnavailableError("the server sent something other than the lines of a batch; is it nightmill?")
