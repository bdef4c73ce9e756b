"""GET /v1/models: the models of all upstreams, in OpenAI's shape.

The list is that of the settings, of what the workers report, or of a single upstream's own. It is made at
most once every few seconds, for any number of requests. Without any list the response is a 503: an empty list
would be false.
"""

import asyncio
from typing import Any, cast

from fastapi import APIRouter, Request

from nightmill.api import wire
from nightmill.api.context import ApiContext
from nightmill.api.envelope import JsonResponse, echo
from nightmill.errors import NotFoundError, UnavailableError
from nightmill.roles.offered_models import offered_models
from nightmill.upstream.model_list import parse_models

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
        """Raises UnavailableError when there is no list."""
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
        context = self._context
        offered = await offered_models(context.store, context.settings)
        if offered.is_decided_by_upstream:
            return await self._fetch_from_upstream()
        return [_model(name) for name in offered.known] or None

    async def _fetch_from_upstream(self) -> Listing | None:
        try:
            async with asyncio.timeout(_UPSTREAM_TIMEOUT_S):
                answer = await self._context.upstream_models()
        except TimeoutError:
            return None
        models = None if answer is None else parse_models(answer)
        if models is None:
            return None
        return [_model(each.id, created=each.created, owner=each.owner or _OWNER) for each in models]


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


def _model(name: str, *, created: int = 0, owner: str = _OWNER) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _model_list_of(request: Request) -> ModelList:
    return cast("ModelList", request.app.state.model_list)
