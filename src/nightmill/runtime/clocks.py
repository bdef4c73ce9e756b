"""The wall clock, not believed at once when it steps.

Duty: the time that deadlines, leases, expiries and stamps are counted in. Promise: a step in either direction
that is taken back within `doubt_s` changes nothing; one that lasts is followed. Not its duty: order within a
batch (`Batch.after` keeps its stamps from going back) and what is measured by the monotonic clock anyway.
"""

import time
from collections.abc import Callable

DOUBT_S = 60.0
SLACK_S = 1.0


class SteadyClock:
    """Unix seconds. Between steps it is the wall clock; while it doubts one, it goes on as before.

    Args:
        doubt_s: how long a step must last before it is followed.
        slack_s: less than this is drift or a clock being disciplined, and followed at once.
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
        """Any thread may ask: each field is read once and replaced whole."""
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
"""This process's."""
