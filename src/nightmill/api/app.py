"""The FastAPI application: routers, middleware and exception handlers."""

import asyncio
import time
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Match

from nightmill.api import (
    batch_digests,
    batch_insight,
    batches,
    bulk_actions,
    canary,
    custom_id_search,
    docs_page,
    estimates,
    files,
    health,
    keys,
    latest_answers,
    line_content,
    line_states,
    metrics,
    models,
    own_batch,
    own_files,
    receipts,
    results,
    retries,
    steering,
    system,
    tenants,
    trials,
    uploads,
    upstream_samples,
    upstreams,
    validation,
    webhooks,
    workers,
)
from nightmill.api.batches import windows_s
from nightmill.api.context import ApiContext
from nightmill.api.envelope import error_response, from_request_error, from_unavailable_error
from nightmill.api.line_map import LineMaps
from nightmill.api.middleware import METHOD_AS_SENT, PATH_AS_SENT, AuthenticationMiddleware, RequestMiddleware
from nightmill.api.openapi import describer
from nightmill.api.own_document import own_describer
from nightmill.api.result_stream import Followers
from nightmill.api.violations import to_request_error
from nightmill.errors import RequestError, UnavailableError
from nightmill.webhooks.sender import WebhookSender

_DESCRIPTION = "OpenAI's Batch API on your own models. Any OpenAI client works against it unchanged."
_OWN_ROUTERS = (
    retries.router,  # before the routes of a batch by its id
    bulk_actions.router,
    custom_id_search.router,  # as above
    own_batch.router,
    steering.router,
    batch_insight.router,
    batch_digests.router,
    latest_answers.router,
    results.router,
    receipts.router,
    line_states.router,
    line_content.router,
    own_files.router,
    canary.router,
    estimates.router,
    trials.router,
    validation.router,
    webhooks.own_router,
    tenants.router,
    keys.router,
    system.router,
    upstreams.router,
    upstream_samples.router,
    workers.router,
    health.router,
    health.admin_router,
    metrics.router,
)
"""The routes that OpenAI does not publish."""
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_RESOURCES = ("/batches", "/files", "/uploads", "/models")


def create_app(context: ApiContext) -> FastAPI:
    """Raises SetupError when a setting that the routes need is invalid."""
    windows_s(context.settings.limits)
    app = FastAPI(
        title="nightmill",
        version=health.VERSION,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestMiddleware, context=context),
            Middleware(AuthenticationMiddleware, context=context),
        ],
        exception_handlers={
            RequestError: _on_request_error,
            UnavailableError: _on_unavailable_error,
            RequestValidationError: _on_validation_error,
            HTTPException: _on_http_exception,
        },
    )
    app.state.context = context
    app.state.started_at = time.monotonic()
    app.state.model_list = models.ModelList(context)
    app.state.estimate_turns = asyncio.Semaphore(estimates.AT_ONCE)
    app.state.search_turns = asyncio.Semaphore(custom_id_search.AT_ONCE)
    app.state.digests = batch_digests.Digests()
    app.state.tails = latest_answers.Tails()
    app.state.trial_turns = asyncio.Semaphore(trials.AT_ONCE)
    app.state.line_maps = LineMaps(context.blobs)
    app.state.followers = Followers(context.settings.api.max_followers)
    app.state.metrics = metrics.Metrics(context)
    app.state.webhook_sender = WebhookSender(
        context.settings.webhooks, resolve=context.resolve, monotonic=time.monotonic
    )
    for router in (batches.router, files.router, uploads.router, models.router, webhooks.router):
        app.include_router(router, prefix="/v1")
    for router in _OWN_ROUTERS:
        app.include_router(router)
    app.include_router(docs_page.router)
    app.state.own_document = own_describer(app, _OWN_ROUTERS)
    app.openapi = describer(app, context.settings.limits)
    return app


async def _on_request_error(request: Request, error: Exception) -> Response:
    return from_request_error(cast("RequestError", error), path=request.scope["path"])


async def _on_unavailable_error(_: Request, error: Exception) -> Response:
    return from_unavailable_error(cast("UnavailableError", error))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    wrong = to_request_error(cast("RequestValidationError", error).errors())
    return from_request_error(wrong, path=request.scope["path"])


async def _on_http_exception(request: Request, error: Exception) -> Response:
    error = cast("HTTPException", error)
    method, path = request.scope[METHOD_AS_SENT], request.scope[PATH_AS_SENT]
    match error.status_code:
        case 404:
            message = f"Invalid URL ({method} {path})"
            if path.startswith(_RESOURCES):
                message += ". The API is under /v1: the base URL of a client must end in /v1."
            return error_response(message, status=404)
        case 405:
            allowed = _allowed_methods(request)
            message = f"Only {' and '.join(allowed)} requests are accepted."
            headers = {"allow": ", ".join(allowed)}
            return error_response(message, status=405, code="method_not_supported", headers=headers)
        case status:
            kind = "server_error" if status >= 500 else "invalid_request_error"
            return error_response(str(error.detail), status=status, error_type=kind, headers=error.headers)


def _allowed_methods(request: Request) -> list[str]:
    """Every method that the path accepts; Starlette itself lists the methods of the first route only."""
    app = cast("FastAPI", request.app)

    def is_accepted(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in app.routes)

    return [method for method in _METHODS if is_accepted(method)]
