"""GET /v1/models: what the upstream offers, in OpenAI's shape.

Duty: the upstream's own list, or the one settings name. Promise: the upstream is asked at most once every
few seconds, however many clients ask. An upstream that gives no list is a 503: an empty list would say
something untrue.
"""

import asyncio
from typing import Any, cast

import msgspec
from fastapi import APIRouter, Request

from nightmill.api import wire
from nightmill.api.context import ApiContext
from nightmill.api.envelope import JsonResponse, echo
from nightmill.errors import NotFoundError, UnavailableError

_REMEMBERED_S = 5.0
_FAILURE_REMEMBERED_S = 1.0
_ASK_TIMEOUT_S = 10.0
_OWNER = "upstream"

Listing = list[dict[str, Any]]

router = APIRouter(tags=["Models"])


class ModelList:
    """The last list of models and when it was had."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._asking = asyncio.Lock()
        self._models: Listing | None = None
        self._asked_at: float | None = None

    async def models(self) -> Listing:
        """Raises UnavailableError when the upstream gives no list."""
        offered = self._context.settings.upstream.models
        if offered:
            return [_model(name) for name in offered]
        if not self._is_fresh():
            async with self._asking:
                if not self._is_fresh():
                    self._models = await self._ask()
                    self._asked_at = self._context.clock()
        if self._models is None:
            message = "The upstream did not give its list of models. Please try again once it answers."
            raise UnavailableError(message, retry_after_s=2)
        return self._models

    def _is_fresh(self) -> bool:
        if self._asked_at is None:
            return False
        kept_s = _FAILURE_REMEMBERED_S if self._models is None else _REMEMBERED_S
        return 0 <= self._context.clock() - self._asked_at < kept_s

    async def _ask(self) -> Listing | None:
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
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
    return JsonResponse({"object": "list", "data": await _catalogue(request).models()})


@router.get(
    "/models/{model:path}",
    operation_id="retrieveModel",
    response_model=wire.Model,
    summary="Retrieve a model.",
)
async def retrieve_model(model: str, request: Request) -> JsonResponse:
    for one in await _catalogue(request).models():
        if one["id"] == model:
            return JsonResponse(one)
    message = f"The model '{echo(model)}' does not exist"
    raise NotFoundError(message, param="model", code="model_not_found")


def parse_models(answer: bytes) -> Listing | None:
    """What of an upstream's answer has an id. Servers add fields of their own to a model; those stay out.

    Returns None when it is no list of models.
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


def _catalogue(request: Request) -> ModelList:
    return cast("ModelList", request.app.state.model_list)
