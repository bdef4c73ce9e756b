"""Every metric of `/metrics`: name, kind, help and labels. The docs page is printed from the list.

Names follow Prometheus' convention: base units, `_total` for counters. No label names a batch, key or line.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class MetricKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Args:
        name: of a counter, with its `_total`.
        labels: in the order in which values are given.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind is MetricKind.HISTOGRAM:
            return tuple(self.name + suffix for suffix in ("_bucket", "_count", "_sum"))
        return (self.name,)


_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_MODEL = ("upstream", "model")

BUILD: Final = Metric("nightmill_build", _G, "Always 1; the label is the version.", ("version",))
DATABASE_UP: Final = Metric("nightmill_database_up", _G, "1 if the database answered this scrape, else 0.")
DATABASE_SECONDS: Final = Metric(
    "nightmill_database_query_seconds", _G, "How long the queries of this scrape took."
)
DISK_FREE: Final = Metric(
    "nightmill_disk_free_bytes", _G, "Free bytes of the disk of the data folder; absent with an object store."
)
DISK_RESERVED: Final = Metric(
    "nightmill_disk_reserved_bytes", _G, "The setting retention.free_bytes: with less free, writing pauses."
)
BATCHES: Final = Metric("nightmill_batches", _G, "Unfinished batches, by status.", ("status",))
OLDEST: Final = Metric(
    "nightmill_oldest_batch_age_seconds", _G, "Age of the oldest unfinished batch; 0 without any."
)
BATCHES_ENDED: Final = Metric("nightmill_batches_ended_total", _C, "Ended batches, by status.", ("status",))
SEGMENTS: Final = Metric(
    "nightmill_segments", _G, "Segments that wait for a worker or are leased by one.", ("state",)
)
INTAKE: Final = Metric(
    "nightmill_intake_seconds", _H, "From the creation of a batch to the end of its validation."
)
FINALIZING: Final = Metric(
    "nightmill_finalizing_seconds", _H, "From the last answer of a batch, or its cancellation, to its files."
)
WEBHOOKS: Final = Metric(
    "nightmill_webhook_deliveries_total", _C, "Attempts to deliver a webhook, by result.", ("result",)
)
HELD: Final = Metric(
    "nightmill_upstream_held",
    _G,
    "1 while a model of an upstream is held; an empty model is every model.",
    (*_MODEL, "needs_operator"),
)
IN_FLIGHT: Final = Metric("nightmill_upstream_in_flight", _G, "Attempts in flight.", _MODEL)
WAITING: Final = Metric(
    "nightmill_upstream_waiting_lines",
    _G,
    "Lines in the workers that could be sent if there were a slot.",
    ("upstream",),
)
REPORTING: Final = Metric(
    "nightmill_upstream_workers", _G, "Workers that reported on the upstream lately.", ("upstream",)
)
ANSWER_RATE: Final = Metric("nightmill_upstream_answers_per_second", _G, "Lines answered.", _MODEL)
TOKEN_RATE: Final = Metric("nightmill_upstream_tokens_per_second", _G, "Output tokens.", _MODEL)
LIMIT: Final = Metric(
    "nightmill_upstream_limit",
    _G,
    "The most attempts in flight, and the rule that set it; an empty rule is a fixed number.",
    (*_MODEL, "rule"),
)
ATTEMPTS: Final = Metric(
    "nightmill_attempts_total",
    _C,
    "Ended attempts of lines: answered, or the kind of the failure.",
    ("upstream", "outcome"),
)
ATTEMPT_SECONDS: Final = Metric(
    "nightmill_attempt_duration_seconds", _H, "From the start of an attempt to its end.", ("upstream",)
)
FIRST_BYTE: Final = Metric(
    "nightmill_attempt_first_byte_seconds",
    _H,
    "From the start of an attempt to the first byte of its answer; at most 100 a second and worker.",
    ("upstream",),
)
TOKENS: Final = Metric(
    "nightmill_tokens_total",
    _C,
    "Tokens that answers report; cached ones are input tokens too.",
    ("upstream", "kind"),
)
RETRIES: Final = Metric(
    "nightmill_retries_total", _C, "Failed attempts whose line is sent again.", ("upstream",)
)
RETRY_WAIT: Final = Metric(
    "nightmill_retry_wait_seconds_total", _C, "Pauses before lines may be sent again.", ("upstream",)
)
RATE_WAITS: Final = Metric(
    "nightmill_rate_limit_waits_total", _C, "How often a rate limit delayed a line.", ("upstream",)
)

METRICS: Final = (
    BUILD,
    DATABASE_UP,
    DATABASE_SECONDS,
    DISK_FREE,
    DISK_RESERVED,
    BATCHES,
    OLDEST,
    BATCHES_ENDED,
    SEGMENTS,
    INTAKE,
    FINALIZING,
    WEBHOOKS,
    HELD,
    IN_FLIGHT,
    WAITING,
    REPORTING,
    ANSWER_RATE,
    TOKEN_RATE,
    LIMIT,
    ATTEMPTS,
    ATTEMPT_SECONDS,
    FIRST_BYTE,
    TOKENS,
    RETRIES,
    RETRY_WAIT,
    RATE_WAITS,
)
"""In the order of `/metrics`. Figures of the API process follow, named `process_` by the library."""
