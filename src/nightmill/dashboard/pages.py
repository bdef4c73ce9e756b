"""Pages: templates with their filters, static files, the JSON twin, redirects and error pages.

A screen returns a `Screen`; `respond` makes it a page, or the document alone for a client that asks for JSON.
Every text in a template is escaped. A template gets the fields of the document, and `page`, a `PageContext`.
The address of a static file holds the digest of all of them, so a browser may keep it for good: another
version of nightmill has other addresses.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote_plus, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2_fragments import render_block
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

import nightmill
from nightmill.api.envelope import JsonResponse, error_response
from nightmill.dashboard.action_notice import LastAction, last_action_of
from nightmill.dashboard.formats import FILTERS
from nightmill.dashboard.navigation import AREAS, Area
from nightmill.dashboard.sessions import SESSION_IN_SCOPE, Session

LIVE_PARAMETER: Final = "_live"
FORMAT_PARAMETER: Final = "format"
THEME_COOKIE: Final = "nightmill_theme"
NOTICE_COOKIE: Final = "nightmill_notice"
_NOTICE_LENGTH: Final = 320  # a browser drops a cookie above 4,096 bytes, and a letter may take 9
_THEMES: Final = ("light", "dark")

STATIC_FOLDER: Final = Path(__file__).with_name("static")
STATIC_PATH: Final = "/ui/static/"


@cache
def _digest_of_static_files() -> str:
    found = hashlib.sha256()
    for file in sorted(path for path in STATIC_FOLDER.rglob("*") if path.is_file()):
        found.update(file.relative_to(STATIC_FOLDER).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


_templates = Environment(
    loader=PackageLoader("nightmill.dashboard", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(FILTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """What a screen shows.

    Args:
        template: the file in `templates/`.
        title: of the page.
        document: plain values that JSON can hold: the fields of the template and the JSON twin.
        live: the blocks of the template that are rendered again while the page is open. The block `rows` is
            inside the element with the id `live-rows`.
        every_s: seconds between two looks.
        status: the HTTP status.
    """

    template: str
    title: str
    document: Mapping[str, Any] = field(default_factory=dict[str, Any])
    live: tuple[str, ...] = ()
    every_s: float = 2.0
    status: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContext:
    """What every template may need.

    Args:
        root: the way from the page to the root of the dashboard, such as `../../`; the page's `<base>`.
        here: the path of the page below the root, with its query.
        area: the name of the screen in the navigation.
        live_url: the address of the live updates; None for a page without.
        notice: what the last action did, to be shown once.
        shows_content: whether prompts and answers may be shown.
        last_action: the action on batches that this person ordered last.
        digest: goes into the address of each static file.
    """

    title: str
    root: str
    here: str
    area: str
    theme: str
    live_url: str | None
    notice: str | None
    session: Session | None
    areas: tuple[Area, ...]
    shows_content: bool
    last_action: LastAction | None = None
    version: str = nightmill.__version__
    digest: str = field(default_factory=_digest_of_static_files)

    @property
    def csrf_token(self) -> str:
        return "" if self.session is None else self.session.csrf_token

    @property
    def json_url(self) -> str:
        return with_query(self.here, {FORMAT_PARAMETER: "json"})


def caching(scope: Scope, status: int) -> bytes:
    """The `Cache-Control` of the response to a request: how long a browser may keep it."""
    if not scope["path"].startswith(STATIC_PATH):
        return b"no-store"
    is_named = scope["query_string"] == _digest_of_static_files().encode() and status in (200, 304)
    return b"public, max-age=31536000, immutable" if is_named else b"no-cache"


def wants_json(request: Request) -> bool:
    """Whether the client asks for the document: with `?format=json`, or with an Accept header for JSON."""
    accepted = request.headers.get("accept", "")
    return request.query_params.get(FORMAT_PARAMETER) == "json" or (
        "application/json" in accepted and "text/html" not in accepted
    )


def respond(request: Request, screen: Screen, *, area: str, shows_content: bool) -> Response:
    """The page of a screen, or its JSON twin."""
    if wants_json(request):
        return JsonResponse(screen.document, status_code=screen.status)
    context = page_context(request, screen, area=area, shows_content=shows_content)
    html = _templates.get_template(screen.template).render(**screen.document, page=context)
    response = HTMLResponse(html, status_code=screen.status)
    if context.notice is not None:
        response.delete_cookie(NOTICE_COOKIE)
    return response


def live_blocks(request: Request, screen: Screen, *, area: str, shows_content: bool) -> Mapping[str, str]:
    """The HTML of each live block."""
    context = page_context(request, screen, area=area, shows_content=shows_content)
    return {
        name: render_block(_templates, screen.template, name, **screen.document, page=context)
        for name in screen.live
    }


def fragment(
    request: Request, template: str, block: str, document: Mapping[str, Any], *, shows_content: bool
) -> HTMLResponse:
    """One block of a template, as the answer to a request of a script."""
    screen = Screen(template=template, title="")
    context = page_context(request, screen, area="", shows_content=shows_content)
    return HTMLResponse(render_block(_templates, template, block, **document, page=context))


def page_context(request: Request, screen: Screen, *, area: str, shows_content: bool) -> PageContext:
    here = here_of(request)
    session: Session | None = request.scope.get(SESSION_IN_SCOPE)
    theme = request.cookies.get(THEME_COOKIE, "")
    return PageContext(
        title=screen.title,
        root=root_of(request),
        here=here,
        area=area,
        theme=theme if theme in _THEMES else "auto",
        live_url=with_query(here, {LIVE_PARAMETER: "1"}) if screen.live else None,
        notice=_notice_of(request),
        session=session,
        areas=tuple(it for it in AREAS if session is not None and (session.is_admin or not it.needs_admin)),
        shows_content=shows_content,
        last_action=None if session is None else last_action_of(request),
    )


def error_page(request: Request, message: str, *, status: int) -> Response:
    """A page that says what went wrong, or the error envelope for a client that asks for JSON."""
    if wants_json(request) or "text/html" not in request.headers.get("accept", "text/html"):
        return error_response(message, status=status)
    screen = Screen(template="error.html", title="Not possible", document={"message": message})
    context = page_context(request, screen, area="", shows_content=False)
    html = _templates.get_template(screen.template).render(**screen.document, page=context, status=status)
    return HTMLResponse(html, status_code=status)


def redirect(
    request: Request, target: str, query: Mapping[str, str] | None = None, *, notice: str | None = None
) -> Response:
    """To another page.

    Args:
        target: the path below the root, such as `ui/batches/batch_1`; never a value that a client chose.
        notice: shown once on that page.
    """
    response = RedirectResponse(with_query(root_of(request) + target, query or {}), status_code=303)
    if notice is not None:
        response.set_cookie(
            NOTICE_COOKIE, cookie_text(notice[:_NOTICE_LENGTH]), max_age=60, httponly=True, samesite="lax"
        )
    return response


def root_of(request: Request) -> str:
    """The way from the path of the request to the root: a proxy may have put the root anywhere."""
    return "../" * (path_as_sent(request).count("/") - 1) or "./"


def path_as_sent(request: Request) -> str:
    """The path with its escapes, as the browser resolves addresses against it: `%2F` is no slash there."""
    raw_path: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    return raw_path.partition(b"?")[0].decode("ascii", "replace")


def here_of(request: Request) -> str:
    """The path and query of the page below the root, without the parameters that choose a format."""
    path = path_as_sent(request).lstrip("/") or "./"
    query = [
        pair
        for pair in request.query_params.multi_items()
        if pair[0] not in (LIVE_PARAMETER, FORMAT_PARAMETER)
    ]
    return f"{path}?{urlencode(query)}" if query else path


def with_query(url: str, query: Mapping[str, str]) -> str:
    if not query:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


def cookie_text(text: str) -> str:
    """A cookie holds letters of ASCII only."""
    return urlencode({"": text})[1:]


def _notice_of(request: Request) -> str | None:
    value = request.cookies.get(NOTICE_COOKIE)
    return None if value is None else unquote_plus(value)[:_NOTICE_LENGTH]
