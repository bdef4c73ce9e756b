"""Upstreams of a running server, over `/nightmill/v1/upstreams`. The key must be an admin key."""

from collections.abc import Mapping
from typing import Any

from openai import AsyncOpenAI, OpenAI

from nightmill.client.own_api import json_object, own_url

Upstream = dict[str, Any]


class UpstreamApi:
    """The operations on upstreams by their own names. Answers are the server's JSON.

    Args:
        openai_client: a client of the server's `/v1`.
    """

    def __init__(self, openai_client: OpenAI) -> None:
        self._openai = openai_client
        self._root = own_url(openai_client, "upstreams")

    def list(self) -> dict[str, Any]:
        """`data` has the upstreams, `problems` those that the server cannot read."""
        return json_object(self._openai.get(self._root, cast_to=object))

    def get(self, name: str) -> Upstream:
        """One upstream: its settings and what is measured of it."""
        return json_object(self._openai.get(self._of(name), cast_to=object))

    def add(self, fields: Mapping[str, Any]) -> Upstream:
        """Adds an upstream, with the fields of its settings."""
        return json_object(self._openai.post(self._root, body=dict(fields), cast_to=object))

    def change(self, name: str, fields: Mapping[str, Any]) -> Upstream:
        """Merges the fields into the settings of the upstream; None removes one."""
        return json_object(self._openai.patch(self._of(name), body=dict(fields), cast_to=object))

    def do(self, name: str, action: str) -> Upstream:
        """Runs one of `pause`, `resume`, `drain`, `reset` and `test`."""
        return json_object(self._openai.post(f"{self._of(name)}/{action}", cast_to=object))

    def remove(self, name: str) -> Upstream:
        """Removes an upstream that was added at run time."""
        return json_object(self._openai.delete(self._of(name), cast_to=object))

    def _of(self, name: str) -> str:
        return own_url(self._openai, "upstreams", name)


class AsyncUpstreamApi:
    """`UpstreamApi` for asyncio: the same operations, awaited."""

    def __init__(self, openai_client: AsyncOpenAI) -> None:
        self._openai = openai_client
        self._root = own_url(openai_client, "upstreams")

    async def list(self) -> dict[str, Any]:
        return json_object(await self._openai.get(self._root, cast_to=object))

    async def get(self, name: str) -> Upstream:
        return json_object(await self._openai.get(self._of(name), cast_to=object))

    async def add(self, fields: Mapping[str, Any]) -> Upstream:
        return json_object(await self._openai.post(self._root, body=dict(fields), cast_to=object))

    async def change(self, name: str, fields: Mapping[str, Any]) -> Upstream:
        return json_object(await self._openai.patch(self._of(name), body=dict(fields), cast_to=object))

    async def do(self, name: str, action: str) -> Upstream:
        return json_object(await self._openai.post(f"{self._of(name)}/{action}", cast_to=object))

    async def remove(self, name: str) -> Upstream:
        return json_object(await self._openai.delete(self._of(name), cast_to=object))

    def _of(self, name: str) -> str:
        return own_url(self._openai, "upstreams", name)
