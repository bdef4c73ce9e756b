"""Webhook events, endpoints and deliveries (docs/openai-behaviour.md 7). No I/O.

An event says that a batch has ended. Each endpoint of the project that asked for its type gets one delivery
of it. A delivery is attempted until an attempt is answered with 2xx, or for 72 hours.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Final

from nightmill.core.batch import Status
from nightmill.ids import BatchId, ProjectId

SENT_EVENT_TYPES: Final = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")
"""The events that a server of batches has."""
EVENT_TYPES: Final = (
    *SENT_EVENT_TYPES,
    "response.completed",
    "response.failed",
    "response.cancelled",
    "response.incomplete",
    "eval.run.succeeded",
    "eval.run.failed",
    "eval.run.canceled",
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "realtime.call.incoming",
    "video.completed",
    "video.failed",
    "agent.environment.ready",
    "agent.environment.failed",
    "agent.environment.suspended",
    "agent.environment.expired",
    "agent.session.created",
    "agent.session.action_required",
    "agent.session.in_progress",
    "agent.session.idle",
    "agent.session.failed",
    "safety.alert.created",
)
"""The published events: an endpoint may ask for each of them."""
OLD_SECRET_KEPT_S: Final = 86_400
RETRY_S: Final = 72 * 3_600
"""How long a delivery is attempted, from the event or from the request to send it again."""
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 4 * 3_600.0
_PAUSE_SPREAD: Final = 0.2
_KEPT_ATTEMPTS: Final = 50
_EVENT_OF: Final = {
    Status.COMPLETED: "batch.completed",
    Status.FAILED: "batch.failed",
    Status.EXPIRED: "batch.expired",
    Status.CANCELLED: "batch.cancelled",
}


class DeliveryState(StrEnum):
    """What became of the delivery of one event to one endpoint."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    """A URL of a project to which events are sent. Times are Unix seconds.

    Args:
        signing_secret: `whsec_` and the key in base64.
        old_signing_secret: the secret before the last rotation, which signs too until
            `old_secret_expires_at`.
        disabled_at: since when it gets no events; None while it gets them.
    """

    id: str
    project_id: ProjectId
    name: str
    url: str = field(repr=False)
    event_types: tuple[str, ...]
    created_at: int
    updated_at: int
    signing_secret: str = field(repr=False)
    old_signing_secret: str | None = field(default=None, repr=False)
    old_secret_expires_at: int | None = None
    disabled_at: int | None = None

    @property
    def secret_hint(self) -> str:
        return f"whsec_...{self.signing_secret[-4:]}"

    def secrets_at(self, now: float) -> tuple[str, ...]:
        """The secrets that sign a delivery, the newest first."""
        if self.old_signing_secret is None or (self.old_secret_expires_at or 0) <= now:
            return (self.signing_secret,)
        return self.signing_secret, self.old_signing_secret


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempt:
    """One POST: its HTTP status, or the reason why there is none."""

    at: float
    duration_s: float
    status_code: int | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """The delivery of one event to one endpoint.

    Args:
        id: the same in each attempt, so that a receiver can drop repetitions.
        payload: the exact text that is sent.
        attempt_count: since the event, or since the request to send it again.
        next_at: Unix seconds of the next attempt, if it is pending.
        retry_until: Unix seconds of the last attempt.
    """

    id: str
    endpoint_id: str
    event_id: str
    event_type: str
    batch_id: BatchId | None
    payload: str = field(repr=False)
    created_at: int
    state: DeliveryState
    attempt_count: int
    attempts: tuple[DeliveryAttempt, ...]
    next_at: float
    retry_until: float

    def with_attempt(self, attempt: DeliveryAttempt) -> tuple[DeliveryAttempt, ...]:
        """The last attempts, this one included."""
        return (*self.attempts, attempt)[-_KEPT_ATTEMPTS:]

    def after(self, attempt: DeliveryAttempt, *, now: float, random: float) -> tuple[DeliveryState, float]:
        """The state after an attempt, and the time of the next one if the delivery is still pending.

        Args:
            random: a number in [0, 1).
        """
        if attempt.is_success:
            return DeliveryState.DELIVERED, now
        if now >= self.retry_until:
            return DeliveryState.FAILED, now
        next_at = now + pause_s(self.attempt_count + 1, random=random)
        return DeliveryState.PENDING, min(next_at, self.retry_until)


def pause_s(attempt_count: int, *, random: float) -> float:
    """Seconds between a failed attempt and the next: doubled each time, a fifth more or less.

    Args:
        attempt_count: how many attempts have failed, from 1.
        random: a number in [0, 1).
    """
    doublings = min(attempt_count - 1, 32)
    pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**doublings)
    return pause * (1 - _PAUSE_SPREAD + 2 * _PAUSE_SPREAD * random)


def event_type_of(status: Status) -> str | None:
    """The event of a batch that reaches the status; None for a status that has none."""
    return _EVENT_OF.get(status)


def event_id_of(batch_id: BatchId, event_type: str) -> str:
    """Derived, so that a transaction that is repeated makes the same event."""
    return f"evt_{_derived(batch_id, event_type)}"


def delivery_id_of(event_id: str, endpoint_id: str) -> str:
    return f"wh_{_derived(event_id, endpoint_id)}"


def payload_of(event_id: str, event_type: str, *, created_at: int, subject_id: str) -> str:
    """The text of an event: what ended, and when."""
    event = {
        "id": event_id,
        "object": "event",
        "type": event_type,
        "created_at": created_at,
        "data": {"id": subject_id},
    }
    return json.dumps(event, separators=(",", ":"))


def asks_for(event_types: Sequence[str], event_type: str) -> bool:
    """Whether an endpoint with these event types gets the event."""
    return event_type in event_types


def _derived(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
