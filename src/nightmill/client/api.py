"""The published batch operations by their own names, for any base URL.

Typed requests and objects on the official `openai` package. Nothing is added to the server's answers; errors
are of nightmill's family and of the package's (`error_family`). Files, waiting and joining answers belong to
`session`.
"""

import os
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

import msgspec
from openai import AsyncOpenAI, OpenAI
from openai.pagination import AsyncCursorPage, SyncCursorPage
from openai.types import Batch

from nightmill.client import results as _results
from nightmill.client.error_family import AsyncServer, Server
from nightmill.client.input_files import AsyncInputApi, InputApi
from nightmill.client.insight import AsyncInsightApi, InsightApi
from nightmill.client.own_api import once, own_url
from nightmill.client.results import PATIENCE_S, FollowedLine, ResultPage, WantedResults
from nightmill.client.steering import AsyncSteering, Steering
from nightmill.client.webhooks import AsyncWebhookApi, WebhookApi
from nightmill.core.batch_options import BatchOptions, OnInvalid
from nightmill.errors import RequestError

__all__ = [
    "DEFAULT_BASE_URL",
    "ApiKeyAuth",
    "AsyncBatchApi",
    "Batch",
    "BatchApi",
    "BatchOptions",
    "BatchPriority",
    "CreateBatchRequest",
    "ListBatchesResponse",
    "OnInvalid",
    "OutputExpiresAfter",
]

DEFAULT_BASE_URL = "http://127.0.0.1:8080/v1"
# A server without keys ignores it; a server with keys answers 401 with a clear message.
_NO_KEY = "no-key"
_ALL = WantedResults()


@dataclass(frozen=True, slots=True)
class ApiKeyAuth:
    """A bearer key. It is never shown by `repr`."""

    api_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputExpiresAfter:
    """When output and error file are deleted, counted from their own creation."""

    seconds: int
    anchor: Literal["created_at"] = "created_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateBatchRequest:
    """What `create_batch` sends. Fields that are None are left out.

    Args:
        priority: from -10 to 10; only nightmill has it.
        options: what else only nightmill has, such as `BatchOptions(canary=20)`.
    """

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: Mapping[str, str] | None = None
    output_expires_after: OutputExpiresAfter | None = None
    priority: int | None = None
    options: BatchOptions | None = None

    def to_wire(self) -> dict[str, Any]:
        """The arguments of the package's `batches.create`."""
        wire: dict[str, Any] = {
            "input_file_id": self.input_file_id,
            "endpoint": self.endpoint,
            "completion_window": self.completion_window,
        }
        if self.metadata is not None:
            wire["metadata"] = dict(self.metadata)
        if self.output_expires_after is not None:
            after = self.output_expires_after
            wire["output_expires_after"] = {"anchor": after.anchor, "seconds": after.seconds}
        own: dict[str, Any] = {} if self.options is None else msgspec.to_builtins(self.options)
        if self.priority is not None:
            own["priority"] = self.priority
        if own:
            wire["extra_body"] = {"nightmill": own}
        return wire


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPriority:
    """The priority of a batch; a higher one gets more of the work of its project. Only nightmill has it."""

    id: str
    status: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListBatchesResponse:
    """One page of batches, newest first. The next page starts with `after=last_id`."""

    object: str
    data: tuple[Batch, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


def connection(
    base_url: str | None, auth: ApiKeyAuth | None = None, api_key: str | None = None
) -> dict[str, Any]:
    """What an `openai` client needs to reach the server; the environment fills what is None.

    Raises:
        RequestError: there are two keys.
    """
    if auth is not None and api_key is not None:
        raise RequestError("give the key as api_key or as auth, not as both")
    key = api_key or (auth.api_key if auth else os.environ.get("OPENAI_API_KEY"))
    return {
        "base_url": with_scheme(base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL),
        "api_key": key or _NO_KEY,
    }


def with_scheme(base_url: str) -> str:
    """`localhost:8080/v1` -> `http://localhost:8080/v1`."""
    return base_url if "://" in base_url else f"http://{base_url}"


class BatchApi:
    """createBatch, retrieveBatch, cancelBatch and listBatches of one server, and the priority of a batch.

    Args:
        base_url: up to and with `/v1`; else `OPENAI_BASE_URL`, else nightmill on this machine.
        auth: the key as an object that `repr` does not show.
        api_key: the key; else `OPENAI_API_KEY`. A server without keys ignores it.
        openai_client: an `openai` client of your own instead of the three above. Its errors are those of the
            package only.

    Attributes:
        steering: what a nightmill server does to running batches besides.
    """

    def __init__(
        self,
        base_url: str | None = None,
        auth: ApiKeyAuth | None = None,
        *,
        api_key: str | None = None,
        openai_client: OpenAI | None = None,
    ) -> None:
        self._openai = openai_client or Server(**connection(base_url, auth, api_key))
        self.input = InputApi(self._openai)
        self.webhooks = WebhookApi(self._openai)
        self.steering = Steering(self._openai)
        self.insight = InsightApi(self._openai)

    def create_batch(self, request: CreateBatchRequest) -> Batch:
        """Creates a batch of an uploaded file. A repeated request creates no second batch."""
        return self._openai.batches.create(**request.to_wire(), extra_headers=once())

    def retrieve_batch(self, batch_id: str) -> Batch:
        """The batch as it is now."""
        return self._openai.batches.retrieve(batch_id)

    def cancel_batch(self, batch_id: str) -> Batch:
        """Sends no further lines; what was answered is kept."""
        return self._openai.batches.cancel(batch_id)

    def list_batches(self, after: str | None = None, limit: int = 20) -> ListBatchesResponse:
        """One page of batches, newest first; the next one is `after` its `last_id`."""
        return _response(self._openai.batches.list(**_cursor(after, limit)))

    def retrieve_priority(self, batch_id: str) -> BatchPriority:
        """The priority of a batch; only nightmill has it."""
        return _priority(self._openai.get(own_url(self._openai, "batches", batch_id), cast_to=object))

    def set_priority(self, batch_id: str, priority: int) -> BatchPriority:
        """Changes the priority of a running batch, from -10 to 10; only nightmill has it."""
        url = own_url(self._openai, "batches", batch_id)
        return _priority(self._openai.post(url, cast_to=object, body={"priority": priority}))

    def results(self, batch_id: str, wanted: WantedResults = _ALL, *, limit: int = 100) -> ResultPage:
        """The output lines that are there now; only nightmill has this."""
        return _results.read_page(self._openai, batch_id, wanted, limit=limit)

    def follow(
        self, batch_id: str, wanted: WantedResults = _ALL, *, patience_s: float = PATIENCE_S
    ) -> Generator[FollowedLine]:
        """Each output line once, as it is answered, until the batch has ended, as `Client.follow`."""
        return _results.follow(self._openai, batch_id, wanted, patience_s=patience_s)

    def close(self) -> None:
        """Closes the connections."""
        self._openai.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class AsyncBatchApi:
    """`BatchApi` for asyncio: the same operations, awaited."""

    def __init__(
        self,
        base_url: str | None = None,
        auth: ApiKeyAuth | None = None,
        *,
        api_key: str | None = None,
        openai_client: AsyncOpenAI | None = None,
    ) -> None:
        self._openai = openai_client or AsyncServer(**connection(base_url, auth, api_key))
        self.input = AsyncInputApi(self._openai)
        self.webhooks = AsyncWebhookApi(self._openai)
        self.steering = AsyncSteering(self._openai)
        self.insight = AsyncInsightApi(self._openai)

    async def create_batch(self, request: CreateBatchRequest) -> Batch:
        return await self._openai.batches.create(**request.to_wire(), extra_headers=once())

    async def retrieve_batch(self, batch_id: str) -> Batch:
        return await self._openai.batches.retrieve(batch_id)

    async def cancel_batch(self, batch_id: str) -> Batch:
        return await self._openai.batches.cancel(batch_id)

    async def list_batches(self, after: str | None = None, limit: int = 20) -> ListBatchesResponse:
        return _response(await self._openai.batches.list(**_cursor(after, limit)))

    async def retrieve_priority(self, batch_id: str) -> BatchPriority:
        return _priority(await self._openai.get(own_url(self._openai, "batches", batch_id), cast_to=object))

    async def set_priority(self, batch_id: str, priority: int) -> BatchPriority:
        url = own_url(self._openai, "batches", batch_id)
        return _priority(await self._openai.post(url, cast_to=object, body={"priority": priority}))

    async def results(self, batch_id: str, wanted: WantedResults = _ALL, *, limit: int = 100) -> ResultPage:
        return await _results.read_page_async(self._openai, batch_id, wanted, limit=limit)

    def follow(
        self, batch_id: str, wanted: WantedResults = _ALL, *, patience_s: float = PATIENCE_S
    ) -> AsyncGenerator[FollowedLine]:
        return _results.follow_async(self._openai, batch_id, wanted, patience_s=patience_s)

    async def close(self) -> None:
        await self._openai.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()


def _priority(document: object) -> BatchPriority:
    fields = cast("dict[str, Any]", document)
    return BatchPriority(id=fields["id"], status=fields["status"], priority=fields["priority"])


def _cursor(after: str | None, limit: int) -> dict[str, Any]:
    return {"limit": limit} if after is None else {"limit": limit, "after": after}


def _response(page: SyncCursorPage[Batch] | AsyncCursorPage[Batch]) -> ListBatchesResponse:
    # The package's page keeps first_id and last_id only as untyped extras.
    extra = page.model_extra or {}
    data = tuple(page.data or ())
    return ListBatchesResponse(
        object=str(extra.get("object") or "list"),
        data=data,
        first_id=cast("str | None", extra.get("first_id")) or (data[0].id if data else None),
        last_id=cast("str | None", extra.get("last_id")) or (data[-1].id if data else None),
        has_more=bool(page.has_more),
    )
