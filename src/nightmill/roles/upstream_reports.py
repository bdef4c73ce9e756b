"""What one worker reports of its upstreams: counts, rates, limits with their rules, and what is held."""

from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

from msgspec.structs import replace

from nightmill.core.clocks import Clocks
from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.health import Held
from nightmill.core.upstream_report import BatchLines, ModelHold, ModelReport, UpstreamReport
from nightmill.ids import BatchId
from nightmill.parts import Parts
from nightmill.roles.dispatcher import Dispatcher
from nightmill.roles.slot_group import SlotGroup
from nightmill.roles.upstream_lines import UpstreamLines
from nightmill.telemetry import shown_model
from nightmill.upstream import Upstream
from nightmill.upstream.registry import UpstreamRegistry

_MOST_BATCHES: Final = 128
"""Batches that one report names; a worker holds few more."""


class WorkerUpstreams:
    """The upstreams of one worker, as `UpstreamManager` sees them. A client stands for its upstream.

    Rates in reports are those since the report before.
    """

    def __init__(self, dispatcher: Dispatcher, *, parts: Parts, clocks: Clocks) -> None:
        self._dispatcher = dispatcher
        self._parts = parts
        self._wall: Callable[[], float] = clocks.wall
        self._monotonic: Callable[[], float] = clocks.monotonic
        self._before: dict[SlotGroup, tuple[float, int, int]] = {}

    def set_upstreams(self, upstreams: UpstreamRegistry) -> None:
        """Sends lines to these upstreams from now on."""
        self._dispatcher.set_upstreams(upstreams)

    def in_flight_at(self, client: Upstream) -> int:
        """Attempts in flight over a client."""
        return sum(upstream.in_flight for upstream in self._of(client))

    def note_gauges(self, client: Upstream, gauges: EngineGauges | None) -> None:
        """Notes a new reading of the engine's gauges."""
        for upstream in self._of(client):
            upstream.slots.note_gauges(gauges)

    def report_on(self, client: Upstream) -> UpstreamReport | None:
        """What is known of an upstream; None without one."""
        return next(map(self._report, self._of(client)), None)

    def _of(self, client: Upstream) -> Iterator[UpstreamLines]:
        return (upstream for upstream in self._dispatcher.upstreams if upstream.runtime.client is client)

    def _report(self, upstream: UpstreamLines) -> UpstreamReport:
        now = self._monotonic()
        groups = [group for group in upstream.groups if group.settled or group.in_flight]
        entries = {group.model: self._entry(group, now) for group in groups or upstream.groups[:1]}
        for model, held in upstream.held:
            shown = shown_model(model)
            entry = entries.get(shown) or ModelReport(shown)
            entries[shown] = replace(entry, held=self._hold(held, now))
        return UpstreamReport(
            upstream=upstream.runtime.name,
            at=self._wall(),
            in_flight=upstream.in_flight,
            waiting=sum(queue.unsent for queue, _ in self._dispatcher.supply.feeds_of(upstream)),
            per_model=tuple(entries.values()),
            batches=self._batches(upstream, now),
            rate_limit=upstream.runtime.rates.limited_by(now, share=upstream.slots.share),
            stalled=self._parts.stalled,
        )

    def _batches(self, upstream: UpstreamLines, now: float) -> tuple[BatchLines, ...]:
        in_flight = Counter(line.segment.batch_id for line in upstream.lines_in_flight)
        waits: dict[BatchId, list[tuple[float, str | None]]] = {}
        for lines in upstream.models.values():
            for until, line in lines.waiting_lines:
                waits.setdefault(line.segment.batch_id, []).append((until, line.reason))
        found: list[BatchLines] = []
        for batch_id in in_flight.keys() | waits.keys():
            waiting = waits.get(batch_id, [])
            until, reason = min(waiting, key=itemgetter(0), default=(None, None))
            next_at = None if until is None else round(self._wall() + max(0.0, until - now), 1)
            found.append(BatchLines(batch_id, in_flight[batch_id], len(waiting), next_at, reason))
        found.sort(key=lambda lines: (-lines.in_flight, -lines.waiting, lines.batch_id))
        return tuple(found[:_MOST_BATCHES])

    def _entry(self, group: SlotGroup, now: float) -> ModelReport:
        at, settled, tokens = self._before.get(group, (now, group.settled, group.tokens))
        self._before[group] = now, group.settled, group.tokens
        elapsed_s = max(now - at, 1e-3)
        return ModelReport(
            group.model,
            limit=group.slots.concurrency_limit,
            rule=group.slots.rule,
            advice=group.slots.advice,
            in_flight=group.in_flight,
            answered_per_s=round((group.settled - settled) / elapsed_s, 2),
            tokens_per_s=round((group.tokens - tokens) / elapsed_s, 2),
        )

    def _hold(self, held: Held, now: float) -> ModelHold:
        ahead_s = self._wall() - now
        return ModelHold(held.reason, held.since + ahead_s, held.until + ahead_s, held.needs_operator)
