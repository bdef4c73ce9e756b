"""`/metrics` for Prometheus, and for scaling a fleet.

The text has counts over the whole store, what all workers report of the upstreams, metrics of this process
and not of others, and what the workers of this machine report as held. The route needs no key, because the
text contains no id and no name of a project, batch, file or key. A model is named if it is held or has a
limit of its own. The store is queried at most once a second, for any number of requests.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request, Response

from nightmill.api.context import ApiContext, Context
from nightmill.api.health import VERSION, store_timeout
from nightmill.core.batch import Status
from nightmill.core.upstream_report import UpstreamReport, merged
from nightmill.roles.offered_models import read_reports
from nightmill.store import Backlog
from nightmill.telemetry import UpstreamHeld

CACHE_S: Final = 1.0
_STORE_TIMEOUT_S: Final = 5.0

router = APIRouter(include_in_schema=False)


class Metrics:
    """The metrics text, cached for `CACHE_S` seconds. Concurrent requests share one query of the store."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._text = b""
        self._content_type = ""

    async def text(self) -> tuple[bytes, str]:
        """The text and its content type.

        Raises:
            UnavailableError: the store does not respond.
        """
        async with self._lock:
            age_s = self._context.clock() - self._read_at
            if not 0 <= age_s < CACHE_S:
                async with store_timeout(_STORE_TIMEOUT_S):
                    backlog = await self._context.store.batches.backlog()
                    reports = await read_reports(self._context.store)
                upstreams = [merged(of_workers) for of_workers in reports.values()]
                self._text, self._content_type = _printed(backlog, self._context.held(), upstreams)
                self._read_at = self._context.clock()
            return self._text, self._content_type


@router.get("/metrics")
async def metrics(request: Request, _: Context) -> Response:
    cached: Metrics = request.app.state.metrics
    text, content_type = await cached.text()
    return Response(text, media_type=content_type)


def _printed(
    backlog: Backlog, held: Sequence[UpstreamHeld], upstreams: Sequence[UpstreamReport]
) -> tuple[bytes, str]:
    # Imported late: only the first scrape needs the library, and the start must stay under a second.
    from prometheus_client import (  # noqa: PLC0415 - see above
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Gauge,
        ProcessCollector,
        generate_latest,
    )

    registry = CollectorRegistry()
    build = Gauge("nightmill_build", "Always 1; the label is the version.", ["version"], registry=registry)
    build.labels(VERSION).set(1)
    batches = Gauge("nightmill_batches", "Unfinished batches, by status.", ["status"], registry=registry)
    for status in Status:
        if not status.is_terminal:
            batches.labels(status).set(backlog.batches.get(status, 0))
    segments = Gauge(
        "nightmill_segments",
        "Segments that wait for a worker or are leased by one.",
        ["state"],
        registry=registry,
    )
    segments.labels("waiting").set(backlog.waiting_segments)
    segments.labels("leased").set(backlog.leased_segments)
    held_gauge = Gauge(
        "nightmill_upstream_held",
        "1 while a model of an upstream is held; an empty model is every model.",
        ["upstream", "model", "needs_operator"],
        registry=registry,
    )
    for event in held:
        held_gauge.labels(event.upstream, event.model or "", str(event.needs_operator).lower()).set(1)
    names = ["upstream", "model"]
    in_flight = Gauge("nightmill_upstream_in_flight", "Attempts in flight.", names, registry=registry)
    answers = Gauge("nightmill_upstream_answers_per_second", "Lines answered.", names, registry=registry)
    tokens = Gauge("nightmill_upstream_tokens_per_second", "Output tokens.", names, registry=registry)
    limit = Gauge(
        "nightmill_upstream_limit",
        "The most attempts in flight, and the rule that set it; an empty rule is a fixed number.",
        [*names, "rule"],
        registry=registry,
    )
    for upstream in upstreams:
        for entry in upstream.per_model:
            labels = upstream.upstream, entry.model or ""
            in_flight.labels(*labels).set(entry.in_flight)
            answers.labels(*labels).set(entry.answered_per_s)
            tokens.labels(*labels).set(entry.tokens_per_s)
            if entry.limit is not None:
                limit.labels(*labels, entry.rule or "").set(entry.limit)
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST
