"""The circuit breaker of one upstream: decides from the outcomes of all lines whether the upstream is called.

As in an electric circuit, a closed breaker lets every attempt through and an open breaker lets none through.
A half-open breaker lets one attempt through at a time, the probe.

A worker calls for each outcome, in this order, `note(outcome, ...)` and `judge(outcome)`, and passes the
judged outcome to `retry.verdict`. Before each attempt the worker calls `wait_s(now)`; when it sends, it calls
`sent(now)`. `now` is a monotonic time in seconds; `random` is a number in [0, 1). No I/O.
"""

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from nightmill.core.outcome import (
    Answered,
    Broken,
    Outcome,
    Refused,
    Throttled,
    TimedOut,
    Unreachable,
    is_success,
)
from nightmill.core.retry import bounded


@dataclass(frozen=True, slots=True)
class Paused:
    """The breaker opened, or stays open, for `seconds`. `reason` holds nothing that the upstream sent."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The breaker closed: the upstream answers again."""


class _Cause(Enum):
    NONE = "none"
    """The breaker is closed."""
    THROTTLED = "throttled"
    """Open until a moment, then fully closed."""
    DOWN = "down"
    """Open until a moment, then half-open."""
    REFUSED = "refused"
    """As DOWN, with longer pauses: the operator has to correct the settings."""


_PAUSE_FLOOR_S = 0.1

_PAUSE_CAP_S = 30.0

_THROTTLE_CAP_S = 5.0

_PROBE_LAPSE_S = 5.0
"""A probe without an outcome for so long is probably being answered; another probe may join it."""

_PROBE_POLL_S = 0.25

_SHORT_S = 1.0

_LONG_S = 5.0

_FAILURES = 16

_CREDIT = 4

_REFUSALS = frozenset({401, 403, 407})

_GATEWAY_FAULTS = frozenset({502, 503, 504, *range(520, 528), 530})


class CircuitBreaker:
    """Whether to send to one upstream.

    - Unreachable opens the breaker for 0.1 s, growing to 30 s with full jitter, then half-open until any
      attempt is answered. A slow probe is joined by another every 5 s.
    - 16 attempts in a row that broke, timed out, or met a gateway whose server is away (502, 503, 504, 52x)
      open the breaker in the same way: nginx or a tunnel in front of a dead server looks like this. Such
      outcomes count as attempts of their lines, but only those of the few lines that probe.
    - Throttled opens the breaker for Retry-After, or for a short growing pause; then it is closed.
    - 401, 403, 407 and redirects open the breaker while the upstream has accepted nothing since the start or
      the last such hold: the breaker is `held`, and `judge` turns these answers into `Refused`, which counts
      as no attempt. An accepted line (2xx, or a 4xx about the line itself) gives credit for three refusals
      that settle as answers.
    - Any real answer closes the breaker, except that a throttled upstream gets the pause it asked for.

    Attributes:
        is_closed: whether every attempt may start; then `wait_s` returns 0 and `sent` need not be called.
    """

    __slots__ = (
        "_announced",
        "_cause",
        "_credit",
        "_failures",
        "_pauses",
        "_probe_at",
        "_reason",
        "_until",
        "is_closed",
    )

    def __init__(self) -> None:
        self.is_closed = True
        self._cause: _Cause = _Cause.NONE
        self._until = 0.0
        self._reason = ""
        self._pauses = 0
        self._probe_at: float | None = None
        self._failures = 0
        self._credit = 0
        self._announced: _Cause = _Cause.NONE

    @property
    def reason(self) -> str:
        """Why nothing, or only probes, may be sent; empty while the breaker is closed."""
        return self._reason

    @property
    def held(self) -> bool:
        """Whether the operator has to change something before any line can be answered."""
        return self._cause is _Cause.REFUSED

    def wait_s(self, now: float) -> float:
        """Seconds until an attempt may start; 0 when an attempt may start now."""
        if self._cause is _Cause.NONE:
            return 0.0
        if now < self._until:
            return self._until - now
        if self._cause is _Cause.THROTTLED or self._probe_at is None:
            return 0.0
        lapses_in_s = self._probe_at + _PROBE_LAPSE_S - now
        return min(_PROBE_POLL_S, lapses_in_s) if lapses_in_s > 0 else 0.0

    def sent(self, now: float) -> None:
        """Notes that an attempt starts. While the breaker is half-open, the attempt is the probe."""
        if self._cause is not _Cause.NONE:
            self._probe_at = now

    def judge(self, outcome: Outcome) -> Outcome | Refused:
        """The outcome as it counts for its line. Must be called after `note`."""
        if self._credit == 0 and isinstance(outcome, Answered) and _is_refusal(outcome.status):
            return Refused(outcome.status)
        return outcome

    def note(self, outcome: Outcome, *, now: float, random: float) -> Paused | Resumed | None:
        """Takes an outcome into account; returns the change of state if it is worth an event."""
        if is_success(outcome):
            self._credit = _CREDIT
            return self._note_answer(now)
        match outcome:
            case Answered(status) if _is_refusal(status):
                return self._note_refusal(status, now=now, random=random)
            case Answered(status) if status in _GATEWAY_FAULTS:
                return self._note_failure(f"its gateway answers {status}", now=now, random=random)
            case Answered(status):
                if status < 500:
                    self._credit = _CREDIT
                return self._note_answer(now)
            case Throttled():
                return self._note_throttled(outcome, now=now, random=random)
            case Unreachable(reason):
                return self._open(_Cause.DOWN, reason, now=now, random=random)
            case Broken(reason):
                return self._note_failure(reason, now=now, random=random)
            case TimedOut(timeout_s):
                return self._note_failure(f"no answer within {timeout_s:g} s", now=now, random=random)
            case _:
                assert_never(outcome)

    def _note_answer(self, now: float) -> Resumed | None:
        self._failures = 0
        if self._cause is _Cause.NONE:
            return None
        if self._cause is _Cause.THROTTLED and now < self._until:
            return None
        announced = self._announced is not _Cause.NONE
        self._cause = self._announced = _Cause.NONE
        self.is_closed = True
        self._until = 0.0
        self._reason = ""
        self._pauses = 0
        self._probe_at = None
        return Resumed() if announced else None

    def _note_refusal(self, status: int, *, now: float, random: float) -> Paused | Resumed | None:
        self._credit = max(0, self._credit - 1)
        if self._credit > 0:
            return self._note_answer(now)
        self._failures = 0
        reason = (
            f"it refuses our key ({status}); check upstream.api_key"
            if status in _REFUSALS
            else f"it redirects ({status}) and redirects are not followed; check upstream.url"
        )
        return self._open(_Cause.REFUSED, reason, now=now, random=random)

    def _note_failure(self, reason: str, *, now: float, random: float) -> Paused | None:
        self._failures += 1
        if self._failures < _FAILURES and self._cause in (_Cause.NONE, _Cause.THROTTLED):
            return None
        return self._open(_Cause.DOWN, reason, now=now, random=random)

    def _note_throttled(self, outcome: Throttled, *, now: float, random: float) -> Paused | None:
        self._failures = 0
        asked_s = outcome.retry_after_s
        if self._cause is _Cause.THROTTLED and now < self._until:
            # The attempt was sent before the pause began: it may lengthen this pause, but not the next.
            if asked_s is not None:
                self._until = max(self._until, now + bounded(asked_s))
            return None
        pause_s = None if asked_s is None else bounded(asked_s)
        cause = _Cause.REFUSED if self._cause is _Cause.REFUSED else _Cause.THROTTLED
        return self._open(
            cause, f"it asks for a pause ({outcome.status})", now=now, random=random, pause_s=pause_s
        )

    def _open(
        self, cause: _Cause, reason: str, *, now: float, random: float, pause_s: float | None = None
    ) -> Paused | None:
        self._probe_at = None
        if cause is self._cause and now < self._until:
            return None  # the attempt was in flight when the breaker opened
        if cause is not self._cause:
            self._pauses = 0
        if pause_s is None:
            cap_s = _THROTTLE_CAP_S if cause is _Cause.THROTTLED else _PAUSE_CAP_S
            base_s = 1.0 if cause is _Cause.REFUSED else 2 * _PAUSE_FLOOR_S
            longest_s = min(cap_s, base_s * 2.0 ** min(self._pauses, 16))
            pause_s = _PAUSE_FLOOR_S + random * (longest_s - _PAUSE_FLOOR_S)
        self._cause = cause
        self.is_closed = False
        self._reason = reason
        self._pauses += 1
        self._until = max(self._until, now + pause_s)
        return self._announcement(self._until - now)

    def _announcement(self, pause_s: float) -> Paused | None:
        if self._cause is _Cause.THROTTLED and pause_s < _SHORT_S:
            return None  # ordinary for a busy upstream
        if self._announced is self._cause and pause_s < _LONG_S:
            return None
        self._announced = self._cause
        return Paused(self._reason, pause_s)


def _is_refusal(status: int) -> bool:
    return status in _REFUSALS or 300 <= status < 400
