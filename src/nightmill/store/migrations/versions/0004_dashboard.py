"""What the dashboard needs: the secret that signs its cookies, keys that may only read, and webhooks that are
disabled.
"""

from alembic import op
from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, MetaData, Table, Text

from nightmill.store.migrate import create_tables

revision = "0004"
down_revision = "0003"

_metadata = MetaData()

Table("secret", _metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

# --- the scopes of keys -------------------------------------------------------------------------------------

_SCOPE_IS_KNOWN = "scope IN ('project', 'admin', 'read')"
_COPY = """
INSERT INTO api_key (sequence, id, project_id, name, digest, hint, created_at, revoked_at, scope)
SELECT sequence, id, project_id, name, digest, hint, created_at, revoked_at, scope FROM old_api_key"""
_keys = MetaData()

Table(
    "api_key",
    _keys,
    Column("sequence", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("project_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("scope", Text, nullable=False),
    CheckConstraint(_SCOPE_IS_KNOWN, name="api_key_scope"),
    sqlite_autoincrement=True,
)


def upgrade() -> None:
    create_tables(op.get_bind(), _metadata)
    _allow_keys_that_read()
    op.add_column("webhook_endpoint", Column("disabled_at", BigInteger))


def _allow_keys_that_read() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint("api_key_scope", "api_key")
        op.create_check_constraint("api_key_scope", "api_key", _SCOPE_IS_KNOWN)
        return
    # SQLite can't change a rule of a table.
    op.execute("ALTER TABLE api_key RENAME TO old_api_key")
    create_tables(op.get_bind(), _keys)
    op.execute(_COPY)
    op.drop_table("old_api_key")
