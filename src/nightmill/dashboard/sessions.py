"""Who is asking: a signed cookie after a person signed in with a key, or what the API accepts itself.

The cookie holds the key, masked, and a random text for the CSRF token. Mask and signature come from a secret
that all servers of one store share, so a cookie alone does not give the key away; and a copy of the store,
which has that secret and the hashes of the keys, opens no session. A key that is revoked ends its sessions
within two seconds. While a server on loopback needs no key, its dashboard needs none either, by the same
rules of host and origin.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256, shake_256
from typing import Any, Final, cast
from urllib.parse import unquote_plus

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request, cookie_parser
from starlette.responses import Response
from starlette.types import Scope

from nightmill.api.auth import Caller, KeyCache
from nightmill.api.context import ApiContext
from nightmill.core.api_key import Scope as KeyScope
from nightmill.core.api_key import digest_of
from nightmill.ids import ProjectId

COOKIE: Final = "nightmill_session"
SESSION_IN_SCOPE: Final = "nightmill.session"
PROJECT_COOKIE: Final = "nightmill_project"
_SECRET_NAME: Final = "dashboard"  # noqa: S105 - the name of the secret, not its value
_SECRET_BYTES: Final = 32
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Session:
    """One person at one browser.

    Args:
        caller: what the API is called as.
        csrf_token: what requests that change something must carry.
        is_ambient: whether a browser sends the proof by itself, with a cookie or from this machine.
        is_signed_in: whether there is a cookie to sign out of.
    """

    caller: Caller
    csrf_token: str
    is_ambient: bool
    is_signed_in: bool

    @property
    def is_admin(self) -> bool:
        return self.caller.scope is KeyScope.ADMIN

    @property
    def can_write(self) -> bool:
        """Whether the person may change anything; pages leave out the buttons of those who may not."""
        return self.caller.can_write


class Sessions:
    """Makes and reads the sessions of a server."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._keys = KeyCache(context)
        self._secret: str | None = None

    async def of(self, scope: Scope) -> Session:
        """The session of a request.

        Raises:
            AuthenticationError: the person must sign in, or ask from elsewhere.
        """
        secret = await self._shared_secret()
        session = await self._of_cookie(scope, secret)
        if session is None:
            headers = cast("Mapping[bytes, bytes]", dict(scope["headers"]))
            caller = await self._keys.caller(headers)
            session = Session(caller, _token(secret, caller.name), not caller.name, is_signed_in=False)
        return _of_project(session, scope)

    async def sign_in(self, key: str) -> str | None:
        """The value of the cookie for a person who has this key; None for a wrong key."""
        key = key.strip()
        if await self._keys.caller_of_digest(digest_of(key)) is None:
            return None
        secret, nonce = await self._shared_secret(), self._context.random(_NONCE_BYTES).hex()
        masked = _masked(key.encode(), secret=secret, nonce=nonce)
        return str(_signer(secret).dumps([masked.hex(), nonce]))

    def set_cookie(self, request: Request, response: Response, value: str) -> None:
        response.set_cookie(
            COOKIE,
            value,
            max_age=self._context.settings.dashboard.session_s,
            httponly=True,
            samesite="lax",
            secure=is_secure(request),
        )

    async def _of_cookie(self, scope: Scope, secret: str) -> Session | None:
        value = cookies_of(scope).get(COOKIE)
        if value is None:
            return None
        try:
            content: Any = _signer(secret).loads(value, max_age=self._context.settings.dashboard.session_s)
            masked, nonce = content
            key = _masked(bytes.fromhex(masked), secret=secret, nonce=nonce).decode()
        except (BadSignature, ValueError, TypeError):
            return None
        caller = await self._keys.caller_of_digest(digest_of(key))
        return None if caller is None else Session(caller, _token(secret, nonce), True, is_signed_in=True)

    async def _shared_secret(self) -> str:
        if self._secret is None:
            new = self._context.random(_SECRET_BYTES).hex()
            self._secret = await self._context.store.secrets.get_or_add(_SECRET_NAME, new)
        return self._secret


def session_of(request: Request) -> Session:
    """The session that the guard has found for this request."""
    return cast("Session", request.scope[SESSION_IN_SCOPE])


def is_secure(request: Request) -> bool:
    """Whether the browser speaks TLS, to this server or to a proxy before it."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))


def cookies_of(scope: Scope) -> dict[str, str]:
    """The cookies of a request. A broken one, of another program under the same name, spoils no other."""
    text = b"; ".join(value for name, value in scope["headers"] if name == b"cookie").decode("latin-1")
    return cookie_parser(text)


def _of_project(session: Session, scope: Scope) -> Session:
    """An admin may look at another project, which a cookie names. Other keys see their own alone."""
    project = cookies_of(scope).get(PROJECT_COOKIE)
    if not project or not session.is_admin:
        return session
    return replace(session, caller=replace(session.caller, project_id=ProjectId(unquote_plus(project))))


def _token(secret: str, nonce: str) -> str:
    return hmac.new(secret.encode(), f"csrf {nonce}".encode(), sha256).hexdigest()


def _masked(content: bytes, *, secret: str, nonce: str) -> bytes:
    """The content under a stream of bytes that only the secret and the nonce give; the same again unmasks."""
    stream = shake_256(f"{secret} key {nonce}".encode()).digest(len(content))
    return bytes(one ^ other for one, other in zip(content, stream, strict=True))


def _signer(secret: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(secret, salt="nightmill.session")
