"""The upstreams of one worker while it runs: which there are, and which of them serve a line."""

import asyncio
from collections.abc import Callable, Iterable, Iterator

from nightmill.core.clocks import Clocks
from nightmill.core.health import Held, Resumed
from nightmill.core.routing import Routes
from nightmill.roles.model_lines import PendingLine
from nightmill.roles.upstream_lines import UpstreamLines
from nightmill.telemetry import Emit, UpstreamHeld, UpstreamResumed
from nightmill.upstream.registry import UpstreamRegistry, UpstreamRuntime


class UpstreamSet:
    """The upstreams that get lines, and those that were taken away and still have attempts in flight.

    They are iterated in the order in which they are filled: the greater weight first.

    Args:
        on_arrival: as in `UpstreamLines`.
        emit: gets an event when lines are held or sent again.
    """

    def __init__(
        self,
        *,
        on_arrival: Callable[[], None],
        emit: Emit,
        clocks: Clocks,
    ) -> None:
        self._on_arrival = on_arrival
        self._emit = emit
        self._clock = clocks.wall
        self._monotonic = clocks.monotonic
        self._routes = Routes(())
        self._routed: tuple[UpstreamLines, ...] = ()
        self._in_order: tuple[UpstreamLines, ...] = ()

    def __iter__(self) -> Iterator[UpstreamLines]:
        return iter(self._in_order)

    @property
    def are_several(self) -> bool:
        return len(self._routed) > 1

    @property
    def held(self) -> Iterator[UpstreamHeld]:
        """What is held now, and until when."""
        for upstream in self:
            for model, held in upstream.held:
                yield self._held_event(upstream.runtime, model, held)

    def has(self, upstream: UpstreamLines) -> bool:
        """Whether an upstream gets lines."""
        return upstream in self._routed

    def change(self, upstreams: UpstreamRegistry, *, group: asyncio.TaskGroup | None) -> bool:
        """Replaces the upstreams; returns whether anything has changed.

        An upstream with the same client keeps its lines. One that is missing starts no attempt from now on;
        its attempts in flight end.

        Args:
            group: see `UpstreamLines.open`; None before the dispatcher runs.
        """
        if [lines.runtime for lines in self._routed] == list(upstreams):
            return False
        known = {upstream.runtime.client: upstream for upstream in self._in_order}
        current: list[UpstreamLines] = []
        for runtime in upstreams:
            lines = known.pop(runtime.client, None)
            if lines is None:
                lines = UpstreamLines(runtime, on_arrival=self._on_arrival, on_change=self._emit_change)
                if group is not None:
                    lines.open(group)
            lines.change(runtime)
            current.append(lines)
        for lines in known.values():
            lines.leave()
        self._routes = Routes(runtime.offer for runtime in upstreams)
        self._routed = tuple(current)
        in_order = sorted(current, key=lambda lines: -lines.runtime.weight)
        self._in_order = (*in_order, *known.values())
        return True

    def drop_left(self, now: float) -> None:
        """Forgets the upstreams that were taken away and have no attempt in flight any more."""
        if len(self._in_order) == len(self._routed):
            return
        kept: list[UpstreamLines] = []
        for upstream in self._in_order:
            if upstream in self._routed or upstream.in_flight:
                kept.append(upstream)
            else:
                upstream.forget(now)
        self._in_order = tuple(kept)

    def serving(self, model: str | None, endpoint: str) -> tuple[UpstreamLines, ...]:
        """The upstreams that may answer a line."""
        return tuple(self._routed[index] for index in self._routes.serving(model, endpoint))

    def unserved(self, model: str | None, endpoint: str) -> bool:
        """As `Routes.unserved`; while there is no upstream at all, lines wait."""
        return bool(self._routed) and self._routes.unserved(model, endpoint)

    def other(
        self,
        line: PendingLine,
        upstream: UpstreamLines,
        *,
        may_have_failed: bool,
        must_send: bool,
        now: float,
    ) -> UpstreamLines | None:
        """The upstream with the most room that serves a line beside `upstream`; None without one. A reserve
        comes last.

        Args:
            may_have_failed: whether an upstream counts where the line failed before.
            must_send: whether only upstreams count that send the model now.
        """
        others = [
            other
            for other in self.serving(line.model, line.segment.lease.endpoint)
            if other is not upstream
            and (may_have_failed or other not in (line.failed_at or ()))
            and not (must_send and other.is_held(line.model, now))
        ]

        def room(other: UpstreamLines) -> tuple[bool, int]:
            group = other.group_of(line.model)
            return other.runtime.weight > 0, group.room(now) - other.waiting(group)

        return max(others, key=room, default=None)

    def sends_elsewhere(
        self, model: str | None, endpoints: Iterable[str], upstream: UpstreamLines, now: float
    ) -> bool:
        """Whether another upstream sends lines of a model now, to any of the endpoints."""
        return any(
            other is not upstream and not other.is_held(model, now)
            for endpoint in endpoints
            for other in self.serving(model, endpoint)
        )

    def _emit_change(self, runtime: UpstreamRuntime, model: str | None, change: Held | Resumed) -> None:
        match change:
            case Held():
                self._emit(self._held_event(runtime, model, change))
            case Resumed(held_s):
                self._emit(UpstreamResumed(runtime.name, model, held_s))

    def _held_event(self, runtime: UpstreamRuntime, model: str | None, held: Held) -> UpstreamHeld:
        ahead_s = self._clock() - self._monotonic()
        since, until = held.since + ahead_s, held.until + ahead_s
        return UpstreamHeld(runtime.name, model, held.reason, since, until, held.needs_operator)
