"""Scripted upstreams of a simulation, and what holds after every tick of the dispatcher."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, cast

from nightmill.core.adaptive_limit import advance
from nightmill.core.concurrency import Grant, SlotRequest, Slots, decide
from nightmill.core.limit_state import Bounds, LimitState
from nightmill.core.outcome import Outcome
from nightmill.core.rate_limit import RateLimits
from nightmill.core.routing import Offer
from nightmill.core.upstream_setting import UpstreamState
from nightmill.ids import WorkerId
from nightmill.roles.dispatcher import Dispatcher
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.slot_group import SlotGroup
from nightmill.upstream.registry import SlotsByModel, UpstreamRegistry, UpstreamRuntime

if TYPE_CHECKING:
    from tests.simulation.simulator import Server

_WORKER = WorkerId("sim")
_FIRST_PAUSE_S = 0.05


@dataclass(eq=False)
class Network:
    """Which lines are in flight anywhere."""

    in_flight: Counter[str] = field(default_factory=Counter)
    is_checked: bool = True


@dataclass(eq=False)
class Connection:
    """The client of an upstream. One that is removed and added again has a new one."""

    server: "Server"
    network: Network = field(default_factory=Network)
    limits: dict[str | None, LimitState] = field(default_factory=dict)
    slots_of: Callable[[str | None], Slots] | None = None

    async def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Outcome:
        content = json.loads(body)["messages"][0]["content"]
        in_flight = self.network.in_flight
        assert content == "Hi" or not (self.network.is_checked and in_flight[content]), (
            f"in flight twice: {content}"
        )
        in_flight[content] += 1
        try:
            return await self.server.send(endpoint, body, timeout_s=timeout_s)
        finally:
            in_flight[content] -= 1

    async def models(self) -> bytes | None:
        return None

    async def close(self) -> None:
        return


@dataclass(frozen=True)
class SimulatedUpstream:
    """One upstream as the settings have it.

    Args:
        models: those that it lists; None while the list is not known.
        slots: attempts in flight at once; None for an adaptive limit.
    """

    server: "Server"
    name: str
    models: frozenset[str] | None = frozenset({"m"})
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    endpoints: frozenset[str] = frozenset()
    accepts_any: bool = False
    slots: int | None = 64
    weight: float = 1.0
    state: UpstreamState = UpstreamState.ACTIVE
    timeout_s: float = 600.0
    connection: Connection | None = None

    def connected(self) -> "SimulatedUpstream":
        """With a new client."""
        return replace(self, connection=Connection(self.server))

    def but(self, **changes: Any) -> Self:
        """The same upstream with another setting."""
        return replace(self, **changes)

    def _new_slots(self, model: str | None) -> Slots:
        if self.slots is None:
            return Slots(
                f"{self.name} {model}",
                concurrency_limit=0,
                ttl_s=30.0,
                ask_every_s=0.75,
                bounds=Bounds(),
            )
        granted = Slots(self.name, concurrency_limit=self.slots, ttl_s=1e9, ask_every_s=1.0)
        granted.take(Grant(self.slots, self.slots), asked_at=0.0)
        return granted

    def runtime(self, network: Network) -> UpstreamRuntime:
        connection = self.connection
        assert connection is not None
        connection.network = network
        if connection.slots_of is None:
            connection.slots_of = SlotsByModel(self._new_slots)
        models = self.models or frozenset[str]()
        return UpstreamRuntime(
            offer=Offer(
                name=self.name,
                endpoints=self.endpoints,
                models=self.models,
                aliases=self.aliases,
                accepts_any=self.accepts_any,
                is_open=self.state.is_open,
            ),
            client=cast("Any", connection),
            slots_of=connection.slots_of,
            rates=RateLimits(requests_per_minute=0, tokens_per_minute=0),
            attempt_timeout_s=self.timeout_s,
            max_attempts=8,
            limited_models=models if self.slots is None and len(models) > 1 else frozenset(),
            weight=self.weight,
            may_start=self.state.may_start,
        )


class CheckedDispatcher(Dispatcher):
    """The real dispatcher; after each tick every line is in one place, and the counters say how many are."""

    leased: list[LeasedSegment]

    def __init__(self, *args: Any, **options: Any) -> None:
        self.leased = []
        super().__init__(*args, **options)

    def add(self, segment: LeasedSegment) -> None:
        self.leased.append(segment)
        super().add(segment)

    def _tick(self, now: float) -> None:
        super()._tick(now)
        self.check()

    def check(self) -> None:
        waiting = sum(len(queue.sorted_lines) for queue in self._queues)
        sending = 0
        for upstream in self.upstreams:
            lines = list(upstream.models.values())
            assert all(0 <= it.retrying <= it.in_flight for it in lines), (
                f"miscounted: {upstream.runtime.name}"
            )
            assert sum(group.in_flight for group in upstream.groups) == upstream.in_flight, "slots leak"
            assert not (upstream.is_calm and lines), f"lines are forgotten at {upstream.runtime.name}"
            sending += len(cast("Any", upstream)._in_flight)
            waiting += sum(it.waiting for it in lines)
        assert sum(segment.in_flight for segment in self.leased) == sending + waiting, "lines are lost"

    def check_end(self) -> None:
        """No line is left anywhere."""
        self.check()
        for upstream in self.upstreams:
            assert not cast("Any", upstream)._in_flight
            assert not sum(lines.waiting for lines in upstream.models.values())


def registry(upstreams: Sequence[SimulatedUpstream], network: Network) -> UpstreamRegistry:
    return UpstreamRegistry(*(upstream.runtime(network) for upstream in upstreams))


async def grant_slots(dispatcher: Dispatcher) -> None:
    """Requests slots as the worker does, and decides as the store does, for adaptive limits."""
    loop = asyncio.get_running_loop()
    while True:
        pause_s = _FIRST_PAUSE_S
        for upstream in dispatcher.upstreams:
            connection = cast("Connection", upstream.runtime.client)
            for group in upstream.groups:
                now = loop.time()
                wanted = dispatcher.supply.wanted_slots(upstream, group)
                if group.slots.is_due(now, wanted=wanted):
                    request = group.slots.request(
                        _WORKER, in_flight=group.in_flight, wanted=wanted, now=now, gauges=None
                    )
                    group.slots.take(_granted(connection, group, request, now), asked_at=now)
                    dispatcher.wake()
                pause_s = min(pause_s, max(0.01, group.slots.rebalance_in_s(now)))
        await asyncio.sleep(pause_s)


def _granted(connection: Connection, group: SlotGroup, request: SlotRequest, now: float) -> Grant:
    if request.bounds is None:
        return Grant(request.concurrency_limit, request.concurrency_limit)
    assert request.observed is not None
    state = advance(
        connection.limits.get(group.model),
        request.observed,
        in_flight=request.in_flight,
        bounds=request.bounds,
        now=now,
    )
    connection.limits[group.model] = state
    made = decide(replace(request, concurrency_limit=state.limit), [], turn=0)
    return replace(made, limit=state.limit, rule=state.rule)
