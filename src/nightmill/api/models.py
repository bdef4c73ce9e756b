"""GET /v1/models: the models of the upstream, in OpenAI's shape.

The list is that of the settings, or else the upstream's own. The upstream is queried at most once every few
seconds, for any number of requests. Without a list from the upstream the response is a 503: an empty list
would be false.
"""

import asyncio
from typing import Any, cast

import msgspec
from fastapi import APIRouter, Request

from nightmill.api import wire
from nightmill.api.context import ApiContext
from nightmill.api.envelope import JsonResponse, echo
from nightmill.errors import NotFoundError, UnavailableError

_CACHE_S = 5.0
_FAILURE_CACHE_S = 1.0
_UPSTREAM_TIMEOUT_S = 10.0
_OWNER = "upstream"

Listing = list[dict[str, Any]]

router = APIRouter(tags=["Models"])


class ModelList:
    """The list of models, cached for a few seconds."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._models: Listing | None = None
        self._fetched_at: float | None = None

    async def models(self) -> Listing:
        """Raises UnavailableError when the upstream returns no list."""
        configured = self._context.settings.models
        if configured:
            return [_model(name) for name in configured]
        if not self._is_fresh():
            async with self._lock:
                if not self._is_fresh():
                    self._models = await self._fetch()
                    self._fetched_at = self._context.clock()
        if self._models is None:
            message = "The upstream did not give its list of models. Please try again once it answers."
            raise UnavailableError(message, retry_after_s=2)
        return self._models

    def _is_fresh(self) -> bool:
        if self._fetched_at is None:
            return False
        cache_s = _FAILURE_CACHE_S if self._models is None else _CACHE_S
        return 0 <= self._context.clock() - self._fetched_at < cache_s

    async def _fetch(self) -> Listing | None:
        try:
            async with asyncio.timeout(_UPSTREAM_TIMEOUT_S):
                answer = await self._context.upstream_models()
        except TimeoutError:
            return None
        return None if answer is None else parse_models(answer)


@router.get(
    "/models",
    operation_id="listModels",
    response_model=wire.ListModelsResponse,
    summary="List the models the upstream offers.",
)
async def list_models(request: Request) -> JsonResponse:
    return JsonResponse({"object": "list", "data": await _model_list_of(request).models()})


@router.get(
    "/models/{model:path}",
    operation_id="retrieveModel",
    response_model=wire.Model,
    summary="Retrieve a model.",
)
async def retrieve_model(model: str, request: Request) -> JsonResponse:
    for entry in await _model_list_of(request).models():
        if entry["id"] == model:
            return JsonResponse(entry)
    message = f"The model '{echo(model)}' does not exist"
    raise NotFoundError(message, param="model", code="model_not_found")


def parse_models(answer: bytes) -> Listing | None:
    """The models of an upstream's response that have an id, without fields that OpenAI does not publish.

    Returns None when the response is no list of models.
    """
    try:
        parsed: object = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    entries = cast("dict[str, object]", parsed).get("data") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        return None
    listing: Listing = []
    for entry in cast("list[object]", entries):
        if not isinstance(entry, dict):
            continue
        fields = cast("dict[str, object]", entry)
        name, created, owner = fields.get("id"), fields.get("created"), fields.get("owned_by")
        if isinstance(name, str) and name:
            listing.append(
                _model(
                    name,
                    created=created if type(created) is int and 0 <= created < 1 << 31 else 0,
                    owner=owner if isinstance(owner, str) and owner else _OWNER,
                )
            )
    return listing


def _model(name: str, *, created: int = 0, owner: str = _OWNER) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _model_list_of(request: Request) -> ModelList:
    return cast("ModelList", request.app.state.model_list)
