"""The closed list of events, and who hears them.

Roles emit events; logs subscribe (metrics and traces will). The wording of every log line is one function
here. Info: a batch or an upstream moved. Debug: a segment moved. Never a line per request, never a prompt,
an answer or a key.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from nightmill.core.batch import Batch
from nightmill.errors import UnavailableError
from nightmill.ids import BatchId


@dataclass(frozen=True, slots=True)
class BatchMoved:
    """A batch has a new status."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class SegmentLeased:
    batch_id: BatchId
    number: int
    token: int


@dataclass(frozen=True, slots=True)
class SegmentDone:
    batch_id: BatchId
    number: int
    token: int
    answered: int


@dataclass(frozen=True, slots=True)
class LeaseWasLost:
    batch_id: BatchId
    number: int
    token: int


@dataclass(frozen=True, slots=True)
class UpstreamPaused:
    """Sending to the upstream waits. `reason` is ours. `is_held`: until the operator mends something."""

    reason: str
    seconds: float
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamResumed:
    pass


@dataclass(frozen=True, slots=True)
class WritingPaused:
    """Answers can't be made durable, so nothing is sent. What was answered waits in memory."""

    reason: str


@dataclass(frozen=True, slots=True)
class WritingResumed:
    pass


@dataclass(frozen=True, slots=True)
class RoleFailed:
    """One turn of a role ended in an error it could not name; it goes on after a pause."""

    role: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class ProcessDied:
    """A child process ended unasked and is started again."""

    name: str
    exit_code: int


Event: TypeAlias = (
    BatchMoved
    | SegmentLeased
    | SegmentDone
    | LeaseWasLost
    | UpstreamPaused
    | UpstreamResumed
    | WritingPaused
    | WritingResumed
    | RoleFailed
    | ProcessDied
)
Emit: TypeAlias = Callable[[Event], None]

_logger = logging.getLogger("nightmill")


def log(event: Event) -> None:
    """The subscriber that writes log lines."""
    match event:
        case BatchMoved(batch):
            counts = f"{batch.tally.completed} completed, {batch.tally.failed} failed of {batch.total}"
            _logger.info("%s is %s (%s)", batch.id, batch.status, counts)
        case SegmentLeased(batch_id, number, token):
            _logger.debug("%s segment %d leased under token %d", batch_id, number, token)
        case SegmentDone(batch_id, number, token, answered):
            _logger.debug("%s segment %d done under token %d: %d lines", batch_id, number, token, answered)
        case LeaseWasLost(batch_id, number, token):
            _logger.warning("%s segment %d: the lease under token %d was lost", batch_id, number, token)
        case UpstreamPaused(reason, seconds, is_held=True):
            _logger.error(
                "every batch is HELD: the upstream answers no line, for %s; asked again in %.1f s",
                reason,
                seconds,
            )
        case UpstreamPaused(reason, seconds):
            _logger.warning("the upstream is paused for %.1f s: %s", seconds, reason)
        case UpstreamResumed():
            _logger.info("the upstream answers again")
        case WritingPaused(reason):
            _logger.error("every batch waits, for answers can't be written: %s", reason)
        case WritingResumed():
            _logger.info("answers are written again")
        case RoleFailed(role, UnavailableError() as error):
            _logger.warning("the %s waits: %s", role, error)
        case RoleFailed(role, error):
            _logger.error("the %s failed and goes on: %s", role, type(error).__name__, exc_info=error)
        case ProcessDied(name, exit_code):
            _logger.error("the %s process ended with %d and is started again", name, exit_code)
        case _:
            assert_never(event)
