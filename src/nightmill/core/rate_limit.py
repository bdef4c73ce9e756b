"""Rate limits of an upstream: requests and tokens per minute, as token buckets. No I/O.

Several workers share a limit in the proportion of their granted slots (see `core.concurrency`), so the rates
of all workers add up to the limit.

An upstream may also say with each answer what remains of its own limits, and when they are whole again
(`Refill`). Each worker obeys the headers of its own answers, and uses its share of what remains.
"""

import math

from nightmill.core.failure import PAUSE_FLOOR_S, RETRY_AFTER_CAP_S, bounded_s
from nightmill.core.outcome import Remaining

_MINUTE_S = 60.0

_BURST_S = 1.0

_ROUNDING = 1e-6

_NEW_WEIGHT = 0.1

_LONGEST_RESET_S = 60.0
"""Longest pause for a reset whose refill rate is not known: it may be the time until the limit is whole."""


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


class Refill:
    """An upstream's own limit that refills steadily, as its answers describe it.

    An answer says what remained, but not whether the attempts in flight were counted. So as many attempts may
    start as remain beyond those in flight, and beside them as many as are refilled: the latter never use up
    the limit, however long answers take.
    """

    __slots__ = ("_level", "_per_s", "_share", "_since")

    def __init__(self) -> None:
        self._per_s: float | None = None
        self._level = 0.0
        self._share = 1.0
        self._since = 0.0

    def note(
        self, remaining: int, *, limit: int, reset_s: float, need: float, in_flight: int, now: float
    ) -> None:
        """Notes what an answer says.

        Args:
            reset_s: seconds until `limit` is available again.
            need: what an attempt uses.
            in_flight: attempts that the upstream may not have counted.
        """
        self._refill(now, need)
        if remaining < limit:
            per_s = (limit - remaining) / max(reset_s, PAUSE_FLOOR_S)
            self._per_s = max(per_s, need / RETRY_AFTER_CAP_S)
        refilled = min(self._level, need) if remaining >= need else min(self._level, 0.0)
        self._level = max(refilled, self._share * (remaining - in_flight * need))

    def wait_s(self, now: float, *, share: float, need: float) -> float:
        """Seconds until the next attempt may start. Arguments as for `Rate.wait_s` and `note`."""
        if self._per_s is None:
            return 0.0
        self._share = share
        self._refill(now, need)
        missing = need - self._level
        if missing <= _ROUNDING * need:
            return 0.0
        return missing / (share * self._per_s) if share else 1.0

    def spend(self, amount: float) -> None:
        """Takes out what an attempt uses."""
        self._level -= amount

    def _refill(self, now: float, need: float) -> None:
        if self._per_s is not None:
            more = (now - self._since) * self._share * self._per_s * (1 - _BURST_S / _MINUTE_S)
            self._level = min(max(self._level, need), self._level + more)
        self._since = now


class RateLimits:
    """Both rate limits of one upstream, and the pause that follows when its own limits are used up.

    The tokens of an attempt are known only from its answer. `spend` therefore charges an estimate, the moving
    average of earlier answers, and `correct` charges the difference.

    Attributes:
        are_set: whether there is any limit, or an answer has named one; while false, no other method needs to
            be called but `note_remaining`.
    """

    __slots__ = (
        "_paused_until",
        "_requests",
        "_requests_refill",
        "_tokens",
        "_tokens_per_line",
        "_tokens_refill",
        "are_set",
    )

    def __init__(self, *, requests_per_minute: int, tokens_per_minute: int) -> None:
        self.are_set = bool(requests_per_minute or tokens_per_minute)
        self._requests = Rate(requests_per_minute)
        self._tokens = Rate(tokens_per_minute)
        self._tokens_per_line = 0.0
        self._requests_refill = Refill()
        self._tokens_refill = Refill()
        self._paused_until = -math.inf

    def wait_s(self, now: float, *, share: float) -> float:
        """Seconds until the next attempt may start. Arguments as for `Rate.wait_s`."""
        return max(
            self._requests.wait_s(now, share=share),
            self._tokens.wait_s(now, share=share),
            self._requests_refill.wait_s(now, share=share, need=1.0),
            self._tokens_refill.wait_s(now, share=share, need=self._tokens_needed),
            self._paused_until - now,
        )

    def limited_by(self, now: float, *, share: float) -> str | None:
        """The limit because of which no attempt may start now: the name of its setting, or the words "its own
        rate limit" for one that the upstream's answers name. None if an attempt may start.
        """
        if not self.are_set or self.wait_s(now, share=share) <= 0:
            return None
        if self._requests.wait_s(now, share=share) > 0:
            return "requests_per_minute"
        return "tokens_per_minute" if self._tokens.wait_s(now, share=share) > 0 else "its own rate limit"

    def spend(self) -> float:
        """Charges an attempt that starts; returns the estimated tokens that were charged."""
        self._requests.spend(1)
        self._tokens.spend(self._tokens_per_line)
        self._requests_refill.spend(1.0)
        self._tokens_refill.spend(self._tokens_needed)
        return self._tokens_per_line

    def correct(self, used_tokens: int, *, charged_tokens: float) -> None:
        """Charges what an answered attempt used beyond `charged_tokens`, the result of its `spend`."""
        self._tokens.spend(used_tokens - charged_tokens)
        average = self._tokens_per_line
        self._tokens_per_line = (
            used_tokens if not average else (1 - _NEW_WEIGHT) * average + _NEW_WEIGHT * used_tokens
        )

    def note_remaining(self, remaining: Remaining, now: float, *, in_flight: int) -> None:
        """Notes what an answer says of the upstream's own limits.

        With the limit and the reset, attempts start as the limit refills. With the reset alone, there is a
        pause until then, at most a minute, if fewer requests remain than are in flight, or fewer tokens than
        a line uses on average. Without a reset there is no pause: the upstream then refuses an attempt, and
        that answer names a pause.

        Args:
            now: monotonic time in seconds.
            in_flight: attempts of this worker that are still in flight.
        """
        self.are_set = True
        requests, tokens = remaining.requests, remaining.tokens
        if requests is not None and remaining.requests_reset_s is not None:
            if remaining.requests_limit:
                self._requests_refill.note(
                    requests,
                    limit=remaining.requests_limit,
                    reset_s=remaining.requests_reset_s,
                    need=1.0,
                    in_flight=in_flight,
                    now=now,
                )
            elif requests < max(1, in_flight):
                self._pause(now, remaining.requests_reset_s)
        if tokens is not None and remaining.tokens_reset_s is not None:
            if remaining.tokens_limit:
                self._tokens_refill.note(
                    tokens,
                    limit=remaining.tokens_limit,
                    reset_s=remaining.tokens_reset_s,
                    need=self._tokens_needed,
                    in_flight=in_flight,
                    now=now,
                )
            elif tokens < self._tokens_needed:
                self._pause(now, remaining.tokens_reset_s)

    @property
    def _tokens_needed(self) -> float:
        return max(1.0, self._tokens_per_line)

    def _pause(self, now: float, reset_s: float) -> None:
        pause_s = min(bounded_s(reset_s), _LONGEST_RESET_S)
        self._paused_until = max(self._paused_until, now + pause_s)
