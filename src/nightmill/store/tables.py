"""All tables of the store: importing this module completes the metadata."""

from typing import Final

from nightmill.store import batch_watch_schema, schema, upstream_schema, webhook_schema
from nightmill.store.columns import metadata

__all__ = ["MODULES", "metadata"]

MODULES: Final = (schema, batch_watch_schema, upstream_schema, webhook_schema)
"""The modules that define tables."""
