"""The store: one relational database holds the truth. `protocol` names its verbs."""

from nightmill.store.protocol import ApiKey, Backlog, Duty, Idempotency, Page, Store

__all__ = ["ApiKey", "Backlog", "Duty", "Idempotency", "Page", "Store"]
