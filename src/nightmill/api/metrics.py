"""What Prometheus scrapes, and what a fleet is scaled by.

Duty: counts over the whole store and figures of this process, in Prometheus's text format. Promise: nothing
in it names a project, a batch, a file or a key, so it is open to all like `/health`; however often it is
asked, the store is asked once a second at most. Not its duty: figures of other processes.
"""

import asyncio
from typing import Final

from fastapi import APIRouter, Request, Response

from nightmill.api.context import ApiContext, Context
from nightmill.api.health import VERSION
from nightmill.core.batch import Status
from nightmill.errors import UnavailableError
from nightmill.store import Backlog

KEPT_S: Final = 1.0
_STORE_TIMEOUT_S: Final = 5.0

router = APIRouter(include_in_schema=False)


class Metrics:
    """The last look at the store, kept for `KEPT_S`; who asks meanwhile waits for the look under way."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._text = b""
        self._content_type = ""

    async def show(self) -> tuple[bytes, str]:
        """The text and its content type.

        Raises:
            UnavailableError: the store is away.
        """
        async with self._looking:
            age_s = self._context.clock() - self._looked_at
            if not 0 <= age_s < KEPT_S:
                backlog = await self._backlog()
                self._text, self._content_type = _printed(backlog)
                self._looked_at = self._context.clock()
            return self._text, self._content_type

    async def _backlog(self) -> Backlog:
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                return await self._context.store.batches.backlog()
        except TimeoutError:
            message = f"The store did not answer within {_STORE_TIMEOUT_S:g} seconds."
            raise UnavailableError(message, retry_after_s=1) from None


@router.get("/metrics")
async def metrics(request: Request, _: Context) -> Response:
    figures: Metrics = request.app.state.metrics
    text, content_type = await figures.show()
    return Response(text, media_type=content_type)


def _printed(backlog: Backlog) -> tuple[bytes, str]:
    # Late: nobody needs it before the first scrape, and a start has a second in all.
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
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST
