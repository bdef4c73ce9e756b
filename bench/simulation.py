"""A simulated fleet of a thousand workers in one process: discrete events, a simulated clock, a seed.

The code that shares an upstream is the real one (`concurrency.decide`, `concurrency.Slots`). The order in
which segments are leased, the times of heartbeats, slot requests and leases, the release of expired leases,
and the effects of an outage follow the real roles. The upstream is simulated (a number of answers per second
for each attempt in flight), and so is the database: a number of connections served at once, transactions of
the measured length, and slot requests for one upstream served one after another.

The fair order of leases here (deadline first, then the project that was served least) is not that of
`core/schedule.py`, which also shares the leased lines of one worker.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from nightmill.core.concurrency import OtherGrant, SlotRequest, Slots, decide
from nightmill.ids import WorkerId

_IDLE_S = 1.0
_ASK_BEATS = 0.75
_MAINTENANCE_S = 1.0
_SHARED = "upstream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Measured time of the database for one transaction of each kind."""

    lease_s: float = 0.0011
    complete_s: float = 0.0009
    beat_s: float = 0.0012
    slot_request_s: float = 0.0012
    slot_request_per_grant_s: float = 0.000004
    served_at_once: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The simulated fleet.

    Args:
        spreads: workers of one limit spread their slot requests, as `Slots` does; otherwise each worker
            sends a request with every heartbeat.
        fair: segments are leased in the fair order instead of oldest batch first.
    """

    workers: int
    concurrency_limit: int
    latency_s: float = 2.0
    lines_per_segment: int = 500
    lease_ttl_s: float = 30.0
    beat_s: float = 1.0
    seed: int = 1
    costs: Costs = field(default_factory=Costs)
    spreads: bool = True
    fair: bool = False


@dataclass(slots=True)
class Batch:
    """A batch in progress. Its waiting segments are those from `next` on, and the released ones in `back`."""

    number: int
    project: str
    segments: int
    deadline: float
    created: float
    next: int = 0
    back: list[int] = field(default_factory=list)
    done: int = 0
    first_lease: float | None = None
    ended: float | None = None

    @property
    def waiting(self) -> int:
        return self.segments - self.next + len(self.back)

    def take(self) -> int:
        if self.back:
            return heapq.heappop(self.back)
        self.next += 1
        return self.next - 1


@dataclass(slots=True)
class Held:
    batch: Batch
    segment: int
    worker: int
    token: int
    until: float


class Worker:
    """One worker: its slots, its leased segments, and its attempts in flight."""

    __slots__ = (
        "answered",
        "at",
        "flying",
        "frozen_until",
        "held",
        "id",
        "is_dead",
        "next_beat",
        "number",
        "pace",
        "slots",
    )

    def __init__(self, number: int, fleet: Fleet) -> None:
        self.number = number
        self.id = WorkerId(f"worker-{number:05}")
        self.slots = Slots(
            _SHARED,
            concurrency_limit=fleet.concurrency_limit,
            ttl_s=fleet.lease_ttl_s,
            ask_every_s=_ASK_BEATS * fleet.beat_s,
        )
        self.held: list[tuple[Held, list[float]]] = []
        self.flying = 0.0
        self.at = 0.0
        self.answered = 0.0
        self.is_dead = False
        self.frozen_until = 0.0
        self.next_beat = 0.0
        self.pace = 1.0  # some lines are longer than others


@dataclass(slots=True)
class Seen:
    """The results of a run."""

    lines: float = 0.0
    slot_requests: int = 0
    leases: int = 0
    transactions: int = 0
    lost: int = 0
    waits: list[float] = field(default_factory=list)
    slot_request_waits: list[float] = field(default_factory=list)
    flying: list[tuple[float, float, float]] = field(default_factory=list)
    """(moment, attempts in flight, slots granted), every second."""
    by_project: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    most_granted: int = 0
    row_s: float = 0.0
    """Time for which the row of the upstream was locked."""


class Simulation:
    """A simulation: `add` adds batches, `at` schedules faults, `run` runs it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.seen = Seen()
        self.now = 0.0
        self._random = random.Random(fleet.seed)
        self.workers = [Worker(number, fleet) for number in range(fleet.workers)]
        for worker in self.workers:
            worker.pace = self._random.uniform(0.8, 1.2)
        self.batches: list[Batch] = []
        self.is_unavailable = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._servers = [0.0] * fleet.costs.served_at_once
        self._row_free = 0.0
        self._grants: dict[WorkerId, tuple[int, int, float]] = {}
        self._next_lapse = 0.0
        self._held: dict[tuple[int, int], Held] = {}
        self._tokens = count(1)
        self._served: dict[str, float] = {}
        self._healthy_since = 0.0
        for worker in self.workers:
            self.at(self._random.random() * fleet.beat_s, self._turning(worker))
        self.at(_MAINTENANCE_S, self._maintain)
        self.at(0.0, self._look)

    # --- from outside ----------------------------------------------------------------------------

    def at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), action))

    def add(self, project: str, segments: int, *, window_s: float = 86_400.0) -> Batch:
        batch = Batch(len(self.batches), project, segments, self.now + window_s, self.now)
        self.batches.append(batch)
        return batch

    def run(self, until: float) -> Seen:
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = until
        return self.seen

    def kill(self, workers: Iterator[int] | range) -> None:
        for number in workers:
            self.workers[number].is_dead = True

    def freeze(self, workers: Iterator[int] | range, *, seconds: float) -> None:
        for number in workers:
            self.workers[number].frozen_until = self.now + seconds

    def start_outage(self) -> None:
        self.is_unavailable = True

    def end_outage(self) -> None:
        self.is_unavailable = False

    @property
    def granted(self) -> int:
        return sum(slots for slots, _, until in self._grants.values() if until > self.now)

    @property
    def unsettled(self) -> int:
        """The number of living workers whose slots differ from their target."""
        living = [worker for worker in self.workers if not worker.is_dead]
        return sum(worker.slots.rebalance_in_s(self.now) != math.inf for worker in living)

    def _forget_lapsed(self) -> None:
        if self.now >= self._next_lapse:
            self._grants = {who: grant for who, grant in self._grants.items() if grant[2] > self.now}
            self._next_lapse = min((grant[2] for grant in self._grants.values()), default=self.now)

    # --- the database ----------------------------------------------------------------------------

    def _transaction(self, cost_s: float) -> float:
        """The end time of a transaction that first waits for one of the database connections."""
        free = heapq.heappop(self._servers)
        over = max(self.now, free) + cost_s
        heapq.heappush(self._servers, over)
        self.seen.transactions += 1
        self.seen.waits.append(over - self.now)
        return over

    def _grant(self, worker: Worker, request: SlotRequest) -> float:
        """Grants slots as `store.grants` does: requests for one upstream are served one after another."""
        fleet = self.fleet
        self._forget_lapsed()
        others = [
            OtherGrant(who, slots, wanted)
            for who, (slots, wanted, _) in self._grants.items()
            if who is not worker.id
        ]
        made = decide(request, others, turn=int(self.now / fleet.lease_ttl_s))
        self._grants.pop(worker.id, None)
        if made.slots or request.wanted:
            self._grants[worker.id] = (made.slots, request.wanted, self.now + fleet.lease_ttl_s)
        hold_s = fleet.costs.slot_request_s + fleet.costs.slot_request_per_grant_s * len(others)
        over = self._row_free = max(self.now, self._row_free) + hold_s
        self.seen.slot_requests += 1
        self.seen.row_s += hold_s
        self.seen.transactions += 1
        self.seen.slot_request_waits.append(over - self.now)
        granted = made.slots + sum(other.slots for other in others)
        if granted > fleet.concurrency_limit:
            raise AssertionError(f"{granted} slots granted of {fleet.concurrency_limit}")
        self.seen.most_granted = max(self.seen.most_granted, granted)
        if not fleet.spreads:
            made = type(made)(made.slots, made.target)
        worker.slots.take(made, asked_at=self.now)
        return over

    def _lease(self, worker: Worker, limit: int) -> list[Held]:
        leases: list[Held] = []
        while len(leases) < limit:
            batch = self._next_batch()
            if batch is None:
                break
            segment = batch.take()
            until = self.now + self.fleet.lease_ttl_s
            held = Held(batch, segment, worker.number, next(self._tokens), until)
            key = (batch.number, segment)
            if key in self._held:
                raise AssertionError(f"segment {key} is held twice")
            self._held[key] = held
            if batch.first_lease is None:
                batch.first_lease = self.now
            leases.append(held)
            self._served[batch.project] = self._served.get(batch.project, 0.0) + 1
        self.seen.leases += len(leases)
        return leases

    def _next_batch(self) -> Batch | None:
        waiting = [batch for batch in self.batches if batch.waiting]
        if not waiting:
            return None
        if not self.fleet.fair:
            return waiting[0]  # the oldest
        per_s = self.fleet.concurrency_limit / self.fleet.latency_s / self.fleet.lines_per_segment
        late = [batch for batch in waiting if batch.deadline - self.now < 2 * batch.waiting / per_s]
        if late:
            return min(late, key=lambda batch: (batch.deadline, batch.number))
        # A project gets no credit for time without work: it starts level with the least served project.
        least = min(self._served.get(batch.project, 0.0) for batch in waiting)
        return min(waiting, key=lambda b: (self._served.get(b.project, least) - least, b.number))

    def _beat(self, worker: Worker) -> None:
        kept: list[tuple[Held, list[float]]] = []
        for held, left in worker.held:
            newest = self._held.get((held.batch.number, held.segment))
            if newest is held:
                held.until = self.now + self.fleet.lease_ttl_s
                kept.append((held, left))
            else:
                self.seen.lost += 1
        worker.held = kept

    # --- roles -----------------------------------------------------------------------------------

    def _turning(self, worker: Worker) -> Callable[[], None]:
        return lambda: self._turn(worker)

    def _turn(self, worker: Worker) -> None:
        if worker.is_dead:
            return
        fleet = self.fleet
        if worker.frozen_until > self.now:
            worker.flying, worker.at = 0.0, worker.frozen_until
            self.at(worker.frozen_until, self._turning(worker))
            return
        done = self._answer(worker)
        if self.is_unavailable:
            worker.held += [(held, [0.0]) for held in done]  # kept until the database is available
            self._fly(worker)
            self.at(self.now + fleet.beat_s * (0.9 + 0.2 * self._random.random()), self._turning(worker))
            return
        over = self.now
        for held in done:
            over = max(over, self._transaction(fleet.costs.complete_s))
            if self._held.get((held.batch.number, held.segment)) is held:
                del self._held[held.batch.number, held.segment]
                held.batch.done += 1
                if held.batch.done == held.batch.segments:
                    held.batch.ended = self.now
            else:
                self.seen.lost += 1
        if self.now >= worker.next_beat:
            worker.next_beat = self.now + fleet.beat_s
            if worker.held:
                over = max(over, self._transaction(fleet.costs.beat_s))
                self._beat(worker)
        over = max(over, self._ask(worker))
        wanted = 2 * max(1, worker.slots.limit(self.now))
        unsent = sum(left[0] for _, left in worker.held)
        if unsent < wanted:
            limit = -(-int(wanted - unsent) // fleet.lines_per_segment) or 1
            over = max(over, self._transaction(fleet.costs.lease_s))
            worker.held += [(held, [float(fleet.lines_per_segment)]) for held in self._lease(worker, limit)]
            over = max(over, self._ask(worker))
        self._fly(worker)
        pause_s = min(_IDLE_S, max(0.001, worker.next_beat - self.now))
        if worker.held:
            pause_s = min(pause_s, max(0.01, worker.slots.rebalance_in_s(self.now)))
            pause_s = min(pause_s, max(0.01, self._low_in_s(worker)))
        self.at(max(over, self.now + pause_s * (0.9 + 0.2 * self._random.random())), self._turning(worker))

    def _ask(self, worker: Worker) -> float:
        wanted = int(sum(left[0] for _, left in worker.held)) + math.ceil(worker.flying)
        if not worker.slots.is_due(self.now, wanted=wanted):
            return self.now
        request = worker.slots.request(worker.id, in_flight=math.ceil(worker.flying), wanted=wanted)
        return self._grant(worker, request)

    def _answer(self, worker: Worker) -> list[Held]:
        """Counts the answers since the last turn; returns the finished segments."""
        answered = worker.flying * worker.pace * (self.now - worker.at) / self.fleet.latency_s
        worker.at = self.now
        done: list[Held] = []
        for held, left in worker.held:
            part = min(answered, left[0])
            left[0] -= part
            answered -= part
            worker.answered += part
            self.seen.lines += part
            if part:
                project = self.seen.by_project.setdefault(held.batch.project, [])
                if project and project[-1][0] == int(self.now):
                    project[-1] = (project[-1][0], project[-1][1] + part)
                else:
                    project.append((int(self.now), part))
            if left[0] <= 1e-9:
                done.append(held)
        worker.held = [(held, left) for held, left in worker.held if left[0] > 1e-9]
        return done

    def _fly(self, worker: Worker) -> None:
        """Starts attempts up to the limit; attempts above a lowered limit end when they are answered."""
        confirmed = sum(left[0] for held, left in worker.held if held.until > self.now)
        most = min(worker.slots.limit(self.now), confirmed)
        since = max(0.0, self.now - worker.at)
        worker.flying = max(most, worker.flying * (1 - min(1.0, since / self.fleet.latency_s)))
        if (
            worker.flying > most
        ):  # a turn is short compared with an answer, so attempts above the limit end soon
            drained = worker.flying * self.fleet.beat_s / 4 / self.fleet.latency_s
            worker.flying = max(most, worker.flying - drained)

    def _low_in_s(self, worker: Worker) -> float:
        """Seconds until the worker will need more lines."""
        if not worker.flying:
            return math.inf
        unsent = sum(left[0] for _, left in worker.held)
        per_s = worker.flying * worker.pace / self.fleet.latency_s
        return max(0.0, (unsent - 2 * worker.flying) / per_s)

    def _maintain(self) -> None:
        if self.is_unavailable:
            self._healthy_since = math.inf
        else:
            self._healthy_since = min(self._healthy_since, self.now)
            if self.now - self._healthy_since >= self.fleet.lease_ttl_s:
                lapsed = [key for key, held in self._held.items() if held.until <= self.now]
                for key in lapsed:
                    held = self._held.pop(key)
                    heapq.heappush(held.batch.back, held.segment)
        self.at(self.now + _MAINTENANCE_S, self._maintain)

    def _look(self) -> None:
        living = [w for w in self.workers if not w.is_dead and w.frozen_until <= self.now]
        self.seen.flying.append((self.now, sum(worker.flying for worker in living), self.granted))
        self.at(self.now + 1.0, self._look)
