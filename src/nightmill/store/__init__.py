"""The store: one relational database holds the truth. `protocol` names its verbs."""

from nightmill.store.migrate import migrate
from nightmill.store.protocol import Backlog, Duty, Idempotency, Page, SliceDuty, Store
from nightmill.store.sql import SqlStore, open_store

__all__ = [
    "Backlog",
    "Duty",
    "Idempotency",
    "Page",
    "SliceDuty",
    "SqlStore",
    "Store",
    "migrate",
    "open_store",
]
