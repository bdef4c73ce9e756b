"""When to ask for a batch again while it runs, and when to give up. No I/O.

Polls are frequent at first, since a small batch on a local server ends within a second, and then become rare.
"""

from collections.abc import Callable
from time import monotonic
from typing import Final

from nightmill.client.api import Batch
from nightmill.errors import UnavailableError

# Beyond the completion window: writing the files, and clocks that differ.
AFTER_WINDOW_S: Final = 3_600.0
DAY_S: Final = 86_400
POLL_GROWTH: Final = 1.4


class Polling:
    """The pauses between the polls of one batch.

    Args:
        batch: as it was when waiting began.
        timeout_s: None for an hour longer than the batch's own window.
        patience_s: how long the server may be away.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        timeout_s: float | None,
        first_s: float,
        longest_s: float,
        patience_s: float,
        now: Callable[[], float] = monotonic,
    ) -> None:
        if timeout_s is None:
            timeout_s = (batch.expires_at or batch.created_at + DAY_S) - batch.created_at + AFTER_WINDOW_S
        self._now = now
        self._timeout_s = timeout_s
        self._give_up_at = now() + timeout_s
        self._seen_at = now()
        self._pause_s, self._longest_s, self._patience_s = first_s, longest_s, patience_s

    def pause_s(self, batch: Batch) -> float:
        """Raises UnavailableError when the time is over."""
        left_s = self._give_up_at - self._now()
        if left_s <= 0:
            message = f"{batch.id} is still {batch.status} after {self._timeout_s:g} s; wait for it again"
            raise UnavailableError(message)
        pause_s = min(self._pause_s, left_s)
        self._pause_s = min(self._pause_s * POLL_GROWTH, self._longest_s)
        return pause_s

    def succeeded(self) -> None:
        self._seen_at = self._now()

    @property
    def is_hopeless(self) -> bool:
        """Whether the server has been away for longer than `patience_s`."""
        return self._now() - self._seen_at > self._patience_s
