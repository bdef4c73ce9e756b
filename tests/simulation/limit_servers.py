"""Model servers and workers in virtual time, for the adaptive limit: no I/O, no event loop.

A server takes lines with a length (mean 1.0) and calls back with the outcome. `run` lets workers send lines
to a server, under a fixed or an adaptive limit, with the grants of `core.concurrency`.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nightmill.core.adaptive_limit import Bounds, LimitState
from nightmill.core.concurrency import Grant, OtherGrant, SlotRequest, Slots, decide
from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.load_share import LoadShare, advance_shared
from nightmill.ids import WorkerId

TOKENS = 100  # of a line of length 1
BEAT_S = 1.0


class Clock:
    """Calls functions in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), call))

    def step(self) -> None:
        self.now, _, call = heapq.heappop(self._due)
        call()


Done = Callable[[bool], None]  # called with whether the line was answered; otherwise it was refused


class Saturating:
    """Computes `slots(now)` lines at once, and makes the others wait in its queue."""

    def __init__(
        self, slots: Callable[[float], int], *, line_s: float = 1.0, refused_by_chance: float = 0.0
    ) -> None:
        self.slots, self.line_s, self.refused_by_chance = slots, line_s, refused_by_chance
        self.chance = random.Random(7)
        self.running = 0
        self.queue: deque[tuple[float, Done]] = deque()

    def send(self, clock: Clock, length: float, done: Done) -> None:
        if self.chance.random() < self.refused_by_chance:
            clock.after(0.001, lambda: done(False))
            return
        self.queue.append((length, done))
        self.begin(clock)

    def begin(self, clock: Clock) -> None:
        while self.queue and self.running < self.slots(clock.now):
            length, done = self.queue.popleft()
            self.running += 1

            def end(done: Done = done) -> None:
                self.running -= 1
                done(True)
                self.begin(clock)

            clock.after(length * self.line_s, end)

    def gauges(self) -> EngineGauges:
        return EngineGauges("vllm", self.running, len(self.queue), None, None, None)


class Refusing(Saturating):
    """Refuses what it cannot compute at once, within a millisecond."""

    def send(self, clock: Clock, length: float, done: Done) -> None:
        if self.running >= self.slots(clock.now):
            clock.after(0.001, lambda: done(False))
        else:
            super().send(clock, length, done)


@dataclass(eq=False)
class _Sequence:
    tokens: int
    done: Done
    made: int = 0
    to_compute: int = 0


class Batching:
    """Computes all running lines one step after the other; a step takes longer with more lines.

    Each line fills the KV cache with its prompt and its answer. If the cache is full, the newest line is
    preempted: it waits, and its tokens are computed again.
    """

    def __init__(self, *, kv_tokens: int, prompt: int = 50, most_running: int = 256) -> None:
        self.kv_tokens, self.prompt, self.most_running = kv_tokens, prompt, most_running
        self.running: list[_Sequence] = []
        self.waiting: deque[_Sequence] = deque()
        self.preemptions = 0
        self.is_stepping = False

    def send(self, clock: Clock, length: float, done: Done) -> None:
        self.waiting.append(_Sequence(max(10, int(length * TOKENS)), done, to_compute=self.prompt))
        self.step(clock)

    def used(self) -> int:
        return sum(self.prompt + line.made for line in self.running)

    def step(self, clock: Clock) -> None:
        if self.is_stepping:
            return
        used = self.used()
        while self.waiting and len(self.running) < self.most_running:
            need = self.prompt + self.waiting[0].made + 10
            if used + need > self.kv_tokens and self.running:
                break
            used += need
            self.running.append(self.waiting.popleft())
        if not self.running:
            return
        computed = 0
        for line in self.running:
            computed += line.to_compute
            line.to_compute = 0
            line.made += 10
        while self.used() > self.kv_tokens and len(self.running) > 1:
            line = self.running.pop()
            line.to_compute = self.prompt + line.made
            self.waiting.appendleft(line)
            self.preemptions += 1
        self.is_stepping = True
        clock.after(0.2 + 0.005 * len(self.running) + 0.001 * computed, lambda: self.stepped(clock))

    def stepped(self, clock: Clock) -> None:
        self.is_stepping = False
        ended = [line for line in self.running if line.made >= line.tokens]
        self.running = [line for line in self.running if line.made < line.tokens]
        for line in ended:
            line.done(True)
        self.step(clock)

    def gauges(self) -> EngineGauges:
        use = min(1.0, self.used() / self.kv_tokens)
        return EngineGauges("vllm", len(self.running), len(self.waiting), use, None, self.preemptions)


Server = Saturating | Refusing | Batching


class Online:
    """Other users of a `Saturating` server: requests at random times, as many in a second as `rate` says."""

    def __init__(self, rate: Callable[[float], float], *, seed: int = 3) -> None:
        self.rate, self.chance = rate, random.Random(seed)
        self.waits: list[tuple[float, float]] = []

    def begin(self, clock: Clock, server: Saturating) -> None:
        """Sends the first request, and each later one when its time has come."""
        rate = self.rate(clock.now)
        if rate:
            length, sent_at = _length(self.chance, 0.5), clock.now

            def done(_: bool) -> None:
                self.waits.append((sent_at, clock.now - sent_at - length * server.line_s))

            server.send(clock, length, done)
        pause_s = self.chance.expovariate(rate) if rate else 0.1
        clock.after(pause_s, lambda: self.begin(clock, server))

    def p99(self, begin: float, end: float) -> float:
        """The wait in the queue that one in a hundred requests between two times exceeds."""
        waits = sorted(wait for at, wait in self.waits if begin <= at < end)
        return waits[int(0.99 * len(waits))]


@dataclass(eq=False)
class Worker:
    """What the worker and the dispatcher do with slots: send, note every outcome, request when due."""

    name: WorkerId
    slots: Slots
    in_flight: int = 0
    gauges_at: float = -math.inf


@dataclass
class Run:
    """What happened: seconds until the last answer, calls, and the limit over time."""

    seconds: float = 0.0
    calls: int = 0
    answered_at: list[float] = field(default_factory=list)
    answers: int = 0
    requests: int = 0
    limits: list[tuple[float, int, str]] = field(default_factory=list)
    in_flight: list[tuple[float, int]] = field(default_factory=list)
    state: LimitState | None = None

    @property
    def calls_per_answer(self) -> float:
        return self.calls / self.answers

    def most_in_flight(self, begin: float, end: float) -> int:
        """The most attempts of all workers that were in flight after a start between two times."""
        return max(count for at, count in self.in_flight if begin <= at < end)

    def time_to(self, limit: int) -> float:
        return next(at for at, value, _ in self.limits if value >= limit)


def run(
    server: Server,
    lines: int,
    *,
    limit: int | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    workers: int = 1,
    share: Callable[[float], LoadShare | None] = lambda _: None,
    with_gauges: bool = False,
    gauges_every_s: float = 0.0,
    online: Online | None = None,
    with_tokens: bool = True,
    spread: float = 0.5,
    seed: int = 1,
) -> Run:
    """Sends `lines` lines.

    Args:
        limit: a fixed limit; None for the adaptive one.
        share: of the server, at a time.
        gauges_every_s: how often a worker reads the gauges.
        online: other users of the server.
        spread: standard deviation of the length of a line, whose mean is 1.
    """
    clock, chance, result = Clock(), random.Random(seed), Run()
    lengths = deque(_length(chance, spread) for _ in range(lines))
    fleet = [
        Worker(
            WorkerId(f"w{number:02}"),
            Slots(
                "u",
                concurrency_limit=limit or 0,
                ttl_s=30.0,
                ask_every_s=0.75 * BEAT_S,
                bounds=None if limit else bounds,
            ),
        )
        for number in range(workers)
    ]
    grants: dict[WorkerId, OtherGrant] = {}

    def send(worker: Worker) -> None:
        while lengths and worker.in_flight < worker.slots.limit(clock.now):
            length, sent_at = lengths.popleft(), clock.now
            worker.in_flight += 1
            result.calls += 1
            result.in_flight.append((clock.now, sum(other.in_flight for other in fleet)))

            def done(is_answer: bool, length: float = length, sent_at: float = sent_at) -> None:
                worker.in_flight -= 1
                if is_answer:
                    result.answers += 1
                    result.answered_at.append(clock.now)
                    tokens = int(length * TOKENS) if with_tokens else 0
                    worker.slots.note_answers(1, tokens=tokens, busy_s=clock.now - sent_at)
                else:
                    lengths.appendleft(length)
                    worker.slots.note_refused(sent_at)
                send(worker)

            server.send(clock, length, done)

    def grant(request: SlotRequest) -> Grant:
        """What `store.grants` does."""
        others = [row for name, row in grants.items() if name != request.worker_id]
        if request.bounds is not None:
            assert request.observed is not None
            in_flight = request.in_flight + sum(min(other.slots, other.wanted) for other in others)
            result.state = advance_shared(
                result.state,
                request.observed,
                share=request.load_share,
                in_flight=in_flight,
                bounds=request.bounds,
                now=clock.now,
            )
            result.limits.append((clock.now, result.state.limit, result.state.rule))
            request = replace(request, concurrency_limit=result.state.limit)
        made = decide(request, others, turn=int(clock.now / 30.0))
        grants[request.worker_id] = OtherGrant(request.worker_id, made.slots, request.wanted)
        if result.state is None:
            return made
        return replace(made, limit=result.state.limit, rule=result.state.rule)

    def gauges(worker: Worker) -> EngineGauges | None:
        if clock.now < worker.gauges_at + gauges_every_s:
            return None
        worker.gauges_at = clock.now
        return server.gauges()

    def turn(worker: Worker) -> None:
        slots = worker.slots
        slots.use_share(share(clock.now))
        wanted = min(worker.in_flight + len(lengths), 3 * max(1, slots.limit(clock.now)))
        if slots.is_due(clock.now, wanted=wanted):
            result.requests += 1
            request = slots.request(
                worker.name,
                in_flight=worker.in_flight,
                wanted=wanted,
                now=clock.now,
                gauges=gauges(worker) if with_gauges else None,
            )
            slots.take(grant(request), asked_at=clock.now)
            send(worker)
        if result.answers < lines:
            clock.after(max(0.01, min(BEAT_S, slots.rebalance_in_s(clock.now))), lambda: turn(worker))

    if online is not None:
        assert isinstance(server, Saturating)
        online.begin(clock, server)
    for number, worker in enumerate(fleet):
        clock.after(number * 0.05 / workers, lambda worker=worker: turn(worker))
    while result.answers < lines:
        clock.step()
    result.seconds = clock.now
    return result


def _length(chance: random.Random, spread: float) -> float:
    if not spread:
        return 1.0
    return max(0.05, chance.gammavariate(1 / spread**2, spread**2))
