"""Sign in with a key, sign out, the theme, and the project that an admin looks at."""

from typing import Final
from urllib.parse import unquote, urlsplit

from starlette.responses import Response

from nightmill.dashboard.action_notice import forget_action
from nightmill.dashboard.guard import is_foreign
from nightmill.dashboard.navigation import Area
from nightmill.dashboard.pages import THEME_COOKIE, Screen, cookie_text, error_page, respond
from nightmill.dashboard.sessions import COOKIE, PROJECT_COOKIE, is_secure
from nightmill.dashboard.visit import Visit, action, screen

_YEAR_S: Final = 31_536_000
_AREA: Final = Area("Sign in", "ui/sign-in")
_MOST_BYTES: Final = 16_384
"""Of the forms that everyone may send."""
_FOREIGN: Final = "This form was sent from a page of another server."
_WRONG: Final = "This key is not valid here. Make one on the server with: nightmill keys create NAME"


async def show(visit: Visit) -> Screen:
    return _screen(visit.query("next"), None)


def _screen(following: str | None, wrong: str | None) -> Screen:
    return Screen(
        template="sign_in.html",
        title="Sign in",
        document={"next": following or "", "wrong": wrong},
        status=200 if wrong is None else 401,
    )


async def sign_in(visit: Visit) -> Response:
    if is_foreign(visit.request.headers):
        return error_page(visit.request, _FOREIGN, status=403)
    form = await visit.form(most_bytes=_MOST_BYTES)
    cookie = await visit.dashboard.sessions.sign_in(form.get("key"))
    if cookie is None:
        return respond(visit.request, _screen(form.get("next"), _WRONG), area="", shows_content=False)
    response = visit.redirect(own_page(form.get("next")))
    visit.dashboard.sessions.set_cookie(visit.request, response, cookie)
    response.delete_cookie(PROJECT_COOKIE)  # of an earlier person at this browser
    forget_action(response)
    return response


async def sign_out(visit: Visit) -> Response:
    response = visit.redirect("ui/sign-in")
    response.delete_cookie(COOKIE)
    response.delete_cookie(PROJECT_COOKIE)
    forget_action(response)
    return response


async def choose_theme(visit: Visit) -> Response:
    """Needs no session, so that the page for signing in has a theme too."""
    if is_foreign(visit.request.headers):
        return error_page(visit.request, _FOREIGN, status=403)
    form = await visit.form(most_bytes=_MOST_BYTES)
    response = visit.redirect(own_page(form.get("next")))
    response.set_cookie(THEME_COOKIE, form.get("theme")[:10], max_age=_YEAR_S, samesite="lax")
    return response


async def choose_project(visit: Visit) -> Response:
    """An admin goes on as if the key were one of another project; an empty name means the key's own."""
    visit.require_admin()
    form = await visit.form()
    response = visit.redirect(own_page(form.get("next")))
    if form.get("project"):
        response.set_cookie(
            PROJECT_COOKIE,
            cookie_text(form.get("project")),
            httponly=True,
            samesite="lax",
            secure=is_secure(visit.request),
        )
    else:
        response.delete_cookie(PROJECT_COOKIE)
    return response


def own_page(path: str) -> str:
    """A path below the root of the dashboard, or its first page for anything else: the value comes from a
    client, who must not be sent to another server."""
    parts = urlsplit(path)
    is_own = not parts.scheme and not parts.netloc and (path == "./" or path.startswith(("ui/", "./?", "?")))
    leads_up = ".." in unquote(path).replace("\\", "/").split("?")[0].split("/")
    return path if is_own and not leads_up else "./"


routes = (
    screen("/ui/sign-in", show, area=_AREA),
    action("/ui/sign-in", sign_in),
    action("/ui/sign-out", sign_out),
    action("/ui/theme", choose_theme),
    action("/ui/project", choose_project),
)
