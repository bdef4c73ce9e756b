"""Authentication: finds the caller from the headers of a request, and limits the request rate of each caller.

Keys are looked up by their SHA-256, so the timing of a comparison reveals nothing about a key. Messages and
logs never contain a key. Requests without a key are accepted only from this machine, not through a proxy,
and only while no key exists. `nightmill keys` makes keys.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hmac import compare_digest
from typing import Annotated, cast

from fastapi import Depends, Request

from nightmill.api.context import ApiContext
from nightmill.core.api_key import ApiKey, Scope, digest_of
from nightmill.core.audit import KEYLESS, Actor
from nightmill.core.loopback import is_loopback
from nightmill.errors import AuthenticationError, ForbiddenError, RequestError, TooManyError
from nightmill.ids import ProjectId

DEFAULT_PROJECT = ProjectId("default")
CALLER_IN_SCOPE = "nightmill.caller"
REQUEST_ID_IN_SCOPE = "nightmill.request_id"

PROJECT_HEADER = b"x-nightmill-project"
"""With it, an admin key acts for the project that it names."""

_CACHE_S = 2.0
_CACHED_KEYS = 1_024
_PROXY_HEADERS = ("X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Forwarded")
"""A proxy adds one of these for its clients. A program of this machine has no reason to send one."""
READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_READING_POSTS = frozenset({"/nightmill/v1/estimates"})
"""Paths of which a POST changes nothing."""
_CHALLENGE = {"www-authenticate": 'Bearer realm="nightmill"'}


@dataclass(frozen=True, slots=True)
class Caller:
    """The source of a request.

    Args:
        name: the id of the key; empty without a key.
        hint: the last letters of the key.
    """

    project_id: ProjectId
    name: str
    hint: str | None = None
    scope: Scope = Scope.PROJECT

    @property
    def can_write(self) -> bool:
        """Whether the caller may change anything."""
        return self.scope is not Scope.READ


async def caller_of(request: Request) -> Caller:
    """The caller that `AuthenticationMiddleware` found for this request."""
    return cast("Caller", request.scope[CALLER_IN_SCOPE])


async def project_of(request: Request) -> ProjectId:
    return (await caller_of(request)).project_id


async def actor_of(request: Request) -> Actor:
    caller = await caller_of(request)
    return Actor(
        caller.name or KEYLESS,
        caller.hint,
        request.client.host if request.client else None,
        request.scope.get(REQUEST_ID_IN_SCOPE),
    )


CurrentProject = Annotated[ProjectId, Depends(project_of)]
"""The type of a route's parameter `project`: the project of the caller."""
CurrentActor = Annotated[Actor, Depends(actor_of)]
"""The type of the parameter `by` of routes that write to the audit log. The address is that of the peer."""


def require_project(caller: Caller, project_id: str | None) -> ProjectId | None:
    """The project to report on; None means all projects.

    Raises:
        AuthenticationError: the project is not the caller's, and the key is not an admin key.
    """
    if caller.scope is Scope.ADMIN:
        return None if project_id is None else ProjectId(project_id)
    if project_id not in (None, caller.project_id):
        raise admin_required()
    return caller.project_id


def acting_for(caller: Caller, headers: Mapping[bytes, bytes]) -> Caller:
    """The caller, for the project that the headers name.

    Raises:
        AuthenticationError: the project is not the caller's, and the key is not an admin key.
        RequestError: no project has such a name.
    """
    name = headers.get(PROJECT_HEADER)
    if name is None:
        return caller
    try:
        project = name.decode()
    except UnicodeDecodeError:
        project = ""
    if not project or not project.isprintable():
        message = "Invalid header 'x-nightmill-project': expected the name of a project."
        raise RequestError(message, param="x-nightmill-project", code="invalid_value")
    if project == caller.project_id:
        return caller
    if caller.scope is not Scope.ADMIN:
        raise admin_required()
    return replace(caller, project_id=ProjectId(project))


def admin_required() -> AuthenticationError:
    return AuthenticationError(
        "You have insufficient permissions for this operation. It needs an admin key: "
        "make one with `nightmill keys create NAME --admin` on the server."
    )


def require_right(caller: Caller, *, method: str, path: str) -> None:
    """Raises ForbiddenError when the caller may only read and the request may change something."""
    if caller.can_write or method in READ_METHODS or path in _READING_POSTS:
        return
    raise ForbiddenError(
        "You have insufficient permissions for this operation. This key may only read: "
        "make one with `nightmill keys create NAME` on the server.",
        code="insufficient_permissions",
    )


async def require_admin(caller: Annotated[Caller, Depends(caller_of)]) -> None:
    """A dependency of routes that need an admin key."""
    if caller.scope is not Scope.ADMIN:
        raise admin_required()


class KeyCache:
    """Looks up keys in the store and caches the results for two seconds, so that polling stays cheap.

    A revoked key is accepted for up to two seconds. A new key works at once: it cannot have been sent before.
    The first key ends the access without one as soon as this process has seen it.
    """

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._keys: dict[str, tuple[ApiKey | None, float]] = {}
        self._has_keys: tuple[bool, float] | None = None

    async def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Raises AuthenticationError."""
        secret = _secret_in(headers)
        caller = await self.caller_of_digest(digest_of(secret)) if secret else None
        if caller is not None:
            return caller
        if self._is_keyless and not await self._keys_exist():
            refusal = _keyless_refusal(headers)
            if refusal is None:
                return Caller(DEFAULT_PROJECT, "", scope=Scope.ADMIN)
            raise AuthenticationError(refusal, code="invalid_api_key" if secret else None, headers=_CHALLENGE)
        if not secret:
            raise AuthenticationError("Missing bearer or basic authentication in header", headers=_CHALLENGE)
        message = (
            f"Incorrect API key provided: {_masked(secret)}. "
            "You can make an API key with `nightmill keys create` on the server."
        )
        raise AuthenticationError(message, code="invalid_api_key", headers=_CHALLENGE)

    @property
    def _is_keyless(self) -> bool:
        """Whether requests from this machine need no key while none exists."""
        settings = self._context.settings
        return settings.keyless_on_loopback and is_local(settings.api.host)

    async def _keys_exist(self) -> bool:
        now = self._context.clock()
        if self._has_keys is None or not 0 <= now - self._has_keys[1] < _CACHE_S:
            self._has_keys = (await self._context.store.api_keys.any_exist(), now)
        return self._has_keys[0]

    async def caller_of_digest(self, digest: str) -> Caller | None:
        """The caller whose key has this SHA-256; None without a valid key."""
        key = await self._key(digest)
        return None if key is None else Caller(key.project_id, key.id, key.hint, key.scope)

    async def _key(self, digest: str) -> ApiKey | None:
        now = self._context.clock()
        remembered = self._keys.get(digest)
        if remembered is not None and 0 <= now - remembered[1] < _CACHE_S:
            return remembered[0]
        key = await self._context.store.api_keys.get(digest)
        if key is not None and not compare_digest(key.digest, digest):
            key = None  # the store matched too loosely
        if key is not None:
            self._has_keys = (True, now)
        if len(self._keys) >= _CACHED_KEYS:
            self._keys.clear()
        self._keys[digest] = (key, now)
        return key


class RateLimit:
    """A token bucket for each caller.

    Args:
        per_minute: the rate and the burst size; 0 means no limit.
        clock: Unix seconds.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, caller: Caller) -> None:
        """Raises TooManyError with the seconds until the next request is admitted."""
        if not self._per_minute:
            return
        now = self._clock()
        per_second = self._per_minute / 60
        left, seen_at = self._left.get(caller.name, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + max(0.0, now - seen_at) * per_second)
        if left < 1:
            self._left[caller.name] = (left, now)
            wait_s = math.ceil((1 - left) / per_second)
            raise TooManyError(
                f"Rate limit reached for requests: limit {self._per_minute} per minute and API key. "
                f"Please try again in {wait_s}s.",
                retry_after_s=wait_s,
            )
        self._left[caller.name] = (left - 1, now)


def is_local(host: str) -> bool:
    """Whether a host is loopback; browsers also resolve every name below `localhost` to loopback."""
    return host.endswith(".localhost") or is_loopback(host)


def _keyless_refusal(headers: Mapping[bytes, bytes]) -> str | None:
    """Why a request needs a key though none exists: it came through a proxy, names another host, or is of a
    page of another origin in a local browser. None if it needs none.
    """
    proxied = next((name for name in _PROXY_HEADERS if name.lower().encode() in headers), None)
    if proxied is not None:
        return (
            "This server has no API keys, so it answers only requests of its own machine, and this one came "
            f"through a proxy (it has the header {proxied}), whose clients may be anywhere. Make a key on "
            "the server with `nightmill keys create NAME`."
        )
    host = _host_in(headers.get(b"host", b""))
    page = _host_in(headers.get(b"origin", b"http://localhost").partition(b"://")[2])
    if not is_local(host):
        said = f"it was called as {_shown_host(host)}"
    elif not is_local(page):
        said = f"this request is of a web page of {_shown_host(page)}"
    else:
        return None
    return (
        "This server has no API keys, so it answers only requests that call it localhost or 127.0.0.1, and "
        f"{said}. Call it by one of these names, or make a key on the server with `nightmill keys create "
        "NAME`."
    )


def _shown_host(host: str) -> str:
    return f"'{host}'" if host.isascii() and host.isprintable() and 0 < len(host) <= 100 else "another name"


def _secret_in(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, credentials = headers.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip().decode("latin-1")
    return headers.get(b"api-key", b"").strip().decode("latin-1") or None


def _host_in(authority: bytes) -> str:
    """`[::1]:8080` -> `::1`, `localhost:8080` -> `localhost`."""
    text = authority.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _masked(secret: str) -> str:
    """Enough of a key for its owner to recognize it, too little to use it."""
    return f"{secret[:3]}…{secret[-4:]}" if len(secret) >= 20 and secret.isascii() else "…"
