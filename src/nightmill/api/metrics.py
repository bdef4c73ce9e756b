"""`/metrics` for Prometheus, and for scaling a fleet.

The text has counts over the whole store, the sums of what all processes counted, what workers report of the
upstreams, and figures of this process. The route needs no key, because the text contains no id and no name of
a project, batch, file or key. A model is named if it is held or has a limit of its own. The store is queried
at most once a second, for any number of requests. While the store is away, its metrics are missing and
`nightmill_database_up` is 0.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from fastapi import APIRouter, Request, Response

from nightmill.api import metric_list as names
from nightmill.api.context import ApiContext, Context
from nightmill.api.health import VERSION, store_timeout
from nightmill.api.metric_list import METRICS, Metric, MetricKind
from nightmill.core.batch import TERMINAL, Status
from nightmill.core.counts import (
    ANSWERED,
    ATTEMPT_BOUNDS_S,
    PHASE_BOUNDS_S,
    Histogram,
    ProcessCounts,
    UpstreamCounts,
)
from nightmill.core.failure import FailureKind
from nightmill.core.upstream_report import UpstreamReport, merged
from nightmill.errors import UnavailableError
from nightmill.roles.offered_models import read_reports
from nightmill.store import Backlog
from nightmill.telemetry import UpstreamHeld

CACHE_S: Final = 1.0
_STORE_TIMEOUT_S: Final = 5.0
_OUTCOMES: Final = (ANSWERED, *(kind.name.lower() for kind in FailureKind))
_DELIVERIES: Final = ("delivered", "failed")

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReading:
    """What one scrape reads from the store.

    Args:
        query_s: how long the queries took.
        upstreams: one report for each upstream, of all its workers.
        workers: how many workers reported, by upstream.
    """

    query_s: float
    backlog: Backlog
    counts: ProcessCounts
    upstreams: Sequence[UpstreamReport]
    workers: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that one scrape shows.

    Args:
        at: Unix seconds.
        stored: None while the store is away.
        free_bytes: of the data folder's disk; None with an object store.
        reserved_bytes: `retention.free_bytes`.
    """

    at: float
    stored: StoreReading | None
    held: Sequence[UpstreamHeld] = ()
    free_bytes: int | None = None
    reserved_bytes: int = 0


class Metrics:
    """The metrics text, cached for `CACHE_S` seconds. Concurrent requests share one query of the store."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._text = b""
        self._content_type = ""

    async def text(self) -> tuple[bytes, str]:
        """The text and its content type."""
        async with self._lock:
            age_s = self._context.clock() - self._read_at
            if not 0 <= age_s < CACHE_S:
                self._text, self._content_type = printed(await self._read())
                self._read_at = self._context.clock()
            return self._text, self._content_type

    async def _read(self) -> Reading:
        context = self._context
        try:
            async with store_timeout(_STORE_TIMEOUT_S):
                stored = await self._read_store()
        except UnavailableError:
            stored = None
        return Reading(
            at=context.clock(),
            stored=stored,
            held=context.held(),
            free_bytes=await context.blobs.free_bytes(),
            reserved_bytes=context.settings.retention.free_bytes,
        )

    async def _read_store(self) -> StoreReading:
        store, began = self._context.store, time.perf_counter()
        backlog, counts = await store.batches.backlog(), await store.counts.total()
        reports = await read_reports(store)
        return StoreReading(
            query_s=time.perf_counter() - began,
            backlog=backlog,
            counts=counts,
            upstreams=[merged(of_workers) for of_workers in reports.values()],
            workers={name: len(of_workers) for name, of_workers in reports.items()},
        )


@router.get("/metrics")
async def metrics(request: Request, _: Context) -> Response:
    """The metrics in Prometheus' text format."""
    cached: Metrics = request.app.state.metrics
    text, content_type = await cached.text()
    return Response(text, media_type=content_type)


@dataclass(frozen=True, slots=True)
class _Samples:
    """The values of all metrics, by metric and labels."""

    of: dict[Metric, dict[tuple[str, ...], float | Histogram]] = field(
        default_factory=dict[Metric, dict[tuple[str, ...], "float | Histogram"]]
    )

    def set(self, metric: Metric, value: float | Histogram, *labels: str) -> None:
        self.of.setdefault(metric, {})[labels] = value


def printed(reading: Reading) -> tuple[bytes, str]:
    """The text of a reading, and its content type."""
    # Imported late: only the first scrape needs the library, and the start must stay under a second.
    from prometheus_client import (  # noqa: PLC0415 - see above
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        ProcessCollector,
        generate_latest,
    )

    samples = _Samples()
    _set_own(samples, reading)
    if reading.stored is not None:
        _set_backlog(samples, reading.stored, now=reading.at)
        _set_counts(samples, reading.stored.counts)
        _set_reported(samples, reading.stored)
    registry = CollectorRegistry()
    registry.register(_Collector(samples))
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector:
    """Gives samples to the library, which writes them."""

    def __init__(self, samples: _Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Any]:
        for metric in METRICS:
            values = self._samples.of.get(metric, {})
            if values or metric.labels:
                yield _family(metric, values)


def _family(metric: Metric, values: dict[tuple[str, ...], float | Histogram]) -> Any:
    from prometheus_client import core  # noqa: PLC0415 - see `printed`

    family: Any
    match metric.kind:
        case MetricKind.COUNTER:
            family = core.CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        case MetricKind.GAUGE:
            family = core.GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        case MetricKind.HISTOGRAM:
            family = core.HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        case _:
            assert_never(metric.kind)
    for labels, value in values.items():
        if isinstance(value, Histogram):
            family.add_metric(labels, buckets=_buckets(value), sum_value=value.sum_s)
        else:
            family.add_metric(labels, value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, int]]:
    """Upper bounds with the count of all durations that are not longer."""
    bounds = PHASE_BOUNDS_S if len(histogram.buckets) == len(PHASE_BOUNDS_S) + 1 else ATTEMPT_BOUNDS_S
    buckets: list[tuple[str, int]] = []
    up_to = 0
    for bound, count in zip((*map(str, bounds), "+Inf"), histogram.buckets, strict=True):
        up_to += count
        buckets.append((bound, up_to))
    return buckets


def _set_own(samples: _Samples, reading: Reading) -> None:
    samples.set(names.BUILD, 1, VERSION)
    samples.set(names.DATABASE_UP, int(reading.stored is not None))
    if reading.free_bytes is not None:
        samples.set(names.DISK_FREE, reading.free_bytes)
        samples.set(names.DISK_RESERVED, reading.reserved_bytes)
    for event in reading.held:
        operator = str(event.needs_operator).lower()
        samples.set(names.HELD, 1, event.upstream, event.model or "", operator)


def _set_backlog(samples: _Samples, stored: StoreReading, *, now: float) -> None:
    backlog, oldest_at = stored.backlog, stored.backlog.oldest_created_at
    samples.set(names.DATABASE_SECONDS, stored.query_s)
    for status in Status:
        if not status.is_terminal:
            samples.set(names.BATCHES, backlog.batches.get(status, 0), status)
    samples.set(names.OLDEST, 0.0 if oldest_at is None else max(0.0, now - oldest_at))
    samples.set(names.SEGMENTS, backlog.waiting_segments, "waiting")
    samples.set(names.SEGMENTS, backlog.leased_segments, "leased")


def _set_counts(samples: _Samples, counts: ProcessCounts) -> None:
    for status in sorted(TERMINAL):
        samples.set(names.BATCHES_ENDED, counts.ended.get(status, 0), status)
    samples.set(names.INTAKE, counts.intake)
    samples.set(names.FINALIZING, counts.finalizing)
    for result in dict.fromkeys((*_DELIVERIES, *counts.deliveries)):
        samples.set(names.WEBHOOKS, counts.deliveries.get(result, 0), result)
    for name, upstream in counts.upstreams.items():
        _set_upstream_counts(samples, name, upstream)


def _set_upstream_counts(samples: _Samples, name: str, counts: UpstreamCounts) -> None:
    for outcome in _OUTCOMES:
        samples.set(names.ATTEMPTS, counts.attempts.get(outcome, 0), name, outcome)
    samples.set(names.ATTEMPT_SECONDS, counts.duration, name)
    samples.set(names.FIRST_BYTE, counts.first_byte, name)
    samples.set(names.TOKENS, counts.input_tokens, name, "input")
    samples.set(names.TOKENS, counts.cached_tokens, name, "cached")
    samples.set(names.TOKENS, counts.output_tokens, name, "output")
    samples.set(names.RETRIES, counts.retries, name)
    samples.set(names.RETRY_WAIT, counts.retry_wait_s, name)
    samples.set(names.RATE_WAITS, counts.rate_waits, name)


def _set_reported(samples: _Samples, stored: StoreReading) -> None:
    for upstream in stored.upstreams:
        samples.set(names.WAITING, upstream.waiting, upstream.upstream)
        samples.set(names.REPORTING, stored.workers[upstream.upstream], upstream.upstream)
        for entry in upstream.per_model:
            labels = upstream.upstream, entry.model or ""
            samples.set(names.IN_FLIGHT, entry.in_flight, *labels)
            samples.set(names.ANSWER_RATE, entry.answered_per_s, *labels)
            samples.set(names.TOKEN_RATE, entry.tokens_per_s, *labels)
            if entry.limit is not None:
                samples.set(names.LIMIT, entry.limit, *labels, entry.rule or "")
