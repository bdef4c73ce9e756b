"""The sources of time and randomness that a process passes to its parts. No I/O.

Tests pass their own, so that no behaviour depends on the real clock.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clocks:
    """Sources of time and randomness.

    `wall` returns Unix seconds, `monotonic` seconds of a clock that never steps, `random` a number in [0, 1).
    """

    wall: Callable[[], float]
    monotonic: Callable[[], float]
    random: Callable[[], float]
