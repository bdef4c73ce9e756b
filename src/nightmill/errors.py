"""Every exception nightmill raises on purpose, and what each becomes at the edge.

    NightmillError
    ├── RequestError            the caller can fix it            HTTP 400   exit 2
    │   ├── AuthenticationError no key, or a wrong one           HTTP 401
    │   ├── NotFoundError       unknown, or of another project   HTTP 404
    │   ├── ConflictError       the object's state forbids it    HTTP 409
    │   ├── TooLargeError       over a size limit                HTTP 413
    │   ├── TooManyError        over a rate                      HTTP 429
    │   └── QuotaError          over what a project may have     HTTP 429
    ├── UnavailableError        wait and try again               HTTP 503   exit 75
    │   └── StorageFullError    no room for what was sent        HTTP 507
    ├── DamageError             durable bytes don't read back    never on the wire, exit 74
    ├── SetupError              the operator can fix it          never on the wire, exit 78
    └── LeaseLost               somebody else took over          never leaves the worker

One handler in `api` turns these into OpenAI's envelope, one in `cli` into exit codes.
Messages name the id concerned and say what to do; they never hold a prompt, an answer or a key.
"""

from collections.abc import Mapping
from typing import ClassVar


class NightmillError(Exception):
    """The root of the tree. `exit_code` follows sysexits where it has a fitting number."""

    exit_code: ClassVar[int] = 70


class RequestError(NightmillError):
    """Something in the request is wrong and the caller can fix it (docs/openai-behaviour.md 6).

    Args:
        message: what happened, to which id, and what to do.
        param: the wire name of the field at fault, or None.
        code: OpenAI's machine-readable code, or None where it sends none.
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
    """No credentials, or wrong ones."""

    status = 401


class NotFoundError(RequestError):
    """Unknown, deleted, or of another project: all three look the same."""

    status = 404


class ConflictError(RequestError):
    """The state of the object forbids the call. Official clients retry 409 unless told not to."""

    status = 409

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code, headers={"x-should-retry": "false"})


class TooLargeError(RequestError):
    """A body, file or header is over its limit."""

    status = 413


class TooManyError(RequestError):
    """A rate limit. `retry_after_s` becomes the Retry-After header."""

    status = 429
    error_type = "requests"

    def __init__(self, message: str, *, retry_after_s: int, code: str = "rate_limit_exceeded") -> None:
        super().__init__(message, code=code, headers={"retry-after": str(retry_after_s)})


class QuotaError(RequestError):
    """A project has all that it may have. Clients are told not to repeat the call: batches must end first."""

    status = 429
    error_type = "requests"

    def __init__(self, message: str) -> None:
        headers = {"retry-after": "60", "x-should-retry": "false"}
        super().__init__(message, code="rate_limit_exceeded", headers=headers)


class UnavailableError(NightmillError):
    """A part nightmill needs is away for now. Nothing was lost; the same call works later."""

    exit_code = 75
    status: ClassVar[int] = 503

    def __init__(self, message: str, *, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class StorageFullError(UnavailableError):
    """The data folder is below its watermark of free space."""

    status = 507


class DamageError(NightmillError):
    """Bytes that were on stable storage are gone or changed; the message names them. Waiting won't help."""

    exit_code = 74


class SetupError(NightmillError):
    """nightmill can't start as it was told to; the message says what to change."""

    exit_code = 78


class LeaseLost(NightmillError):  # noqa: N818 - it is an event for the worker, not a failure
    """The token is no longer the newest one: what was about to be written must not be."""
