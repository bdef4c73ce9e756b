"""One upstream of a worker with its open client, and what is read from the server beside answers."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from nightmill.core.counts import UpstreamCounts
from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.load_share import load_share
from nightmill.core.quiet_hours import QuietHours
from nightmill.core.upstream_report import UpstreamReport
from nightmill.settings import UpstreamSettings, WorkerSettings
from nightmill.settings.effective import EffectiveUpstream
from nightmill.upstream import Upstream
from nightmill.upstream.gauges import GaugeReader
from nightmill.upstream.model_list import parse_models
from nightmill.upstream.registry import UpstreamRegistry, UpstreamRuntime, offer_of, start_upstream

_LIST_S = 30.0
_LIST_AGAIN_S = 5.0
_LIST_TIMEOUT_S = 10.0
_GAUGES_S = 1.0
# What takes effect without a new client. Any other change opens one.
_ROUTING_FIELDS = {"models", "aliases", "endpoints", "weight", "share", "quiet_hours", "priority"}


class Sender(Protocol):
    """The worker, as its upstreams see it. A client stands for its upstream."""

    def set_upstreams(self, upstreams: UpstreamRegistry) -> None: ...

    def in_flight_at(self, client: Upstream) -> int: ...

    def note_gauges(self, client: Upstream, gauges: EngineGauges | None) -> None: ...

    def report_on(self, client: Upstream) -> UpstreamReport | None:
        """The counts of an upstream; None while the worker does not know the client."""
        ...


class ConnectedUpstream:
    """An upstream in effect.

    Args:
        effective: its settings and its state.
        client: open; closed by the owner.
        shared_name: see `start_upstream`.
        on_list: called when the list of models has changed.
        counts: see `start_upstream`.

    Attributes:
        listed: the models that the server lists; None while the list is not known.
        listed_at: when the list was read, in Unix seconds.
        gauges: the latest reading; None without one.
    """

    def __init__(
        self,
        effective: EffectiveUpstream,
        client: Upstream,
        *,
        worker: WorkerSettings,
        shared_name: str,
        on_list: Callable[[], None],
        wall: Callable[[], float],
        counts: UpstreamCounts | None = None,
    ) -> None:
        settings = effective.settings
        self.become(effective)
        self.client = client
        self.listed: frozenset[str] | None = None
        self.listed_at: float | None = None
        self.gauges: EngineGauges | None = None
        self._on_list = on_list
        self._wall = wall
        self._runtime = start_upstream(
            client, settings=settings, worker=worker, shared_name=shared_name, counts=counts
        )
        url = settings.url
        self._gauge_reader = (
            GaugeReader(client, url=url, monotonic=time.monotonic) if url and settings.gauges else None
        )

    @property
    def settings(self) -> UpstreamSettings:
        return self.effective.settings

    def may_become(self, effective: EffectiveUpstream) -> bool:
        """Whether a change takes effect with the client that is open."""
        before = self.settings.model_dump(exclude=_ROUTING_FIELDS)
        return before == effective.settings.model_dump(exclude=_ROUTING_FIELDS)

    def become(self, effective: EffectiveUpstream) -> None:
        """Applies a change."""
        self.effective = effective
        written = effective.settings.quiet_hours
        self._quiet_hours = None if written is None else QuietHours.parse(written)

    def runtime(self, *, is_only: bool) -> UpstreamRuntime:
        """What the dispatcher needs, as of now.

        Args:
            is_only: whether there is no other upstream.
        """
        state = self.effective.state
        offer = offer_of(self.settings, is_only=is_only, listed=self.listed, is_open=state.is_open)
        return replace(
            self._runtime,
            offer=offer,
            limited_models=self._limited(offer.models or frozenset()),
            weight=self.settings.weight,
            priority=self.settings.priority,
            load_share=load_share(self.settings.share, self._quiet_hours, unix_s=self._wall()),
            may_start=state.may_start,
        )

    def _limited(self, known: frozenset[str]) -> frozenset[str]:
        """The models with a limit of their own: those of a server with several, whose limit is found."""
        settings = self.settings
        has_rates = settings.requests_per_minute or settings.tokens_per_minute
        return known if settings.concurrency == "auto" and len(known) > 1 and not has_rates else frozenset()

    async def read_list(self) -> None:
        """Reads the list of models once. A server that gives none keeps the list that it had."""
        try:
            async with asyncio.timeout(_LIST_TIMEOUT_S):
                answer = await self.client.models()
        except TimeoutError:
            return
        models = None if answer is None else parse_models(answer)
        if models is None:
            return
        listed = frozenset(model.id for model in models)
        self.listed_at = self._wall()
        if listed != self.listed:
            self.listed = listed
            self._on_list()

    async def watch(self, sender: Sender) -> None:
        """Reads the list of models and the gauges again and again, until it is cancelled.

        The gauges are read only while the worker has attempts in flight here.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_list())
            if self._gauge_reader is not None:
                group.create_task(self._watch_gauges(self._gauge_reader, sender))

    async def _watch_list(self) -> None:
        while True:
            await self.read_list()
            await asyncio.sleep(_LIST_AGAIN_S if self.listed is None else _LIST_S)

    async def _watch_gauges(self, reader: GaugeReader, sender: Sender) -> None:
        while True:
            self.gauges = await reader.read() if sender.in_flight_at(self.client) else None
            sender.note_gauges(self.client, self.gauges)
            await asyncio.sleep(_GAUGES_S)
