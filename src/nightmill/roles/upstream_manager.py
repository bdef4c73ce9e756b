"""The upstreams of one worker while it runs: opened, changed and closed as the settings and the store say.

A change at run time takes effect within about a second. An upstream whose address, key or limits change gets
a new client; attempts of the old client end by themselves, and then the client is closed. The worker reports
to the store what it knows of each upstream, for the API and the command line.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from nightmill.core.clocks import Clocks
from nightmill.core.counts import ProcessCounts
from nightmill.core.upstream_report import UpstreamReport
from nightmill.errors import SetupError, UnavailableError
from nightmill.ids import WorkerId
from nightmill.roles.connected_upstream import ConnectedUpstream, Sender
from nightmill.settings import Settings
from nightmill.settings.effective import EffectiveUpstream, effective_of, invalid_settings
from nightmill.store import Store
from nightmill.telemetry import Emit, UpstreamChanged, UpstreamInvalid
from nightmill.upstream import Upstream
from nightmill.upstream.connect import open_upstream
from nightmill.upstream.registry import UpstreamRegistry, shared_name

_LOOK_S = 1.0
_FIRST_LISTS_S = 3.0
_REPORT_S = 2.0
_QUIET_REPORT_S = 8.0


class UpstreamManager:
    """Keeps the upstreams of one worker current.

    Args:
        counts: where attempts are counted; None for counts that are not read.
        traced: makes a client trace its attempts; called with the name of the upstream.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        worker_id: WorkerId,
        emit: Emit,
        clocks: Clocks,
        counts: ProcessCounts | None = None,
        traced: Callable[[str, Upstream], Upstream] = lambda _, client: client,
    ) -> None:
        self._settings = settings
        self._store = store
        self._worker_id = worker_id
        self._emit = emit
        self._wall = clocks.wall
        self._monotonic = clocks.monotonic
        self._traced = traced
        self._counts = counts or ProcessCounts()
        self._host = socket.gethostname()
        self._current: list[ConnectedUpstream] = []
        self._leaving: list[ConnectedUpstream] = []
        self._emitted: set[UpstreamInvalid] = set()
        self._watches: dict[ConnectedUpstream, asyncio.Task[None]] = {}
        self._has_news = asyncio.Event()
        self._reported: dict[str, UpstreamReport] = {}
        self._reported_at = -_QUIET_REPORT_S

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[UpstreamRegistry]:
        """Opens the upstreams, and closes all clients in the end.

        With several upstreams the lists of models are read first, so that no line goes to a wrong one.
        """
        self._apply(await self._effective())
        try:
            if len(self._current) > 1:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FIRST_LISTS_S), asyncio.TaskGroup() as group:
                        for upstream in self._current:
                            group.create_task(upstream.read_list())
            yield self._registry()
        finally:
            for upstream in (*self._current, *self._leaving):
                await upstream.client.close()

    async def run(self, sender: Sender) -> None:
        """Applies changes and reports, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            self._watch(sender, group)
            while True:
                self._has_news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._has_news.wait()
                with suppress(UnavailableError):
                    self._apply(await self._effective())
                    sender.set_upstreams(self._registry())
                    self._watch(sender, group)
                    await self._close_left(sender)
                    await self._report(sender)

    async def _effective(self) -> list[EffectiveUpstream]:
        stored = await self._store.upstreams.settings()
        for invalid in invalid_settings(stored):
            self._emit_once(UpstreamInvalid(invalid.name, invalid.reason))
        return effective_of(self._settings, stored)

    def _emit_once(self, event: UpstreamInvalid) -> None:
        if event not in self._emitted:
            self._emitted.add(event)
            self._emit(event)

    def _apply(self, effective: list[EffectiveUpstream]) -> None:
        """Opens and changes upstreams. One that can't be opened is left out, and the reason is logged."""
        known = {upstream.effective.name: upstream for upstream in self._current}
        current: list[ConnectedUpstream] = []
        for wanted in effective:
            upstream = known.get(wanted.name)
            if upstream is None or upstream.effective != wanted:
                upstream = self._changed(upstream, wanted)
                if upstream is None:
                    continue
                if self._current:
                    self._emit(UpstreamChanged(wanted.name, wanted.state.value, wanted.revision))
            current.append(upstream)
        for upstream in self._current:
            if upstream not in current:
                self._leaving.append(upstream)
                if all(upstream.effective.name != other.effective.name for other in current):
                    self._emit(UpstreamChanged(upstream.effective.name, "removed", None))
        self._current = current

    def _changed(
        self, before: ConnectedUpstream | None, wanted: EffectiveUpstream
    ) -> ConnectedUpstream | None:
        """The upstream as it is wanted, over its open client where possible; None without a client."""
        if before is None or not before.may_become(wanted):
            opened = self._open(wanted)
            if opened is not None or before is None:
                return opened
        before.become(wanted)
        return before

    def _open(self, effective: EffectiveUpstream) -> ConnectedUpstream | None:
        settings = effective.settings
        assert settings.url is not None
        try:
            client = open_upstream(settings, url=settings.url)
        except SetupError as error:
            if not self._watches:
                raise  # at the start the operator sees the message
            self._emit_once(UpstreamInvalid(settings.name, str(error)))
            return None
        return ConnectedUpstream(
            effective,
            self._traced(settings.name, client),
            worker=self._settings.worker,
            shared_name=shared_name(settings.url, host=self._host),
            on_list=self._has_news.set,
            wall=self._wall,
            counts=self._counts.of_upstream(settings.name),
        )

    def _registry(self) -> UpstreamRegistry:
        is_only = len(self._current) == 1
        return UpstreamRegistry(*(upstream.runtime(is_only=is_only) for upstream in self._current))

    def _watch(self, sender: Sender, group: asyncio.TaskGroup) -> None:
        for upstream in self._current:
            if upstream not in self._watches:
                self._watches[upstream] = group.create_task(upstream.watch(sender))
        for upstream in [upstream for upstream in self._watches if upstream not in self._current]:
            self._watches.pop(upstream).cancel()

    async def _close_left(self, sender: Sender) -> None:
        left = [upstream for upstream in self._leaving if not sender.in_flight_at(upstream.client)]
        for upstream in left:
            self._leaving.remove(upstream)
            await upstream.client.close()

    async def _report(self, sender: Sender) -> None:
        """Reports soon what has changed, and the rest now and then, because old reports do not count."""
        now = self._monotonic()
        if now < self._reported_at + _REPORT_S:
            return
        reports = {
            upstream.effective.name: self._completed(upstream, sender.report_on(upstream.client))
            for upstream in self._current
        }
        is_due = now >= self._reported_at + _QUIET_REPORT_S
        if not is_due and all(_is_same(report, self._reported.get(name)) for name, report in reports.items()):
            return
        self._reported_at, self._reported = now, reports
        await self._store.upstreams.report(
            self._worker_id, {name: msgspec.json.encode(report).decode() for name, report in reports.items()}
        )

    def _completed(self, upstream: ConnectedUpstream, report: UpstreamReport | None) -> UpstreamReport:
        return msgspec.structs.replace(
            report or UpstreamReport(upstream.effective.name, self._wall()),
            upstream=upstream.effective.name,
            models=None if upstream.listed is None else tuple(sorted(upstream.listed)),
            models_read_at=upstream.listed_at,
            gauges=upstream.gauges,
        )


def _is_same(new: UpstreamReport, old: UpstreamReport | None) -> bool:
    if old is None:
        return False
    unread = {"at": 0.0, "models_read_at": None}
    return msgspec.structs.replace(new, **unread) == msgspec.structs.replace(old, **unread)
