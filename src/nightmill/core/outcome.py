"""The outcome of one attempt, as a value; a line that fails raises no exception. No I/O.

What an outcome says about the line and about the upstream is decided by `core.failure` and `core.health`.
"""

from typing import ClassVar, TypeAlias, assert_never

import msgspec


class Remaining(msgspec.Struct, frozen=True, gc=False):
    """What the headers of an answer say about the upstream's own rate limits. None: the answer does not say.

    Args:
        requests: requests that the upstream still takes before the reset.
        tokens: tokens that it still takes before the reset.
        requests_reset_s: seconds until the requests are available again; with `requests_limit`: until all of
            them are.
        tokens_reset_s: as `requests_reset_s`, for tokens.
        requests_limit: the most requests that can remain, of an upstream whose limit refills steadily.
        tokens_limit: as `requests_limit`, for tokens.
    """

    requests: int | None = None
    tokens: int | None = None
    requests_reset_s: float | None = None
    tokens_reset_s: float | None = None
    requests_limit: int | None = None
    tokens_limit: int | None = None


class Answered(msgspec.Struct, frozen=True, gc=False):
    """The upstream sent a whole HTTP answer. `body` has no chunk framing and no compression.

    Redirects are answers too, and are not followed. `retry_after_s` is the pause in seconds that the answer's
    Retry-After header names, at any status; None without one. `remaining` is None without rate headers.
    """

    status: int
    body: bytes
    request_id: str | None = None
    retry_after_s: float | None = None
    remaining: Remaining | None = None


class Unreachable(msgspec.Struct, frozen=True, gc=False):
    """No connection, so the line was certainly not read: refused, DNS, TLS, no connection in time.

    `reason` is short and holds nothing that the upstream sent.
    """

    reason: str


class Broken(msgspec.Struct, frozen=True, gc=False):
    """The connection or the answer broke after the line may have been read: reset, truncated, not HTTP."""

    code: ClassVar[str] = "upstream_broken"
    reason: str
    counts_as: float = 1.0
    """As how many attempts of the line the outcome counts; see `sent_again`."""

    @property
    def message(self) -> str:
        """The message of the line in the error file."""
        return f"The model server gave no usable answer: {self.reason}."


class TooLong(msgspec.Struct, frozen=True, gc=False):
    """The answer is longer than the limit. Another attempt would be paid for and have the same outcome."""

    code: ClassVar[str] = "answer_too_long"
    limit_bytes: int

    @property
    def message(self) -> str:
        """As in `Broken`."""
        return (
            f"The model server's answer is longer than upstream.max_answer_bytes, {self.limit_bytes} bytes."
        )


class TimedOut(msgspec.Struct, frozen=True, gc=False):
    """No whole answer within the attempt's time."""

    code: ClassVar[str] = "request_timeout"
    timeout_s: float
    counts_as: float = 1.0
    """As in `Broken`."""

    @property
    def message(self) -> str:
        """As in `Broken`."""
        return f"The model server gave no whole answer within {self.timeout_s:g} seconds."


Outcome: TypeAlias = Answered | Unreachable | Broken | TooLong | TimedOut
"""What `Upstream.send` returns."""


def sent_again(outcome: Outcome, *, first: Broken) -> Outcome:
    """The outcome of a line that broke on a reused connection (`first`) and was sent again at once.

    With an answer the break counts as no attempt, otherwise as half an attempt. Most likely the server had
    only closed an idle connection, or crashed because of another line; but a line that crashes the upstream
    each time must reach its last attempt.
    """
    match outcome:
        case Broken() | TimedOut():
            return msgspec.structs.replace(outcome, counts_as=1.5)
        case Unreachable():
            return msgspec.structs.replace(first, counts_as=0.5)
        case Answered() | TooLong():
            return outcome
        case _:
            assert_never(outcome)
