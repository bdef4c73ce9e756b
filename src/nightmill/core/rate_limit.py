"""Rate limits of an upstream: requests and tokens per minute, as token buckets. No I/O.

Several workers share a limit in the proportion of their granted slots (see `core.concurrency`), so the rates
of all workers add up to the limit.

An upstream may also say with each answer what remains of its own limits. Each worker obeys the headers of its
own answers.
"""

import math

from nightmill.core.failure import bounded_s
from nightmill.core.outcome import Remaining

_MINUTE_S = 60.0

_BURST_S = 1.0

_ROUNDING = 1e-6

_NEW_WEIGHT = 0.1


class Rate:
    """An amount per minute, as a bucket that starts empty, so that a restart does not grant the amount again.

    In any minute at most the limit passes, and one more for each worker. A limit of 0 limits nothing.
    """

    __slots__ = ("_level", "_per_minute", "_since")

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._level = 0.0
        self._since: float | None = None

    def wait_s(self, now: float, *, share: float) -> float:
        """Seconds until the next unit may pass; 0 when it may pass now, or when there is no limit.

        Args:
            now: monotonic time in seconds.
            share: this worker's part of the limit, from 0 to 1.
        """
        if not self._per_minute:
            return 0.0
        per_s = share * self._per_minute * (1 - _BURST_S / _MINUTE_S) / _MINUTE_S
        if self._since is not None:
            fullest = max(1.0, per_s * _BURST_S)
            self._level = min(fullest, self._level + (now - self._since) * per_s)
        self._since = now
        if self._level >= 1.0 - _ROUNDING:
            return 0.0
        return (1.0 - self._level) / per_s if per_s else 1.0

    def spend(self, amount: float) -> None:
        """Takes `amount` out of the bucket. The amount may be known only afterwards, so the level may become
        negative."""
        if self._per_minute:
            self._level -= amount


class RateLimits:
    """Both rate limits of one upstream, and the pause that follows when its own limits are used up.

    The tokens of an attempt are known only from its answer. `spend` therefore charges an estimate, the moving
    average of earlier answers, and `correct` charges the difference.

    Attributes:
        are_set: whether there is any limit, or an answer has named one; while false, no other method needs to
            be called but `note_remaining`.
    """

    __slots__ = ("_paused_until", "_requests", "_tokens", "_tokens_per_line", "are_set")

    def __init__(self, *, requests_per_minute: int, tokens_per_minute: int) -> None:
        self.are_set = bool(requests_per_minute or tokens_per_minute)
        self._requests = Rate(requests_per_minute)
        self._tokens = Rate(tokens_per_minute)
        self._tokens_per_line = 0.0
        self._paused_until = -math.inf

    def wait_s(self, now: float, *, share: float) -> float:
        """Seconds until the next attempt may start. Arguments as for `Rate.wait_s`."""
        return max(
            self._requests.wait_s(now, share=share),
            self._tokens.wait_s(now, share=share),
            self._paused_until - now,
        )

    def spend(self) -> float:
        """Charges an attempt that starts; returns the estimated tokens that were charged."""
        self._requests.spend(1)
        self._tokens.spend(self._tokens_per_line)
        return self._tokens_per_line

    def correct(self, used_tokens: int, *, charged_tokens: float) -> None:
        """Charges what an answered attempt used beyond `charged_tokens`, the result of its `spend`."""
        self._tokens.spend(used_tokens - charged_tokens)
        average = self._tokens_per_line
        self._tokens_per_line = (
            used_tokens if not average else (1 - _NEW_WEIGHT) * average + _NEW_WEIGHT * used_tokens
        )

    def note_remaining(self, remaining: Remaining, now: float, *, in_flight: int) -> None:
        """Pauses until the reset that an answer names, if the upstream's own limits are used up.

        The requests are used up when fewer remain than are in flight, since the upstream may have counted
        those after the answer. The tokens are used up when fewer remain than a line uses on average. Without
        a reset there is no pause: the upstream then refuses an attempt, and that answer names a pause.

        Args:
            now: monotonic time in seconds.
            in_flight: attempts of this worker that are still in flight.
        """
        self.are_set = True
        if remaining.requests is not None and remaining.requests < max(1, in_flight):
            self._pause(now, remaining.requests_reset_s)
        if remaining.tokens is not None and remaining.tokens < max(1.0, self._tokens_per_line):
            self._pause(now, remaining.tokens_reset_s)

    def _pause(self, now: float, reset_s: float | None) -> None:
        if reset_s is not None:
            self._paused_until = max(self._paused_until, now + bounded_s(reset_s))
