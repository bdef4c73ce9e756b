"""The bounds of every pause before an upstream is called again. No I/O."""

from typing import Final

BACKOFF_BASE_S: Final = 0.5

BACKOFF_CAP_S: Final = 60.0

PAUSE_FLOOR_S: Final = 0.1
"""The shortest pause before a line is sent again, and before a probe."""

RETRY_AFTER_CAP_S: Final = 600.0
"""The longest Retry-After that is obeyed; a longer value is cut to this."""


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
