"""Alembic's entry. The connection comes from `nightmill.store.migrate`, its transaction already begun."""

from alembic import context

from nightmill.store.migrate import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
