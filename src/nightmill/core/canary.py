"""The canary: the first lines of a batch, which decide whether the others are sent. No I/O."""

from dataclasses import dataclass
from enum import StrEnum

from nightmill.core.batch_options import StopReason


class CanaryState(StrEnum):
    """How far a canary is."""

    RUNNING = "running"
    PASSED = "passed"
    STOPPED = "stopped"
    """Too many of its lines failed, and nightmill stopped the batch."""
    WHOLE = "whole"
    """The batch has no line behind the canary."""
    ENDED = "ended"
    """The batch ended before the canary did, for example because it was cancelled."""


@dataclass(frozen=True, slots=True)
class Canary:
    """The canary of a batch, and how its lines were answered so far.

    Args:
        lines: of the canary.
        max_failed: the share of the lines that may fail.
    """

    lines: int
    completed: int
    failed: int
    max_failed: float

    @property
    def state(self) -> CanaryState:
        """Stopped as soon as too many lines have failed; passed once all are answered."""
        if self.failed > self.max_failed * self.lines:
            return CanaryState.STOPPED
        return CanaryState.PASSED if self.completed + self.failed == self.lines else CanaryState.RUNNING

    @property
    def stop_reason(self) -> StopReason:
        """Why the batch is stopped, if it is."""
        may = f"{self.max_failed * 100:g}%"
        message = f"{self.failed} of its first {self.lines} lines failed, and {may} may."
        return StopReason("canary_failed", message)
