"""Liveness, readiness and version, which need no key, and the level of the log, which needs an admin key.

`/health` never uses the store: a slow disk is no reason to restart a live process. `/ready` reports in words
why lines are not answered at the moment, but stays ready: batches are accepted and wait.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request

from nightmill.api.auth import require_admin
from nightmill.api.body import read_json
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.readiness import problems_of
from nightmill.api.wire import OwnModel
from nightmill.errors import UnavailableError
from nightmill.telemetry import UpstreamHeld

_PING_TIMEOUT_S = 2.0

router = APIRouter(include_in_schema=False)
admin_router = APIRouter(
    prefix="/nightmill/v1", include_in_schema=False, dependencies=[Depends(require_admin)]
)


class _LogLevelRequest(OwnModel):
    level: Literal["debug", "info", "warning", "error"]


def installed_version() -> str:
    try:
        return version("nightmill")
    except PackageNotFoundError:
        return "0"


VERSION = installed_version()


@asynccontextmanager
async def store_timeout(seconds: float) -> AsyncGenerator[None]:
    """Raises UnavailableError when a store call takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        message = f"The store did not answer within {seconds:g} seconds."
        raise UnavailableError(message, retry_after_s=1) from None


@router.get("/health")
async def health() -> JsonResponse:
    """Whether the process is alive. Never uses the store or an upstream."""
    return JsonResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request, context: Context) -> JsonResponse:
    """Whether batches are accepted: 200, or 503 and the reason.

    `problems` says in sentences what keeps lines from being answered: an upstream that is away or held, a
    disk that is nearly full, no worker. Such a server is ready: batches are accepted and wait. `trouble` and
    `held` are the part that processes of this machine report.
    """
    running_s = time.monotonic() - request.app.state.started_at
    async with store_timeout(_PING_TIMEOUT_S):
        await context.store.ping()
        problems = await problems_of(context, running_s=running_s)
    answer: dict[str, Any] = {"status": "ready"}
    if problems:
        answer["problems"] = problems
    if trouble := context.trouble():
        answer["trouble"] = trouble
    if held := context.held():
        answer["held"] = [_held(event) for event in held]
    return JsonResponse(answer)


def _held(event: UpstreamHeld) -> dict[str, Any]:
    """`since` and `until`, the next attempt, are Unix seconds."""
    return {
        "upstream": event.upstream,
        "model": event.model,
        "reason": event.reason,
        "since": int(event.since),
        "until": int(event.until),
        "needs_operator": event.needs_operator,
    }


@router.get("/version")
async def show_version() -> JsonResponse:
    """The version of the server."""
    return JsonResponse({"name": "nightmill", "version": VERSION})


@admin_router.get("/log_level")
async def retrieve_log_level(context: Context) -> JsonResponse:
    """The lowest level that is logged."""
    return JsonResponse({"level": context.log_level()})


@admin_router.post("/log_level")
async def set_log_level(request: Request, context: Context) -> JsonResponse:
    """Logs lines of this level and above in all processes of this machine, until the server restarts."""
    fields = await read_json(request, _LogLevelRequest, settings=context.settings.api)
    context.set_log_level(fields.level)
    return JsonResponse({"level": context.log_level()})
