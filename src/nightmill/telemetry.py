"""The closed list of events that roles emit, and the subscriber that writes log lines.

The wording of every log line is in `log` and the functions below it, its fields for programs in `fields_of`.
Info: the state of a batch or an upstream changed. Debug: the state of a segment changed. No log line is
written per request, and none holds a prompt, an answer or a key.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, assert_never

from nightmill.core.batch import Batch
from nightmill.core.webhook import DeliveryState
from nightmill.errors import UnavailableError
from nightmill.ids import BatchId


@dataclass(frozen=True, slots=True)
class BatchMoved:
    """A batch has a new status."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class BatchLimited:
    """Something else than before limits a batch; `sentence` says what."""

    batch_id: BatchId
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class SegmentLeased:
    """This process has leased a segment."""

    batch_id: BatchId
    number: int
    token: int


@dataclass(frozen=True, slots=True)
class SegmentDone:
    """A lease has ended and its answers are counted; `answered` lines of the segment have an answer."""

    batch_id: BatchId
    number: int
    token: int
    answered: int


@dataclass(frozen=True, slots=True)
class LeaseWasLost:
    """Another process may hold the segment; what this process still had for the segment is dropped."""

    batch_id: BatchId
    number: int
    token: int


@dataclass(frozen=True, slots=True)
class UpstreamHeld:
    """No line, or only one at a time, is sent to a model of an upstream.

    Args:
        upstream: the name of the upstream.
        model: the model that is held; None for lines that name none, and for all models of the upstream.
        reason: a status and an error code or a few own words; never the upstream's message.
        since: Unix seconds.
        until: Unix seconds of the next attempt.
        needs_operator: whether a setting has to change before any line can be answered.
    """

    upstream: str
    model: str | None
    reason: str
    since: float
    until: float
    needs_operator: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamResumed:
    """A model that was held for `held_s` seconds is sent lines again."""

    upstream: str
    model: str | None
    held_s: float


@dataclass(frozen=True, slots=True)
class UpstreamChanged:
    """An upstream was changed at run time.

    Args:
        state: what is wanted of the upstream, as `UpstreamState`.
        revision: of its setting; None when the upstream is no longer there.
    """

    upstream: str
    state: str
    revision: int | None


@dataclass(frozen=True, slots=True)
class UpstreamInvalid:
    """The stored setting of an upstream can't be used; `reason` holds no key."""

    upstream: str
    reason: str


@dataclass(frozen=True, slots=True)
class WritingPaused:
    """Answers can't be made durable, so nothing is sent. Answers that arrived wait in memory."""

    reason: str


@dataclass(frozen=True, slots=True)
class WritingResumed:
    """Answers are made durable again."""


@dataclass(frozen=True, slots=True)
class WebhookAttempted:
    """A delivery of a webhook was attempted.

    Args:
        place: scheme, host and port of the receiver; the rest of the URL may hold a key.
        state: of the delivery after the attempt, as `DeliveryState`.
        reason: the status of the answer, or why there is none; never the receiver's words.
    """

    delivery_id: str
    event_type: str
    place: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class RoleFailed:
    """One turn of a role ended in an error. The role goes on after a pause."""

    role: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class ProcessDied:
    """A child process ended without being asked to, and is started again."""

    name: str
    exit_code: int


Event: TypeAlias = (
    BatchMoved
    | BatchLimited
    | SegmentLeased
    | SegmentDone
    | LeaseWasLost
    | UpstreamHeld
    | UpstreamResumed
    | UpstreamChanged
    | UpstreamInvalid
    | WritingPaused
    | WritingResumed
    | WebhookAttempted
    | RoleFailed
    | ProcessDied
)
Emit: TypeAlias = Callable[[Event], None]

FIELDS = "nightmill_fields"
"""The attribute of a log record that has the fields of its event."""
_LONGEST_MODEL = 80
_MINUTE_S = 60.0
_logger = logging.getLogger("nightmill")


def log(event: Event) -> None:
    """The subscriber that writes log lines."""
    extra = {FIELDS: fields_of(event)}
    match event:
        case BatchMoved(batch):
            ok, failed = batch.tally.completed, batch.tally.failed
            counts = f": {ok + failed:,} of {batch.total:,} done ({ok:,} ok, {failed:,} failed)"
            _logger.info("%s is %s%s", batch.id, batch.status, counts if batch.total else "", extra=extra)
        case BatchLimited(batch_id, _, sentence):
            _logger.info("%s: %s", batch_id, sentence, extra=extra)
        case SegmentLeased(batch_id, number, token):
            _logger.debug("%s segment %d leased under token %d", batch_id, number, token, extra=extra)
        case SegmentDone(batch_id, number, token, answered):
            _logger.debug(
                "%s segment %d done under token %d: %d lines", batch_id, number, token, answered, extra=extra
            )
        case LeaseWasLost(batch_id, number, token):
            _logger.warning(
                "%s segment %d: the lease under token %d was lost", batch_id, number, token, extra=extra
            )
        case UpstreamHeld():
            level = logging.ERROR if event.needs_operator else logging.WARNING
            _logger.log(level, "%s", held_and_next_text(event), extra=extra)
        case UpstreamResumed():
            _logger.info("%s", resumed_text(event), extra=extra)
        case UpstreamChanged(upstream, state, revision):
            of_revision = "" if revision is None else f" (revision {revision})"
            _logger.info("upstream %s is %s%s", upstream, state, of_revision, extra=extra)
        case UpstreamInvalid(upstream, reason):
            _logger.error("the setting of upstream %s can't be used: %s", upstream, reason, extra=extra)
        case WritingPaused(reason):
            _logger.error("every batch waits, for answers can't be written: %s", reason, extra=extra)
        case WritingResumed():
            _logger.info("answers are written again", extra=extra)
        case WebhookAttempted():
            level, line = _attempt_line(event)
            _logger.log(level, "%s", line, extra=extra)
        case RoleFailed(role, UnavailableError() as error):
            _logger.warning("the %s waits: %s", role, error, extra=extra)
        case RoleFailed(role, error):
            _logger.error(
                "the %s failed and goes on: %s", role, type(error).__name__, exc_info=error, extra=extra
            )
        case ProcessDied(name, exit_code):
            _logger.error("the %s process ended with %d and is started again", name, exit_code, extra=extra)
        case _:
            assert_never(event)


def _attempt_line(event: WebhookAttempted) -> tuple[int, str]:
    what = f"{event.event_type} as {event.delivery_id} to {event.place}"
    match event.state:
        case DeliveryState.DELIVERED:
            return logging.DEBUG, f"webhook {what} is delivered: {event.reason}"
        case DeliveryState.PENDING:
            return logging.INFO, f"webhook {what} is sent again later: {event.reason}"
        case _:
            return logging.WARNING, f"webhook {what} is given up: {event.reason}"


def fields_of(event: Event) -> dict[str, Any]:
    """The values of an event by name, for log lines that programs read."""
    match event:
        case BatchMoved(batch):
            named = {"batch_id": batch.id, "project_id": batch.project_id, "status": batch.status.value}
            counts = {"completed": batch.tally.completed, "failed": batch.tally.failed, "total": batch.total}
            fields: dict[str, Any] = named | counts
        case BatchLimited(batch_id, code, _):
            fields = {"batch_id": batch_id, "code": code}
        case WebhookAttempted():
            fields = {"delivery_id": event.delivery_id, "type": event.event_type, "state": event.state}
        case SegmentLeased(batch_id, number, token) | LeaseWasLost(batch_id, number, token):
            fields = {"batch_id": batch_id, "segment": number, "token": token}
        case SegmentDone(batch_id, number, token, answered):
            fields = {"batch_id": batch_id, "segment": number, "token": token, "answered": answered}
        case UpstreamHeld(upstream, model, reason, needs_operator=needs_operator):
            fields = {"upstream": upstream, "model": shown_model(model), "reason": reason}
            fields |= {"since": event.since, "until": event.until, "needs_operator": needs_operator}
        case UpstreamResumed(upstream, model, held_s):
            fields = {"upstream": upstream, "model": shown_model(model), "held_s": held_s}
        case UpstreamChanged(upstream, state, revision):
            fields = {"upstream": upstream, "state": state, "revision": revision}
        case UpstreamInvalid(upstream, reason):
            fields = {"upstream": upstream, "reason": reason}
        case WritingPaused(reason):
            fields = {"reason": reason}
        case WritingResumed():
            fields = {}
        case RoleFailed(role, error):
            fields = {"failed_role": role, "error": type(error).__name__}
        case ProcessDied(name, exit_code):
            fields = {"process": name, "exit_code": exit_code}
        case _:
            assert_never(event)
    return {"event": type(event).__name__, **fields}


def held_text(event: UpstreamHeld) -> str:
    """What is held, why and since when, in one line."""
    target, since = _target_text(event.upstream, event.model), _time_text(event.since)
    return f"{target} is held since {since} UTC: {event.reason}"


def held_and_next_text(event: UpstreamHeld) -> str:
    """As `held_text`, with the next attempt."""
    until = _time_text(event.until, day_of=event.since)
    return f"{held_text(event)}; next attempt at {until} UTC"


def resumed_text(event: UpstreamResumed) -> str:
    """What is no longer held, and for how long it was."""
    seconds = event.held_s
    span = f"{seconds:.1f} s" if seconds < _MINUTE_S else f"{timedelta(seconds=round(seconds))} hours"
    return f"{_target_text(event.upstream, event.model)} is no longer held, after {span}"


def shown_model(model: str | None) -> str | None:
    """A model's name for logs and reports: of bounded length, on one line. Clients choose the name."""
    if model is None:
        return None
    shown = "".join(character if character.isprintable() else "?" for character in model[:_LONGEST_MODEL])
    return shown if len(model) <= _LONGEST_MODEL else f"{shown}..."


def _target_text(upstream: str, model: str | None) -> str:
    if model is None:
        return f"upstream '{upstream}'"
    return f"model '{shown_model(model)}' of upstream '{upstream}'"


def _time_text(unix_s: float, *, day_of: float | None = None) -> str:
    """The time of day; with the date unless it is the date of `day_of`."""
    moment = datetime.fromtimestamp(unix_s, UTC)
    is_same_day = day_of is not None and datetime.fromtimestamp(day_of, UTC).date() == moment.date()
    return moment.strftime("%H:%M:%S" if is_same_day else "%Y-%m-%d %H:%M:%S")
