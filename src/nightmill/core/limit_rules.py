"""The named rules of the adaptive concurrency limit, with a sentence for each.

`core/adaptive_limit.py` applies the rules; a limit carries the name of the rule that set it last.
"""

from enum import StrEnum
from typing import Final


class LimitRule(StrEnum):
    """Why an adaptive limit has its present value. The value is the name that users see."""

    START = "start"
    GROW = "grow"
    PROBE = "probe"
    SHRINK = "probe: lower"
    CONFIRM = "confirm"
    REVERT = "revert"
    ACKNOWLEDGEMENT = "hold: acknowledgement"
    INPUT_BOUND = "hold: input bound"
    PLATEAU = "hold: plateau"
    QUEUE = "hold: engine queue"
    CEILING = "ceiling reached"
    REFUSED = "cut: refused"
    TIMED_OUT = "cut: timed out"
    PRESSURE = "cut: KV pressure"
    STALLED = "cut: stalled"
    STEP_DOWN = "step down: engine queue"
    YIELD = "yield: online traffic"
    SHARE = "hold: share"

    @property
    def sentence(self) -> str:
        """What the rule means, for people."""
        return _SENTENCES[self]


_SENTENCES: Final[dict[LimitRule, str]] = {
    LimitRule.START: "Nothing has been measured at this limit yet.",
    LimitRule.GROW: "Goodput grew with the limit, or nothing speaks against more, so the limit grows.",
    LimitRule.PROBE: "A higher limit is tried after a pause; it stays only if goodput rises.",
    LimitRule.SHRINK: "A lower limit is tried; it stays only if goodput is kept.",
    LimitRule.CONFIRM: "The limit that was tried is at least as good as the one before, and stays.",
    LimitRule.REVERT: "The limit that was tried brought nothing, so the limit before is in effect again.",
    LimitRule.ACKNOWLEDGEMENT: (
        "Attempts that were sent under the old limit are still in flight; their answers are no evidence."
    ),
    LimitRule.INPUT_BOUND: "There are too few lines or senders to use the limit, so nothing can be learned.",
    LimitRule.PLATEAU: "A higher limit brought no more goodput; the next try follows after a pause.",
    LimitRule.QUEUE: "The engine has a short queue, so it is fully used.",
    LimitRule.CEILING: "The limit is the highest that the settings allow.",
    LimitRule.REFUSED: "Attempts were refused (429, 503 or 529); the limit falls to what was accepted.",
    LimitRule.TIMED_OUT: "Attempts timed out, so the limit is halved.",
    LimitRule.PRESSURE: "The KV cache is full and work in it was lost, so the limit falls.",
    LimitRule.STALLED: "Attempts are in flight and none was answered for long, so the limit is halved.",
    LimitRule.STEP_DOWN: "Requests wait in the engine's queue, so the limit falls to what the engine runs.",
    LimitRule.YIELD: "Requests of other clients wait in the engine, so the limit falls to make room.",
    LimitRule.SHARE: "`share` applies: the limit is that part of the number that is set or was found.",
}
