"""The last action of a person, which a cookie keeps from page to page: its id, and where it was.

A page shows it at once, without a call of the API; a script then asks for its state.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote_plus, unquote_plus

from starlette.requests import Request
from starlette.responses import Response

_COOKIE: Final = "nightmill_action"
_KEPT_S: Final = 600
_SHAPE: Final = re.compile(r"(action_[0-9a-f]{32})\.(.{1,300})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LastAction:
    """What a page shows of the last action.

    Args:
        text: where the action was when the cookie was set.
    """

    id: str
    text: str


def remember_action(response: Response, action_id: str, text: str) -> None:
    """Shows the action on this person's pages for the next ten minutes."""
    value = quote_plus(f"{action_id}.{text}"[:1_000])
    response.set_cookie(_COOKIE, value, max_age=_KEPT_S, httponly=True, samesite="lax")


def forget_action(response: Response) -> None:
    response.delete_cookie(_COOKIE)


def last_action_of(request: Request) -> LastAction | None:
    """None without a cookie, or for one that is not of this server."""
    found = _SHAPE.fullmatch(unquote_plus(request.cookies.get(_COOKIE, "")))
    return None if found is None else LastAction(found[1], found[2])
