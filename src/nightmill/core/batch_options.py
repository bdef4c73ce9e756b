"""What the reserved `nightmill` key on create sets for one batch. No I/O.

These options hold from the creation of the batch to its end. What may change meanwhile (priority, pause,
deadline, concurrency) is a field of `core.batch.Batch`.
"""

from enum import StrEnum

import msgspec


class OnInvalid(StrEnum):
    """What happens to a batch whose input file has invalid lines."""

    FAIL = "fail"
    """The batch fails and no line is sent, as at OpenAI."""
    SKIP = "skip"
    """The valid lines are sent; the invalid ones are in the error file."""


class BatchOptions(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The options of one batch.

    Args:
        on_invalid: what happens if some lines are invalid.
        canary: so many lines are sent first, and the rest only if few of them fail; 0 for none.
        canary_max_failed: the share of canary lines that may fail, from 0 to 1.
        canary_pause: whether the batch is paused when its canary has passed, so that a person decides.
        max_failures: the batch is stopped when more lines than this have failed: a count if 1 or more, a
            share of all lines if less than 1; None for no limit.
        max_output_tokens: the batch is stopped when its answers have more output tokens; None for no limit.
        max_cost: the batch is stopped when its answers cost more, in the currency of the prices; None for no
            limit.
        record_attempts: whether each attempt to send a line is recorded in a file.
    """

    on_invalid: OnInvalid = OnInvalid.FAIL
    canary: int = 0
    canary_max_failed: float = 0.1
    canary_pause: bool = False
    max_failures: float | None = None
    max_output_tokens: int | None = None
    max_cost: float | None = None
    record_attempts: bool = False


class StopReason(msgspec.Struct, frozen=True):
    """Why nightmill itself ended a batch before all of its lines were answered, for example a spent budget.

    Args:
        code: for programs, such as `max_failures`.
        message: one sentence for people, without content of the batch.
    """

    code: str
    message: str
