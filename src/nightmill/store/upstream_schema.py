"""The tables of upstreams: limits, grants, settings at run time, and reports and counts of workers."""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, PrimaryKeyConstraint, Table, Text

from nightmill.core.upstream_setting import UpstreamState
from nightmill.store.columns import (
    counter_column,
    metadata,
    number_column,
    one_of,
    optional_number,
    optional_text,
    seconds_column,
    text_column,
)

# The row is the lock for the slot requests of all workers. `limit_state` is the JSON of a `LimitState`.
upstream = Table("upstream", metadata, Column("name", Text, primary_key=True), optional_text("limit_state"))

upstream_grant = Table(
    "upstream_grant",
    metadata,
    Column("upstream", Text, ForeignKey("upstream.name"), nullable=False),
    text_column("worker_id"),
    number_column("slots"),
    number_column("wanted"),
    seconds_column("expires_at"),
    PrimaryKeyConstraint("upstream", "worker_id"),
    CheckConstraint("slots >= 0 AND wanted >= 0", name="upstream_grant_size"),
    Index("upstream_grant_by_worker", "worker_id"),
)

# `document` is the JSON of the upstream's settings, its key included; NULL means as in the settings file.
upstream_setting = Table(
    "upstream_setting",
    metadata,
    Column("name", Text, primary_key=True),
    optional_text("document"),
    text_column("state"),
    number_column("revision"),
    seconds_column("changed_at"),
    CheckConstraint(one_of("state", UpstreamState), name="upstream_setting_state"),
    CheckConstraint("revision > 0", name="upstream_setting_revision"),
)

# `document` is the JSON of an `UpstreamReport`.
upstream_report = Table(
    "upstream_report",
    metadata,
    text_column("upstream"),
    text_column("worker_id"),
    text_column("document"),
    seconds_column("reported_at"),
    PrimaryKeyConstraint("upstream", "worker_id"),
    Index("upstream_report_by_time", "reported_at"),
)

# An upstream at a time; see `core.upstream_sample`. Thinned out as the samples grow older.
upstream_sample = Table(
    "upstream_sample",
    metadata,
    text_column("upstream"),
    seconds_column("at"),
    optional_number("concurrency_limit"),
    optional_text("rule"),
    *(
        counter_column(name)
        for name in ("in_flight", "waiting", "answered", "refused", "failed", "output_tokens")
    ),
    optional_number("engine_running"),
    optional_number("engine_waiting"),
    seconds_column("kv_use", nullable=True),
    PrimaryKeyConstraint("upstream", "at"),
    Index("upstream_sample_by_time", "at"),
)

# `document` is the JSON of a `ProcessCounts`; see `store.counts`. `about` is the JSON of a `ProcessInfo`.
process_counts = Table(
    "process_counts",
    metadata,
    Column("process_id", Text, primary_key=True),
    text_column("document"),
    seconds_column("reported_at"),
    optional_text("about"),
)
