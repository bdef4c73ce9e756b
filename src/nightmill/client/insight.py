"""What limits a batch, when it will end, and its history, over `/nightmill/v1/batches`: only of nightmill."""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from openai import APIStatusError, AsyncOpenAI, OpenAI

from nightmill.client.own_api import json_object, own_url

_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """What limits a batch now.

    Args:
        code: a stable word for programs, such as `upstream_held`.
        upstream: the upstream that limits it; None if none does.
        until: Unix seconds at which the limit ends; None where that is not known.
        since: Unix seconds since when it is known to limit; None where that is not known.
    """

    code: str
    sentence: str
    upstream: str | None = None
    until: float | None = None
    since: float | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        known: dict[str, Any] = {field.name: document.get(field.name) for field in fields(cls)}
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is expected of a batch; fields are None where nothing can be said. Times are Unix seconds.

    Args:
        in_flight: attempts in flight now.
        retrying: lines that failed and wait to be sent again.
        earliest_at: with `latest_at` a range in which the end is with a probability of 80%.
        deadline_odds: the probability that all lines are answered before the deadline, from 0 to 1.
        usage: tokens so far.
        tokens_to_come: of all lines that are left, input and output together.
    """

    in_flight: int = 0
    retrying: int = 0
    lines_per_s: float | None = None
    output_tokens_per_s: float | None = None
    ends_at: int | None = None
    earliest_at: int | None = None
    latest_at: int | None = None
    deadline_odds: float | None = None
    usage: Mapping[str, int] | None = None
    tokens_to_come: int | None = None
    cost: float | None = None
    cost_to_come: float | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        known = {field.name: document[field.name] for field in fields(cls) if field.name in document}
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEvent:
    """One entry of the history of a batch.

    Args:
        at: Unix seconds.
        actor: the key or operator that did it; None for the server itself.
    """

    sequence: int
    at: float
    kind: str
    actor: str | None
    detail: Mapping[str, Any]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        known: dict[str, Any] = {field.name: document.get(field.name) for field in fields(cls)}
        return cls(**known)


class InsightApi:
    """What limits batches, their forecasts and their histories.

    Args:
        openai_client: a client of the server's `/v1`.
    """

    def __init__(self, openai_client: OpenAI) -> None:
        self._openai = openai_client

    def why(self, batch_id: str) -> Why | None:
        """What limits the batch; None when it has ended."""
        return why_in(self._batch(batch_id))

    def forecast(self, batch_id: str) -> Forecast | None:
        """What is expected of the batch; None when it has ended."""
        return forecast_in(self._batch(batch_id))

    def both(self, batch_id: str) -> tuple[Why | None, Forecast | None]:
        """`why` and `forecast` of the same moment, in one request."""
        document = self._batch(batch_id)
        return why_in(document), forecast_in(document)

    def document_if_known(self, batch_id: str) -> dict[str, Any] | None:
        """The document with all that a published batch has no field for; None if the server is not
        nightmill."""
        try:
            return self._batch(batch_id)
        except APIStatusError:
            return None

    def events(self, batch_id: str, *, after: int = 0) -> Iterator[BatchEvent]:
        """The history of the batch, the oldest entry first, page by page.

        Args:
            after: the sequence of the last entry that is known.
        """
        has_more = True
        while has_more:
            page = json_object(self._openai.get(_events_url(self._openai, batch_id, after), cast_to=object))
            yield from map(BatchEvent.of, page["data"])
            has_more, after = page["has_more"], page["last_id"] or after

    def _batch(self, batch_id: str) -> dict[str, Any]:
        return json_object(self._openai.get(own_url(self._openai, "batches", batch_id), cast_to=object))


class AsyncInsightApi:
    """`InsightApi` for asyncio: the same operations, awaited."""

    def __init__(self, openai_client: AsyncOpenAI) -> None:
        self._openai = openai_client

    async def why(self, batch_id: str) -> Why | None:
        return why_in(await self._batch(batch_id))

    async def forecast(self, batch_id: str) -> Forecast | None:
        return forecast_in(await self._batch(batch_id))

    async def both(self, batch_id: str) -> tuple[Why | None, Forecast | None]:
        document = await self._batch(batch_id)
        return why_in(document), forecast_in(document)

    async def events(self, batch_id: str, *, after: int = 0) -> AsyncIterator[BatchEvent]:
        has_more = True
        while has_more:
            page = json_object(
                await self._openai.get(_events_url(self._openai, batch_id, after), cast_to=object)
            )
            for document in page["data"]:
                yield BatchEvent.of(document)
            has_more, after = page["has_more"], page["last_id"] or after

    async def _batch(self, batch_id: str) -> dict[str, Any]:
        return json_object(await self._openai.get(own_url(self._openai, "batches", batch_id), cast_to=object))


def why_in(document: Mapping[str, Any]) -> Why | None:
    found = document.get("why")
    return None if found is None else Why.of(found)


def forecast_in(document: Mapping[str, Any]) -> Forecast | None:
    found = document.get("forecast")
    return None if found is None else Forecast.of(found)


def _events_url(client: OpenAI | AsyncOpenAI, batch_id: str, after: int) -> str:
    return f"{own_url(client, 'batches', batch_id)}/events?after={after}&limit={_PAGE}"
