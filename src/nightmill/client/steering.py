"""Steering of running batches, over `/nightmill/v1/batches`. Only nightmill servers have these operations.

Answers are the server's JSON: of one batch its document, of several an object with `matched`, `changed`,
`unchanged`, `refused`, `not_found`, and in `data` one row per batch.
"""

import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlencode

from openai import AsyncOpenAI, OpenAI

from nightmill.client.own_api import json_object, own_url

OwnBatch = dict[str, Any]
Action = Literal["pause", "resume", "prioritize", "deadline", "limit", "cancel"]

COUNTS: Final = ("changed", "unchanged", "refused", "not_found")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSelection:
    """Which batches are meant: those that match every field that is given.

    Args:
        status: one of these.
        metadata: these pairs and possibly more.
        older_than_s: created at least so many seconds ago.
        paused: whether they are paused.
    """

    status: Sequence[str] | None = None
    metadata: Mapping[str, str] | None = None
    older_than_s: float | None = None
    endpoint: str | None = None
    model: str | None = None
    paused: bool | None = None

    def to_wire(self) -> dict[str, Any]:
        """The fields that are given, as the server takes them."""
        given = {
            "status": None if self.status is None else list(self.status),
            "metadata": None if self.metadata is None else dict(self.metadata),
            "older_than_s": self.older_than_s,
            "endpoint": self.endpoint,
            "model": self.model,
            "paused": self.paused,
        }
        return {name: value for name, value in given.items() if value is not None}

    def to_query(self) -> dict[str, Any]:
        """The same as parameters of a GET."""
        query = self.to_wire()
        if self.metadata is not None:
            query["metadata"] = [f"{key}={value}" for key, value in self.metadata.items()]
        if self.paused is not None:
            query["paused"] = str(self.paused).lower()
        return query


Selected = Sequence[str] | BatchSelection
"""Ids, or a selection."""


class Steering:
    """The operations by their own names.

    Args:
        openai_client: a client of the server's `/v1`.
    """

    def __init__(self, openai_client: OpenAI) -> None:
        self._openai = openai_client
        self._root = own_url(openai_client, "batches")

    def get(self, batch_id: str) -> OwnBatch:
        """The batch with all that a published batch has no field for."""
        return json_object(self._openai.get(own_url(self._openai, "batches", batch_id), cast_to=object))

    def list(
        self, selection: BatchSelection | None = None, *, after: str | None = None, limit: int = 20
    ) -> dict[str, Any]:
        """A page of batches, newest first."""
        return json_object(self._openai.get(_page(self._root, selection, after, limit), cast_to=object))

    def ids(self, id_prefix: str, *, limit: int = 20) -> builtins.list[str]:
        """The ids of the newest batches that begin with `id_prefix`, such as `batch_3f2a9c1b`."""
        query = urlencode({"id_prefix": id_prefix, "limit": limit})
        page = json_object(self._openai.get(f"{self._root}?{query}", cast_to=object))
        return [document["id"] for document in page["data"]]

    def pause(self, batch_id: str) -> OwnBatch:
        """Sends no further lines of the batch until it is resumed."""
        return json_object(
            self._openai.post(own_url(self._openai, "batches", batch_id, "pause"), cast_to=object)
        )

    def resume(self, batch_id: str) -> OwnBatch:
        """Goes on with a paused batch."""
        return json_object(
            self._openai.post(own_url(self._openai, "batches", batch_id, "resume"), cast_to=object)
        )

    def change(self, batch_id: str, **values: int | None) -> OwnBatch:
        """Sets `priority`, `deadline` (Unix seconds) or `deadline_in_s`, and `concurrency` (None removes it),
        all of them or none."""
        return json_object(
            self._openai.post(own_url(self._openai, "batches", batch_id), body=values, cast_to=object)
        )

    def act(
        self, action: Action, selected: Selected, *, dry_run: bool = False, **values: int | None
    ) -> dict[str, Any]:
        """Does one thing to all selected batches, however many they are.

        Args:
            dry_run: only says what would happen.
            values: as for `change`, for the actions `prioritize`, `deadline` and `limit`.
        """
        total: dict[str, Any] = {}
        for body in _bodies(action, selected, dry_run=dry_run, values=values, total=total):
            _add(total, json_object(self._openai.post(f"{self._root}/actions", body=body, cast_to=object)))
        return total


class AsyncSteering:
    """`Steering` for asyncio: the same operations, awaited."""

    def __init__(self, openai_client: AsyncOpenAI) -> None:
        self._openai = openai_client
        self._root = own_url(openai_client, "batches")

    async def get(self, batch_id: str) -> OwnBatch:
        return json_object(await self._openai.get(own_url(self._openai, "batches", batch_id), cast_to=object))

    async def list(
        self, selection: BatchSelection | None = None, *, after: str | None = None, limit: int = 20
    ) -> dict[str, Any]:
        return json_object(await self._openai.get(_page(self._root, selection, after, limit), cast_to=object))

    async def ids(self, id_prefix: str, *, limit: int = 20) -> builtins.list[str]:
        query = urlencode({"id_prefix": id_prefix, "limit": limit})
        page = json_object(await self._openai.get(f"{self._root}?{query}", cast_to=object))
        return [document["id"] for document in page["data"]]

    async def pause(self, batch_id: str) -> OwnBatch:
        return json_object(
            await self._openai.post(own_url(self._openai, "batches", batch_id, "pause"), cast_to=object)
        )

    async def resume(self, batch_id: str) -> OwnBatch:
        return json_object(
            await self._openai.post(own_url(self._openai, "batches", batch_id, "resume"), cast_to=object)
        )

    async def change(self, batch_id: str, **values: int | None) -> OwnBatch:
        return json_object(
            await self._openai.post(own_url(self._openai, "batches", batch_id), body=values, cast_to=object)
        )

    async def act(
        self, action: Action, selected: Selected, *, dry_run: bool = False, **values: int | None
    ) -> dict[str, Any]:
        total: dict[str, Any] = {}
        for body in _bodies(action, selected, dry_run=dry_run, values=values, total=total):
            _add(
                total,
                json_object(await self._openai.post(f"{self._root}/actions", body=body, cast_to=object)),
            )
        return total


_MOST_IDS = 1_000


def _bodies(
    action: str,
    selected: Selected,
    *,
    dry_run: bool,
    values: Mapping[str, int | None],
    total: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """The bodies of the requests, each made after the answer to the one before is in `total`."""
    body: dict[str, Any] = {"action": action, "dry_run": dry_run, **values}
    if not isinstance(selected, BatchSelection):
        for first in range(0, max(1, len(selected)), _MOST_IDS):
            yield {**body, "ids": list(selected[first : first + _MOST_IDS])}
        return
    body["filter"] = selected.to_wire()
    yield body
    while total["has_more"]:
        yield {**body, "after": total["last_id"]}


def _add(total: dict[str, Any], answer: dict[str, Any]) -> None:
    if not total:
        total.update(answer)
        return
    for name in COUNTS:
        total[name] += answer[name]
    total["matched"] = max(total["matched"], len(total["data"]) + len(answer["data"]) - total["not_found"])
    total["data"].extend(answer["data"])
    total |= {"last_id": answer["last_id"] or total["last_id"], "has_more": answer["has_more"]}


def _page(root: str, selection: BatchSelection | None, after: str | None, limit: int) -> str:
    query: dict[str, Any] = {"limit": limit, **({} if selection is None else selection.to_query())}
    if after is not None:
        query["after"] = after
    return f"{root}?{urlencode(query, doseq=True)}"
