"""The attempts of one upstream that share a concurrency limit: those of all its models, or of one model."""

from typing import Final

from nightmill.core.batch import Usage
from nightmill.core.concurrency import Slots


class SlotGroup:
    """Attempts that share slots, in one worker.

    Args:
        slots: the worker's grant.
        model: the model whose attempts these are, None for all models of the upstream.

    Attributes:
        in_flight: attempts in flight, cheap requests included.
        settled: lines that were settled.
        tokens: tokens of their answers.
    """

    __slots__ = (
        "_rate_count",
        "_rate_since",
        "_settled_ahead",
        "in_flight",
        "model",
        "settled",
        "slots",
        "tokens",
    )

    def __init__(self, slots: Slots, model: str | None = None) -> None:
        self.slots = slots
        self.model = model
        self.in_flight = 0
        self.settled = 0
        self.tokens = 0
        self._rate_since = 0.0
        self._rate_count = 0
        self._settled_ahead = 0

    def room(self, now: float) -> int:
        """How many attempts may start now."""
        return self.slots.limit(now) - self.in_flight

    def note_answer(self, usage: Usage | None, duration_s: float) -> None:
        """Notes an answered line."""
        tokens = 0 if usage is None else usage.total_tokens
        self.settled += 1
        self.tokens += tokens
        self.slots.note_answers(1, tokens=tokens, busy_s=duration_s)

    def lines_ahead(self, now: float, *, ahead_s: float) -> int:
        """How many lines the worker should keep leased: twice the granted slots, or twice the lines that are
        settled in `ahead_s`, whichever is more."""
        elapsed_s = now - self._rate_since
        if elapsed_s > ahead_s:
            self._settled_ahead = int((self.settled - self._rate_count) / elapsed_s * ahead_s)
            self._rate_since, self._rate_count = now, self.settled
        return 2 * max(1, self.slots.limit(now), self._settled_ahead)


NO_GROUP: Final = SlotGroup(Slots("", concurrency_limit=1, ttl_s=0.0, ask_every_s=0.0))
"""Of lines that were never sent."""
