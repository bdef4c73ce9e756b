"""What a screen works with: the request, the API as the person sees it, and the settings of the dashboard."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, cast
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from nightmill.api.context import ApiContext
from nightmill.dashboard.calls import ApiCalls
from nightmill.dashboard.guard import MOST_FORM_BYTES
from nightmill.dashboard.live import OpenStreams, live_response
from nightmill.dashboard.navigation import Area
from nightmill.dashboard.pages import LIVE_PARAMETER, Screen, fragment, live_blocks, redirect, respond
from nightmill.dashboard.sessions import Session, Sessions, session_of
from nightmill.errors import ForbiddenError, TooLargeError
from nightmill.ids import ProjectId


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What all screens share."""

    api: ASGIApp
    context: ApiContext
    sessions: Sessions
    streams: OpenStreams


class Form:
    """The fields of a form."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields

    def get(self, name: str) -> str:
        """The first value, without spaces around it; empty if the field is missing."""
        return next((value.strip() for given, value in self._fields if given == name), "")

    def all(self, name: str) -> list[str]:
        """Every value of a field that may be repeated."""
        return [value for given, value in self._fields if given == name]


class Visit:
    """One request of a person to the dashboard."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.dashboard = cast("Dashboard", request.app.state.dashboard)

    @property
    def session(self) -> Session:
        return session_of(self.request)

    @property
    def context(self) -> ApiContext:
        """For what no route of the API needs to say: clocks and settings. Data comes from `api`."""
        return self.dashboard.context

    @property
    def api(self) -> ApiCalls:
        """The API as this person sees it."""
        return ApiCalls(self.dashboard.api, request=self.request, caller=self.session.caller)

    def api_of(self, project_id: str) -> ApiCalls:
        """The API as an admin sees another project. For other people it stays their own project."""
        caller = self.session.caller
        if self.session.is_admin:
            caller = replace(caller, project_id=ProjectId(project_id))
        return ApiCalls(self.dashboard.api, request=self.request, caller=caller)

    @property
    def shows_content(self) -> bool:
        return self.context.settings.dashboard.content

    @property
    def now(self) -> float:
        return self.context.clock()

    def query(self, name: str) -> str | None:
        """A parameter of the address; None if it is missing or empty."""
        return self.request.query_params.get(name) or None

    def queries(self, name: str) -> list[str]:
        return [value for value in self.request.query_params.getlist(name) if value]

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    async def form(self, *, most_bytes: int = MOST_FORM_BYTES) -> "Form":
        """The fields of an ordinary form; the guard has checked its token.

        Raises:
            TooLargeError: it has more than `most_bytes`.
        """
        body = b""
        async for chunk in self.request.stream():
            body += chunk
            if len(body) > most_bytes:
                raise TooLargeError(f"This form may have at most {most_bytes:,} bytes.")
        return Form(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))

    def require_admin(self) -> None:
        """Raises ForbiddenError for a person without an admin key."""
        if not self.session.is_admin:
            raise ForbiddenError("This page needs an admin key. Sign in with one to see it.")

    def redirect(
        self, target: str, query: dict[str, str] | None = None, *, notice: str | None = None
    ) -> Response:
        return redirect(self.request, target, query, notice=notice)

    def fragment(self, template: str, block: str, document: dict[str, Any]) -> Response:
        return fragment(self.request, template, block, document, shows_content=self.shows_content)


ScreenFunction: TypeAlias = Callable[[Visit], Awaitable[Screen]]
ActionFunction: TypeAlias = Callable[[Visit], Awaitable[Response]]


def screen(path: str, show: ScreenFunction, *, area: Area) -> Route:
    """The route of a screen: page, JSON twin and live updates under one address."""

    async def endpoint(request: Request) -> Response:
        visit = Visit(request)
        if area.needs_admin:
            visit.require_admin()
        if request.query_params.get(LIVE_PARAMETER):
            return live_response(
                partial(_blocks, visit, show, area),
                is_stopping=visit.context.is_stopping,
                streams=visit.dashboard.streams,
            )
        shown = await show(visit)
        return respond(request, shown, area=area.name, shows_content=visit.shows_content)

    return Route(path, endpoint, methods=["GET"])


async def _blocks(visit: Visit, show: ScreenFunction, area: Area) -> tuple[dict[str, str], float]:
    # A key that was revoked, or a session that has ended, sees no further update.
    await visit.dashboard.sessions.of(visit.request.scope)
    shown = await show(visit)
    blocks = live_blocks(visit.request, shown, area=area.name, shows_content=visit.shows_content)
    return dict(blocks), shown.every_s


def action(
    path: str, act: ActionFunction, *, methods: tuple[str, ...] = ("POST",), area: Area | None = None
) -> Route:
    """The route of something a person does, or of a response that is no page."""

    async def endpoint(request: Request) -> Response:
        visit = Visit(request)
        if area is not None and area.needs_admin:
            visit.require_admin()
        return await act(visit)

    return Route(path, endpoint, methods=list(methods))
