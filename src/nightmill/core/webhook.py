"""Webhook events, endpoints and deliveries (docs/openai-behaviour.md 7). No I/O."""

from enum import StrEnum


class DeliveryState(StrEnum):
    """What became of the delivery of one event to one endpoint."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
