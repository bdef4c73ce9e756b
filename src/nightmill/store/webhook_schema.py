"""The tables of webhooks: endpoints, and what is delivered to them."""

from sqlalchemy import CheckConstraint, Column, Index, Table, Text

from nightmill.core.webhook import DeliveryState
from nightmill.store.columns import (
    counter_column,
    metadata,
    number_column,
    one_of,
    optional_number,
    optional_text,
    partial_index,
    seconds_column,
    sequence_column,
    text_column,
)

IS_PENDING = "state = 'pending'"
HAS_ENDED = "state <> 'pending'"

# `event_types` is a JSON list. The secrets sign deliveries, so they are kept as they are. A row stays when
# the endpoint is deleted, because cursors and deliveries name it.
webhook_endpoint = Table(
    "webhook_endpoint",
    metadata,
    sequence_column(),
    Column("id", Text, nullable=False, unique=True),
    text_column("project_id"),
    text_column("name"),
    text_column("url"),
    text_column("event_types"),
    number_column("created_at"),
    optional_number("updated_at"),
    optional_number("deleted_at"),
    text_column("signing_secret"),
    optional_text("old_signing_secret"),
    optional_number("old_secret_expires_at"),
    optional_number("disabled_at"),
    Index("webhook_endpoint_by_age", "project_id", "created_at", "sequence"),
    sqlite_autoincrement=True,
)

# `payload` is the exact text that is sent; `attempts` is a JSON list of the attempts so far.
webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    sequence_column(),
    Column("id", Text, nullable=False, unique=True),
    text_column("endpoint_id"),
    text_column("event_id"),
    text_column("event_type"),
    optional_text("batch_id"),
    text_column("payload"),
    number_column("created_at"),
    text_column("state"),
    counter_column("attempt_count"),
    optional_text("attempts"),
    seconds_column("next_at"),
    seconds_column("retry_until"),
    counter_column("token"),
    optional_text("worker_id"),
    seconds_column("lease_expires_at", nullable=True),
    CheckConstraint(one_of("state", DeliveryState), name="webhook_delivery_state"),
    CheckConstraint("(worker_id IS NULL) = (lease_expires_at IS NULL)", name="webhook_delivery_lease"),
    Index("webhook_delivery_by_endpoint", "endpoint_id", "sequence"),
    partial_index("webhook_delivery_pending", "next_at", where=IS_PENDING),
    partial_index("webhook_delivery_ended", "created_at", where=HAS_ENDED),
    sqlite_autoincrement=True,
)
