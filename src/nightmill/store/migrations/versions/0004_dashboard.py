"""What the dashboard needs: the secret that signs its cookies, samples of upstreams, what processes are."""

from alembic import op
from sqlalchemy import BigInteger, Column, Double, Index, MetaData, PrimaryKeyConstraint, Table, Text, text

from nightmill.store.migrate import create_tables

revision = "0004"
down_revision = "0003"

_metadata = MetaData()

Table("secret", _metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

# --- samples of upstreams ---

_SAMPLE_COUNTS = ("in_flight", "waiting", "answered", "refused", "failed", "output_tokens")

Table(
    "upstream_sample",
    _metadata,
    Column("upstream", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("concurrency_limit", BigInteger),
    Column("rule", Text),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in _SAMPLE_COUNTS),
    Column("engine_running", BigInteger),
    Column("engine_waiting", BigInteger),
    Column("kv_use", Double),
    PrimaryKeyConstraint("upstream", "at"),
    Index("upstream_sample_by_time", "at"),
)


def upgrade() -> None:
    create_tables(op.get_bind(), _metadata)
    op.add_column("process_counts", Column("about", Text))
