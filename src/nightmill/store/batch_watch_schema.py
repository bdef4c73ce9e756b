"""The tables of what is seen of a batch: history, samples of its progress, the state of lines, and links."""

from sqlalchemy import Index, PrimaryKeyConstraint, Table

from nightmill.store.columns import (
    counter_column,
    metadata,
    number_column,
    optional_text,
    seconds_column,
    sequence_column,
    text_column,
)

# The history of each batch. `detail` is a JSON object; it holds no prompt and no answer.
batch_event = Table(
    "batch_event",
    metadata,
    sequence_column(),
    text_column("batch_id"),
    seconds_column("at"),
    text_column("kind"),
    optional_text("actor"),
    optional_text("detail"),
    Index("batch_event_by_batch", "batch_id", "sequence"),
    sqlite_autoincrement=True,
)

# How far a batch was at a time; the sums of all its segments. Thinned out as a batch grows older.
batch_sample = Table(
    "batch_sample",
    metadata,
    text_column("batch_id"),
    seconds_column("at"),
    *(counter_column(name) for name in ("completed", "failed", "input_tokens", "output_tokens", "in_flight")),
    PrimaryKeyConstraint("batch_id", "at"),
)

# What the observer says of an unfinished batch. `document` is the JSON of a `BatchReport`.
batch_report = Table(
    "batch_report",
    metadata,
    text_column("batch_id"),
    text_column("document"),
    seconds_column("reported_at"),
    PrimaryKeyConstraint("batch_id"),
)

# Lines of a leased segment as its worker sees them, while a client asks. `document` is JSON.
line_report = Table(
    "line_report",
    metadata,
    text_column("batch_id"),
    number_column("number"),
    number_column("token"),
    text_column("document"),
    seconds_column("reported_at"),
    PrimaryKeyConstraint("batch_id", "number"),
)

# A batch that repeats lines of other batches: its lines `first` to `first + count` are lines of `origin_id`.
batch_origin = Table(
    "batch_origin",
    metadata,
    text_column("batch_id"),
    text_column("origin_id"),
    number_column("first"),
    number_column("count"),
    PrimaryKeyConstraint("batch_id", "origin_id"),
    Index("batch_origin_by_origin", "origin_id"),
)
