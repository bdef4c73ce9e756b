"""The exceptions that nightmill raises, with the HTTP status and the exit code of each.

    NightmillError
    ├── RequestError            the caller can fix it            HTTP 400   exit 2
    │   ├── AuthenticationError no key, or a wrong key           HTTP 401
    │   ├── ForbiddenError      the key may only read            HTTP 403
    │   ├── NotFoundError       unknown, or of another project   HTTP 404
    │   ├── ConflictError       the object's state forbids it    HTTP 409
    │   ├── TooLargeError       over a size limit                HTTP 413
    │   ├── TooManyError        over a rate                      HTTP 429
    │   └── QuotaError          over a quota of the project      HTTP 429
    ├── UnavailableError        wait and try again               HTTP 503   exit 75
    │   └── StorageFullError    no room for the request          HTTP 507
    ├── DamageError             durable bytes are damaged        never on the wire, exit 74
    ├── SetupError              the operator can fix it          never on the wire, exit 78
    └── LeaseLost               another lease holder took over   never leaves the worker

A handler in `api` turns these into OpenAI's envelope, and a handler in `cli` into exit codes.
Messages name the id and the remedy; they never contain a prompt, an answer or a key.
"""

from collections.abc import Mapping
from typing import ClassVar


class NightmillError(Exception):
    """The root of the tree. `exit_code` follows sysexits where sysexits has a matching code."""

    exit_code: ClassVar[int] = 70


class RequestError(NightmillError):
    """Something in the request is wrong and the caller can fix it (docs/openai-behaviour.md 6).

    Args:
        message: the problem, the id concerned, and the remedy.
        param: the wire name of the invalid field, or None.
        code: OpenAI's machine-readable code, or None where OpenAI sends none.
        headers: extra response headers.
    """

    exit_code = 2
    status: ClassVar[int] = 400
    error_type: ClassVar[str] = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.headers: Mapping[str, str] = headers or {}


class AuthenticationError(RequestError):
    """The credentials are missing or wrong."""

    status = 401


class ForbiddenError(RequestError):
    """The credentials are valid, but do not allow the call."""

    status = 403


class NotFoundError(RequestError):
    """The object is unknown, deleted, or of another project; all three look the same to the client."""

    status = 404


class ConflictError(RequestError):
    """The state of the object forbids the call. A header keeps official clients from retrying the 409."""

    status = 409

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code, headers={"x-should-retry": "false"})


class TooLargeError(RequestError):
    """A body, file or header is over its limit."""

    status = 413


class TooManyError(RequestError):
    """A rate limit was reached. `retry_after_s` becomes the Retry-After header."""

    status = 429
    error_type = "requests"

    def __init__(self, message: str, *, retry_after_s: int, code: str = "rate_limit_exceeded") -> None:
        super().__init__(message, code=code, headers={"retry-after": str(retry_after_s)})


class QuotaError(RequestError):
    """A quota of the project is used up. A header keeps clients from retrying: batches must end first."""

    status = 429
    error_type = "requests"

    def __init__(self, message: str) -> None:
        headers = {"retry-after": "60", "x-should-retry": "false"}
        super().__init__(message, code="rate_limit_exceeded", headers=headers)


class UnavailableError(NightmillError):
    """A dependency does not respond at the moment. No data was lost; the same call works later."""

    exit_code = 75
    status: ClassVar[int] = 503

    def __init__(self, message: str, *, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class StorageFullError(UnavailableError):
    """The storage is full, or the data folder is below its watermark of free space."""

    status = 507


class DamageError(NightmillError):
    """Bytes on stable storage are missing or changed; the message names them. Waiting does not help."""

    exit_code = 74


class SetupError(NightmillError):
    """nightmill cannot start with this configuration; the message names the change to make."""

    exit_code = 78


class LeaseLost(NightmillError):  # noqa: N818 - an event for the worker, not a failure
    """The token is no longer the newest: the pending write must not happen."""
