"""Retries of ended batches and their merged results, over `/nightmill/v1/batches`."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlencode

from openai import AsyncOpenAI, OpenAI

from nightmill.client.own_api import once, own_url, stream_lines, stream_lines_async

RetryAnswer = dict[str, Any]
"""The server's document: `batch` (None if none was made), `lines`, `origins` and `codes`."""

Receipt = dict[str, Any]
"""The server's document; docs/retry.md has its fields."""

LineDocument = dict[str, Any]
"""The server's document; docs/lines.md has its fields."""


class RetryApi:
    """Retries, merged results and receipts of batches.

    Args:
        openai_client: a client of the server's `/v1`.
    """

    def __init__(self, openai_client: OpenAI) -> None:
        self._openai = openai_client

    def retry(self, *batch_ids: str, **options: Any) -> RetryAnswer:
        """Makes a new batch of the failed lines of ended batches; options as in `retry_request`."""
        answer = self._openai.post(
            own_url(self._openai, "batches", "retry"),
            body=retry_request(batch_ids, **options),
            cast_to=object,
            options={"headers": once()},
        )
        return cast("RetryAnswer", answer)

    def merged(self, batch_id: str, *, partial: bool = False) -> Iterator[bytes]:
        """For each request line of the batch, the newest success over its retries, else the newest error.

        Args:
            partial: also while retries are running.
        """
        return stream_lines(self._openai, _merged_url(self._openai, batch_id, partial=partial))

    def receipt(self, batch_id: str) -> Receipt:
        """What a batch that has ended took: lines, tokens, time and cost."""
        return cast(
            "Receipt", self._openai.get(own_url(self._openai, "batches", batch_id, "receipt"), cast_to=object)
        )

    def line(self, batch_id: str, *, custom_id: str | None = None, number: int | None = None) -> LineDocument:
        """Where a request line is, named by its custom_id or by its number in the input file, from 1."""
        url = _line_url(self._openai, batch_id, custom_id, number)
        return cast("LineDocument", self._openai.get(url, cast_to=object))

    def attempts(self, batch_id: str) -> Iterator[bytes]:
        """The recorded attempts of a batch that was created with `record_attempts`, as lines of JSON."""
        return stream_lines(self._openai, own_url(self._openai, "batches", batch_id, "attempts"))


class AsyncRetryApi:
    """`RetryApi` for asyncio."""

    def __init__(self, openai_client: AsyncOpenAI) -> None:
        self._openai = openai_client

    async def retry(self, *batch_ids: str, **options: Any) -> RetryAnswer:
        answer = await self._openai.post(
            own_url(self._openai, "batches", "retry"),
            body=retry_request(batch_ids, **options),
            cast_to=object,
            options={"headers": once()},
        )
        return cast("RetryAnswer", answer)

    async def merged(self, batch_id: str, *, partial: bool = False) -> AsyncIterator[bytes]:
        url = _merged_url(self._openai, batch_id, partial=partial)
        async for line in stream_lines_async(self._openai, url):
            yield line

    async def receipt(self, batch_id: str) -> Receipt:
        url = own_url(self._openai, "batches", batch_id, "receipt")
        return cast("Receipt", await self._openai.get(url, cast_to=object))

    async def line(
        self, batch_id: str, *, custom_id: str | None = None, number: int | None = None
    ) -> LineDocument:
        url = _line_url(self._openai, batch_id, custom_id, number)
        return cast("LineDocument", await self._openai.get(url, cast_to=object))

    async def attempts(self, batch_id: str) -> AsyncIterator[bytes]:
        async for line in stream_lines_async(
            self._openai, own_url(self._openai, "batches", batch_id, "attempts")
        ):
            yield line


def retry_request(
    batch_ids: Sequence[str],
    *,
    outcomes: Sequence[str] | None = None,
    codes: Sequence[str] = (),
    completion_window: str | None = None,
    metadata: Mapping[str, str] | None = None,
    nightmill: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """The body of a retry.

    Args:
        batch_ids: batches that have ended, with the same endpoint.
        outcomes: of `failed`, `expired` and `cancelled`; None for `failed`, or with `codes` for all three.
        codes: only lines with one of these error codes or HTTP statuses.
        completion_window: None for that of the first batch, as for `metadata`.
        nightmill: what the reserved key of a create takes, such as `priority`.
        dry_run: only counts the lines.
    """
    body: dict[str, Any] = {"ids": list(batch_ids)}
    if outcomes is not None:
        body["outcomes"] = list(outcomes)
    if codes:
        body["codes"] = list(codes)
    if completion_window is not None:
        body["completion_window"] = completion_window
    if metadata is not None:
        body["metadata"] = dict(metadata)
    if nightmill is not None:
        body["nightmill"] = dict(nightmill)
    if dry_run:
        body["dry_run"] = True
    return body


def _merged_url(client: OpenAI | AsyncOpenAI, batch_id: str, *, partial: bool) -> str:
    return own_url(client, "batches", batch_id, "merged") + ("?partial=true" if partial else "")


def _line_url(client: OpenAI | AsyncOpenAI, batch_id: str, custom_id: str | None, number: int | None) -> str:
    named = {"custom_id": custom_id, "line": number}
    query = urlencode({name: value for name, value in named.items() if value is not None})
    return f"{own_url(client, 'batches', batch_id, 'lines')}?{query}"
