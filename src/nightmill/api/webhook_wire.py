"""The shapes of webhook endpoints, as the official clients have them (docs/openai-behaviour.md 7), and of
deliveries. The published document of the API has neither.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from nightmill.api.wire import one_of
from nightmill.core.webhook import EVENT_TYPES, WebhookDelivery, WebhookEndpoint
from nightmill.core.webhook_url import LONGEST_URL

NAME_LENGTH = 256

_EventType = Annotated[str, AfterValidator(one_of("event_types", EVENT_TYPES))]
_EventTypes = Annotated[list[_EventType], Field(min_length=1)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_LENGTH)]
_Url = Annotated[str, StringConstraints(max_length=LONGEST_URL)]


class _Request(BaseModel):
    """Unknown keys are ignored, as in the published requests."""

    model_config = ConfigDict(extra="ignore", strict=True)


class CreateWebhookEndpointRequest(_Request):
    """A URL to which events are sent."""

    name: _Name
    url: _Url
    event_types: _EventTypes


class UpdateWebhookEndpointRequest(_Request):
    """What to change; fields that are missing stay."""

    name: _Name | None = None
    url: _Url | None = None
    event_types: _EventTypes | None = None


class RotateSecretRequest(_Request):
    """Whether the secret until now signs too, for 24 hours."""

    keep_old_secret_active_for_24_hours: bool = False


class TestWebhookEndpointRequest(_Request):
    """The event of which a sample is sent."""

    event_type: _EventType


def endpoint_on_wire(endpoint: WebhookEndpoint, *, with_secret: bool = False) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": list(endpoint.event_types),
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
        "signing_secret_hint": endpoint.secret_hint,
    }
    if with_secret:
        document["signing_secret"] = endpoint.signing_secret
    return document


def own_endpoint_on_wire(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """With what the official clients do not know."""
    return {**endpoint_on_wire(endpoint), "disabled_at": endpoint.disabled_at}


def delivery_on_wire(delivery: WebhookDelivery) -> dict[str, Any]:
    is_pending = delivery.state == "pending"
    return {
        "id": delivery.id,
        "object": "webhook_delivery",
        "webhook_endpoint_id": delivery.endpoint_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "batch_id": delivery.batch_id,
        "created_at": delivery.created_at,
        "state": delivery.state.value,
        "attempt_count": delivery.attempt_count,
        "next_attempt_at": int(delivery.next_at) if is_pending else None,
        "attempts": [
            {
                "at": int(attempt.at),
                "duration_s": attempt.duration_s,
                "status_code": attempt.status_code,
                "error": attempt.error,
            }
            for attempt in delivery.attempts
        ],
    }
