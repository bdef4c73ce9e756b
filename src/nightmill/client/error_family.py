"""The errors of the `openai` package as members of nightmill's own family, so that one `except` is enough.

What a server refuses, and what a connection does not bring, is raised as a class of both families: a 404 is
a `nightmill.NotFoundError` and an `openai.NotFoundError`. `Server` and `AsyncServer` are `openai` clients
that raise these; everything else about them is the package's.
"""

from functools import cache
from typing import Any, Final, cast

from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    InternalServerError,
    OpenAI,
    RateLimitError,
)

from nightmill.errors import (
    AuthenticationError,
    ConflictError,
    ForbiddenError,
    NightmillError,
    NotFoundError,
    QuotaError,
    RequestError,
    StorageFullError,
    TooLargeError,
    TooManyError,
    UnavailableError,
)

_OURS: Final[dict[int, type[NightmillError]]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    429: TooManyError,
    507: StorageFullError,
}
_RETRY_AFTER_S: Final = 5

AWAY: Final = (APIConnectionError, InternalServerError, RateLimitError)
"""Errors of a server that may soon answer again. Its batches go on, so waiting for them goes on too."""
_CHECK: Final = "check base_url, or OPENAI_BASE_URL"


class Server(OpenAI):
    """An `openai` client whose errors belong to both families."""

    def request(self, cast_to: Any, *args: Any, **options: Any) -> Any:
        try:
            answer = cast("Any", super()).request(cast_to, *args, **options)
        except APIError as error:
            raise of_both_families(error) from error.__cause__
        return _checked(answer, cast_to, self.base_url)


class AsyncServer(AsyncOpenAI):
    """`Server` for asyncio."""

    async def request(self, cast_to: Any, *args: Any, **options: Any) -> Any:
        try:
            answer = await cast("Any", super()).request(cast_to, *args, **options)
        except APIError as error:
            raise of_both_families(error) from error.__cause__
        return _checked(answer, cast_to, self.base_url)


def _checked(answer: Any, cast_to: Any, base_url: object) -> Any:
    """The answer. Where an object of the API was expected, the package gives the text of a page as it is.

    Raises:
        RequestError: it has done so.
    """
    if isinstance(answer, str) and cast_to not in (str, object):
        raise RequestError(f"what answers at {base_url} is not OpenAI's API; {_CHECK}")
    return answer


def of_both_families(error: APIError) -> APIError:
    """The same error, also as a `NightmillError`, with a message that says what happened and what to do."""
    if isinstance(error, NightmillError):
        return error
    cls = _joined(_ours(error), type(error))
    made = cls.__new__(cls)
    message = _message(error)
    made.__dict__.update(vars(error) | {"message": message})
    made.args = (message,)
    headers: dict[str, str] = dict(error.response.headers) if isinstance(error, APIStatusError) else {}
    if isinstance(made, UnavailableError):
        wait_s = headers.get("retry-after", "")
        made.retry_after_s = int(wait_s) if wait_s.isascii() and wait_s.isdigit() else _RETRY_AFTER_S
    elif isinstance(made, RequestError):
        made.headers = headers
    return made


@cache
def _joined(ours: type[NightmillError], theirs: type[APIError]) -> type[APIError]:
    """One class for each pair, made when it is first needed: the package may have more classes tomorrow."""
    made = type(ours.__name__, (ours, theirs), {"__module__": ours.__module__, "__doc__": ours.__doc__})
    return cast("type[APIError]", made)


def _ours(error: APIError) -> type[NightmillError]:
    if not isinstance(error, APIStatusError):
        return UnavailableError
    if error.status_code == 429 and error.response.headers.get("x-should-retry") == "false":
        return QuotaError
    if error.status_code in _OURS:
        return _OURS[error.status_code]
    return UnavailableError if error.status_code >= 500 else RequestError


def _message(error: APIError) -> str:
    place = f"{error.request.url.scheme}://{error.request.url.netloc.decode('ascii')}"
    if isinstance(error, APITimeoutError):
        return f"the server at {place} did not answer in time; try again"
    if isinstance(error, APIConnectionError):
        cause = f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) else ""
        return f"no server could be reached at {place}{cause}; {_CHECK}"
    if not isinstance(error, APIStatusError):
        return f"what answers at {place} is not OpenAI's API; {_CHECK}"
    body = error.body
    said = cast("dict[str, object]", body).get("message") if isinstance(body, dict) else None
    path = error.request.url.path
    hint = "" if "/v1/" in path else ": it usually ends in /v1"
    if not said:
        return f"{place} answered {error.status_code} to {path}; {_CHECK}{hint}"
    if error.status_code == 404 and hint:
        hint = "" if "/v1" in str(said) else hint  # a nightmill server says so itself
        return f"{str(said).rstrip('.')}; {_CHECK}{hint}"
    if error.status_code in (401, 403):
        return f"{str(said).rstrip('.')}; pass api_key=, or set OPENAI_API_KEY"
    return f"{said}"
