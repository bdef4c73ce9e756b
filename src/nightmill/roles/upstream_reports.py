"""What one worker reports of its upstreams: counts, rates, limits with their rules, and what is held."""

from collections.abc import Callable

from msgspec.structs import replace

from nightmill.core.clocks import Clocks
from nightmill.core.health import Held
from nightmill.core.upstream_report import ModelHold, ModelReport, UpstreamReport
from nightmill.roles.slot_group import SlotGroup
from nightmill.roles.supply import Supply
from nightmill.roles.upstream_lines import UpstreamLines
from nightmill.telemetry import shown_model


class UpstreamReporter:
    """Makes the reports; rates are those since the report before."""

    def __init__(self, supply: Supply, *, clocks: Clocks) -> None:
        self._supply = supply
        self._wall: Callable[[], float] = clocks.wall
        self._monotonic: Callable[[], float] = clocks.monotonic
        self._before: dict[SlotGroup, tuple[float, int, int]] = {}

    def report_on(self, upstream: UpstreamLines) -> UpstreamReport:
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
            waiting=sum(queue.unsent for queue, _ in self._supply.feeds_of(upstream)),
            per_model=tuple(entries.values()),
        )

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
