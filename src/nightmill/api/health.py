"""Is it alive, is it ready, which version is it. Open to all, and outside the OpenAPI document.

`/health` never touches the store: a slow disk is no reason to restart a live process. `/ready` names what
keeps lines from being answered, but stays ready: batches are taken and wait.
"""

import asyncio
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter

from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.errors import UnavailableError

_PING_TIMEOUT_S = 2.0

router = APIRouter(include_in_schema=False)


def installed_version() -> str:
    try:
        return version("nightmill")
    except PackageNotFoundError:
        return "0"


VERSION = installed_version()


@router.get("/health")
async def health() -> JsonResponse:
    return JsonResponse({"status": "ok"})


@router.get("/ready")
async def ready(context: Context) -> JsonResponse:
    try:
        async with asyncio.timeout(_PING_TIMEOUT_S):
            await context.store.ping()
    except TimeoutError:
        message = f"The store did not answer within {_PING_TIMEOUT_S:g} seconds."
        raise UnavailableError(message, retry_after_s=1) from None
    trouble = context.trouble()
    return JsonResponse({"status": "ready"} | ({"trouble": trouble} if trouble else {}))


@router.get("/version")
async def show_version() -> JsonResponse:
    return JsonResponse({"name": "nightmill", "version": VERSION})
