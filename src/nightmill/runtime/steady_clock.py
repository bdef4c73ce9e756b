"""A wall clock that follows a step of the system's clock only when the step lasts.

Deadlines, leases, expiries and timestamps are counted in this time. A step in either direction that is
reverted within `doubt_s` changes nothing; a step that lasts longer is followed. The order of timestamps
within a batch is kept by `Batch.after`; durations are measured by the monotonic clock.
"""

import time
from collections.abc import Callable

DOUBT_S = 60.0
SLACK_S = 1.0


class SteadyClock:
    """Unix seconds of the wall clock; after a step, until it is followed, of the time before the step
    continued.

    Args:
        doubt_s: seconds that a step must last before it is followed.
        slack_s: a smaller difference is drift or the adjustment of a clock, and followed at once.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        doubt_s: float = DOUBT_S,
        slack_s: float = SLACK_S,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._doubt_s = doubt_s
        self._slack_s = slack_s
        self._offset_s = wall() - monotonic()
        self._doubted: tuple[float, float] | None = None

    def __call__(self) -> float:
        """May be called from any thread: each field is read once and replaced as a whole."""
        elapsed_s, wall = self._monotonic(), self._wall()
        offset_s = wall - elapsed_s
        if abs(offset_s - self._offset_s) <= self._slack_s:
            self._offset_s, self._doubted = offset_s, None
            return wall
        doubted = self._doubted
        if doubted is None or abs(offset_s - doubted[0]) > self._slack_s:
            self._doubted = (offset_s, elapsed_s)
        elif elapsed_s - doubted[1] >= self._doubt_s:
            self._offset_s, self._doubted = offset_s, None
            return wall
        return self._offset_s + elapsed_s


steady_clock = SteadyClock()
"""The steady clock of this process."""
