"""The application of the dashboard, and the one that serves it beside the API.

A screen is registered with its path and area; `visit.screen` turns it into a page, a JSON twin and a stream
of live updates. Everything that is not a page of the dashboard goes to the API.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from nightmill.api.auth import RateLimit
from nightmill.api.context import ApiContext
from nightmill.dashboard.calls import ApiRefusalError
from nightmill.dashboard.guard import GuardMiddleware
from nightmill.dashboard.live import OpenStreams
from nightmill.dashboard.pages import STATIC_FOLDER, error_page
from nightmill.dashboard.screens import SCREENS
from nightmill.dashboard.sessions import Sessions
from nightmill.dashboard.visit import Dashboard
from nightmill.errors import RequestError, UnavailableError


def with_dashboard(api: ASGIApp, context: ApiContext) -> ASGIApp:
    """The API with the dashboard at `/` and below `/ui`; the API alone if the settings turn it off."""
    if not context.settings.dashboard.enabled:
        return api
    pages = create_dashboard(api, context)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and (scope["path"] == "/" or scope["path"].startswith("/ui/"))
        await (pages if is_page else api)(scope, receive, send)

    return app


def create_dashboard(api: ASGIApp, context: ApiContext) -> Starlette:
    """The pages alone.

    Args:
        api: where they get their data from.
    """
    sessions = Sessions(context)
    rates = RateLimit(context.settings.api.requests_per_minute, clock=context.clock)
    routes: list[BaseRoute] = [Mount("/ui/static", StaticFiles(directory=STATIC_FOLDER), name="static")]
    for screens in SCREENS:
        routes += screens.routes
    app = Starlette(
        routes=routes,
        middleware=[Middleware(GuardMiddleware, sessions=sessions, rates=rates)],
        exception_handlers={
            ApiRefusalError: _on_refusal,
            RequestError: _on_request_error,
            UnavailableError: _on_unavailable,
            HTTPException: _on_http_exception,
        },
    )
    app.router.redirect_slashes = False
    app.state.dashboard = Dashboard(api, context, sessions, OpenStreams(context.settings.api.max_followers))
    return app


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiRefusalError)
    return error_page(request, error.message, status=error.status)


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_page(request, error.message, status=error.status)


async def _on_unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, UnavailableError)
    return error_page(request, error.message, status=503)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "There is no such page.", 405: "This page does not take such a request."}
    return error_page(request, messages.get(error.status_code, error.detail), status=error.status_code)
