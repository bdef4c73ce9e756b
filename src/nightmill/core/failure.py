"""What a failed attempt says: about its request, or about the model server (see docs/faults.md). No I/O.

`STATUSES` is the table of statuses; docs/faults.md prints it. A status outside the table is worth another
attempt. Whether a failure counts against its line is decided by `core.health`, from the other lines. The
bounds of every pause before an upstream is called again are here too.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, assert_never

from nightmill.core.outcome import Answered, Broken, Outcome, TimedOut, TooLong, Unreachable


class FailureKind(Enum):
    """What a failed attempt says. The value is the sentence in docs/faults.md."""

    REQUEST = "The request itself can't be answered: the line settles with this answer at once."
    LOAD = "The server has too much to do or limits the rate: fewer attempts in flight, then another attempt."
    LATE = "No answer in time: the requests may queue in the server, so fewer attempts in flight first."
    ACCESS = "The server refuses nightmill itself: the operator has to correct a setting."
    ACCOUNT = "The account at the provider has no credit left: the operator has to act."
    FAULT = "The server failed: another attempt."
    UNREACHABLE = "There is no connection to the server: no line can be answered."


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt, as it is judged.

    Args:
        kind: what the failure says.
        reason: a few words for logs and for `/ready`: the status and error code, never the message.
        retry_after_s: the pause in seconds that the answer names, if any.
        counts_as: as how many attempts of its line the failure counts at most.
    """

    kind: FailureKind
    reason: str
    retry_after_s: float | None = None
    counts_as: float = 1.0


_JSON_ONLY: Final = frozenset({404, 405})
"""About the request only with a JSON body. A proxy or a wrong URL gives all lines a page of text."""

_NOT_HERE: Final = frozenset({404, 405, 501})

STATUSES: Final = {
    400: FailureKind.REQUEST,
    401: FailureKind.ACCESS,
    402: FailureKind.ACCOUNT,
    403: FailureKind.ACCESS,
    404: FailureKind.REQUEST,
    405: FailureKind.REQUEST,
    407: FailureKind.ACCESS,
    408: FailureKind.LATE,
    411: FailureKind.REQUEST,
    413: FailureKind.REQUEST,
    414: FailureKind.REQUEST,
    415: FailureKind.REQUEST,
    422: FailureKind.REQUEST,
    429: FailureKind.LOAD,
    431: FailureKind.REQUEST,
    501: FailureKind.REQUEST,
    503: FailureKind.LOAD,
    504: FailureKind.LATE,
    524: FailureKind.LATE,
    529: FailureKind.LOAD,
}
"""The kind of failure that each status stands for. 3xx is `ACCESS`, every other status `FAULT`."""

ACCOUNT_CODES: Final = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"}
)
"""Error codes that say at any status that the account can't be used."""

KEY_CODES: Final = frozenset({"invalid_api_key", "invalid_authentication"})
"""Error codes that say at any status that the key is refused."""

BACKOFF_BASE_S: Final = 0.5

BACKOFF_CAP_S: Final = 60.0

PAUSE_FLOOR_S: Final = 0.1
"""The shortest pause before a line is sent again, and before a probe."""

RETRY_AFTER_CAP_S: Final = 600.0
"""The longest Retry-After that is obeyed; a longer value is cut to this."""


@dataclass(frozen=True, slots=True)
class AnswerError:
    """The error that an answer reports.

    Args:
        status: the status as which the answer counts: its own, or for a 2xx the one its error names, or 502.
        code: the error's code or type, None without one; short printable text.
        is_json: whether the body is JSON.
    """

    status: int
    code: str | None
    is_json: bool


def failure_of(outcome: Outcome, error: AnswerError | None) -> Failure:
    """The failure that an outcome is.

    Args:
        error: what the answer reports; needed for `Answered` only.
    """
    match outcome:
        case Answered(retry_after_s=retry_after_s):
            assert error is not None
            kind = kind_of(error)
            return Failure(kind, _reason(error, kind), retry_after_s)
        case TimedOut(timeout_s, counts_as):
            return Failure(
                FailureKind.LATE, f"it gives no answer within {timeout_s:g} s", counts_as=counts_as
            )
        case Broken(reason, counts_as):
            return Failure(FailureKind.FAULT, reason, counts_as=counts_as)
        case TooLong():
            return Failure(FailureKind.REQUEST, outcome.code)
        case Unreachable(reason):
            return Failure(FailureKind.UNREACHABLE, reason)
        case _:
            assert_never(outcome)


def kind_of(error: AnswerError) -> FailureKind:
    """What an answer with this error says."""
    if error.code in ACCOUNT_CODES:
        return FailureKind.ACCOUNT
    if error.code in KEY_CODES:
        return FailureKind.ACCESS
    status = error.status
    if status in _JSON_ONLY and not error.is_json:
        return FailureKind.ACCESS
    if 300 <= status < 400:
        return FailureKind.ACCESS
    return STATUSES.get(status, FailureKind.FAULT)


def is_of_upstream_alone(error: AnswerError | None) -> bool:
    """Whether an answer says that this server does not have the model or the endpoint.

    Another server with the model may answer the line.
    """
    return error is not None and error.status in _NOT_HERE and kind_of(error) is FailureKind.REQUEST


def _reason(error: AnswerError, kind: FailureKind) -> str:
    said = f"{error.status} {error.code}" if error.code else f"{error.status}"
    match kind:
        case FailureKind.ACCESS if 300 <= error.status < 400:
            return f"it redirects ({said}) and redirects are not followed; check upstream.url"
        case FailureKind.ACCESS if error.status in _JSON_ONLY:
            return f"it does not know the path ({said}); check upstream.url"
        case FailureKind.ACCESS:
            return f"it refuses our key ({said}); check upstream.api_key"
        case FailureKind.ACCOUNT:
            return f"the account has no credit left ({said})"
        case _:
            return f"it answers {said}"


def backoff_s(counted: float, *, random: float) -> float:
    """The pause in seconds before a line is sent again: exponential backoff with full jitter over a floor.

    Args:
        counted: the failures that count against the line.
        random: a number in [0, 1).
    """
    longest_s = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(counted, 16))
    return PAUSE_FLOOR_S + random * (longest_s - PAUSE_FLOOR_S)


def bounded_s(asked_s: float) -> float:
    """A pause that an upstream names, in seconds, between `PAUSE_FLOOR_S` and `RETRY_AFTER_CAP_S`."""
    return min(max(asked_s, PAUSE_FLOOR_S), RETRY_AFTER_CAP_S)
