"""Webhooks of a server: its endpoints over `/v1/webhook_endpoints`, and its log of deliveries.

The deliveries and sending them again are of nightmill only. Answers are the server's JSON.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from openai import AsyncOpenAI, OpenAI

from nightmill.client.own_api import json_object, own_url

WebhookEndpoint = dict[str, Any]
"""Has `signing_secret` only in the answers of `add` and `rotate`."""


class WebhookApi:
    """The operations on webhooks by their own names.

    Args:
        openai_client: a client of the server's `/v1`.
    """

    def __init__(self, openai_client: OpenAI) -> None:
        self._openai = openai_client
        self._urls = _Urls(openai_client)

    def list(self, *, after: str | None = None, limit: int = 20) -> dict[str, Any]:
        """One page of endpoints, newest first; the next one is `after` its `last_id`."""
        return self._get(self._urls.endpoints, _page(after, limit))

    def add(self, name: str, url: str, event_types: Sequence[str]) -> WebhookEndpoint:
        """The new endpoint, with its `signing_secret`."""
        return self._post(self._urls.endpoints, {"name": name, "url": url, "event_types": [*event_types]})

    def show(self, endpoint_id: str) -> WebhookEndpoint:
        """One endpoint, without its secret."""
        return self._get(self._urls.of(endpoint_id))

    def update(
        self,
        endpoint_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
    ) -> WebhookEndpoint:
        """Changes what is given."""
        return self._post(self._urls.of(endpoint_id), _changes(name, url, event_types))

    def remove(self, endpoint_id: str) -> dict[str, Any]:
        """Deletes an endpoint; nothing is sent to it any more."""
        return json_object(self._openai.delete(self._urls.of(endpoint_id), cast_to=object))

    def rotate(self, endpoint_id: str, *, keep_old: bool = False) -> WebhookEndpoint:
        """The endpoint with a new `signing_secret`.

        Args:
            keep_old: the secret until now signs too, for 24 hours.
        """
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        return self._post(f"{self._urls.of(endpoint_id)}/rotate_secret", body)

    def test(self, endpoint_id: str, event_type: str = "batch.completed") -> dict[str, Any]:
        """Sends a sample at once; `status_code` is what the receiver answered."""
        return self._post(f"{self._urls.of(endpoint_id)}/test", {"event_type": event_type})

    def event_types(self) -> tuple[str, ...]:
        """The events that the server sends."""
        return tuple(self._get(self._urls.event_types)["data"])

    def deliveries(
        self, endpoint_id: str, *, state: str | None = None, after: str | None = None, limit: int = 20
    ) -> dict[str, Any]:
        """One page of deliveries, newest first.

        Args:
            state: only those that are `pending`, `delivered` or `failed`.
        """
        return self._get(self._urls.deliveries(endpoint_id), _page(after, limit, state))

    def resend(self, delivery_id: str) -> dict[str, Any]:
        """Makes a delivery due again, whatever became of it."""
        return self._post(self._urls.resend(delivery_id), None)

    def _get(self, url: str, query: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._openai.get(url, cast_to=object, options={"params": query or {}})
        return json_object(answer)

    def _post(self, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        return json_object(self._openai.post(url, cast_to=object, body=body))


class AsyncWebhookApi:
    """`WebhookApi` for asyncio: the same operations, awaited."""

    def __init__(self, openai_client: AsyncOpenAI) -> None:
        self._openai = openai_client
        self._urls = _Urls(openai_client)

    async def list(self, *, after: str | None = None, limit: int = 20) -> dict[str, Any]:
        return await self._get(self._urls.endpoints, _page(after, limit))

    async def add(self, name: str, url: str, event_types: Sequence[str]) -> WebhookEndpoint:
        return await self._post(
            self._urls.endpoints, {"name": name, "url": url, "event_types": [*event_types]}
        )

    async def show(self, endpoint_id: str) -> WebhookEndpoint:
        return await self._get(self._urls.of(endpoint_id))

    async def update(
        self,
        endpoint_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
    ) -> WebhookEndpoint:
        return await self._post(self._urls.of(endpoint_id), _changes(name, url, event_types))

    async def remove(self, endpoint_id: str) -> dict[str, Any]:
        return json_object(await self._openai.delete(self._urls.of(endpoint_id), cast_to=object))

    async def rotate(self, endpoint_id: str, *, keep_old: bool = False) -> WebhookEndpoint:
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        return await self._post(f"{self._urls.of(endpoint_id)}/rotate_secret", body)

    async def test(self, endpoint_id: str, event_type: str = "batch.completed") -> dict[str, Any]:
        return await self._post(f"{self._urls.of(endpoint_id)}/test", {"event_type": event_type})

    async def event_types(self) -> tuple[str, ...]:
        return tuple((await self._get(self._urls.event_types))["data"])

    async def deliveries(
        self, endpoint_id: str, *, state: str | None = None, after: str | None = None, limit: int = 20
    ) -> dict[str, Any]:
        return await self._get(self._urls.deliveries(endpoint_id), _page(after, limit, state))

    async def resend(self, delivery_id: str) -> dict[str, Any]:
        return await self._post(self._urls.resend(delivery_id), None)

    async def _get(self, url: str, query: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = await self._openai.get(url, cast_to=object, options={"params": query or {}})
        return json_object(answer)

    async def _post(self, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        return json_object(await self._openai.post(url, cast_to=object, body=body))


class _Urls:
    def __init__(self, client: OpenAI | AsyncOpenAI) -> None:
        base = str(client.base_url).rstrip("/")
        self._client = client
        self.endpoints = f"{base}/webhook_endpoints"
        self.event_types = f"{base}/webhook_event_types"

    def of(self, endpoint_id: str) -> str:
        return f"{self.endpoints}/{quote(endpoint_id, safe='')}"

    def deliveries(self, endpoint_id: str) -> str:
        return own_url(self._client, "webhook_endpoints", endpoint_id, "deliveries")

    def resend(self, delivery_id: str) -> str:
        return own_url(self._client, "webhook_deliveries", delivery_id, "resend")


def _page(after: str | None, limit: int, state: str | None = None) -> dict[str, Any]:
    given = {"after": after, "limit": limit, "state": state}
    return {name: value for name, value in given.items() if value is not None}


def _changes(name: str | None, url: str | None, event_types: Sequence[str] | None) -> dict[str, Any]:
    given = {"name": name, "url": url, "event_types": None if event_types is None else [*event_types]}
    return {field: value for field, value in given.items() if value is not None}
