"""Concurrency grants: how the workers of one upstream share its concurrency limit. No I/O.

The store keeps one **grant** per upstream and worker: how many attempts the worker may have in flight (its
slots), and until when. The unexpired grants of an upstream never add up to more than its concurrency limit,
in whatever order workers send requests, die or resume.

    worker                                     store, in one transaction
    request: held 40, wanted 100  ──────────▶  others hold 24 of 64; target 32  (`decide`)
    slots 40, target 32           ◀──────────  grant
    starts no attempt above 32, waits until attempts in flight end
    request: held 32              ──────────▶  grant: slots 32, target 32; 8 slots are left for the others

Why the sum holds: with a request a worker promises that it will have no more than `held` attempts in flight
until the answer arrives. The store grants at most what the other unexpired grants leave. A worker whose
target is below its slots keeps its attempts in flight until they end; only then can other workers grow.

The target is the fair share: every worker gets what it wants or an equal part. With fewer slots than workers,
the workers take turns. The rate limits are shared in the proportion of the slots, so the rates add up too.

Failures: a worker that dies leaves a grant that expires after `ttl_s`, counted from before the request was
sent, so that the worker's own clock ends the grant no later than the store does. A worker that cannot reach
the store starts no attempt after that time. A worker that drains returns its slots.

An **adaptive** limit (`core/adaptive_limit.py`) changes while grants are held. With each request a worker
reports what it has seen of the upstream, and the store advances the limit before it decides. After a cut the
grants of the other workers may add up to more than the limit until they expire or are renewed. Until then no
grant lets a worker start an attempt that the limit has no room for; attempts in flight may end.

The store runs `decide` in a transaction; the worker sends a request when `Slots.is_due` says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.limit_rules import LimitRule
from nightmill.core.limit_state import Bounds, Observed
from nightmill.core.load_share import LoadShare
from nightmill.ids import WorkerId

_REQUEST_S = 0.01
"""Average time for which each worker may lock the upstream's row: a request among a thousand workers locks
the row for some milliseconds. Many workers therefore send requests more seldom (see docs/scale.md).
"""

_LONGEST_INTERVAL = 1 / 3  # of a grant's lifetime

_SOONEST_S = 0.05
"""Shortest interval of requests while an adaptive limit is searched for."""

_SEARCHING = frozenset(
    {
        LimitRule.START,
        LimitRule.GROW,
        LimitRule.PROBE,
        LimitRule.SHRINK,
        LimitRule.CONFIRM,
        LimitRule.REVERT,
        LimitRule.ACKNOWLEDGEMENT,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRequest:
    """A worker's request for slots of an upstream, for example "held 40, wanted 100 of 64".

    Args:
        upstream: the name under which all workers of one upstream share its limit.
        concurrency_limit: attempts in flight at once, over all workers; of an adaptive limit the newest that
            the worker knows.
        held: the most attempts the worker will have in flight until the grant arrives.
        wanted: slots the worker could use now; 0 returns the grant.
        in_flight: attempts in flight now; only used with a limit that changes.
        observed: what the worker has seen since its last request; None with a fixed limit.
        bounds: of an adaptive limit; None with a fixed limit.
        load_share: the share of the upstream in effect; None if it is always the whole. The limit of a fixed
            concurrency is already the share.
    """

    upstream: str
    worker_id: WorkerId
    concurrency_limit: int
    held: int
    wanted: int
    in_flight: int = 0
    observed: Observed | None = None
    bounds: Bounds | None = None
    load_share: LoadShare | None = None

    @property
    def may_be_cut(self) -> bool:
        """Whether the limit changes while grants are held."""
        return self.bounds is not None or self.load_share is not None


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a `SlotRequest`. Not to be confused with a `Lease`, which is a right to lines.

    Args:
        slots: attempts the worker may have in flight until the grant expires.
        target: slots the worker will have once other workers have shrunk or grown to their shares.
        worker_count: workers that want slots, this worker included.
        limit: the adaptive limit now; 0 with a fixed limit.
        rule: the `LimitRule` that set the adaptive limit.
        advice: what to change at the engine for a higher limit.
    """

    slots: int
    target: int
    worker_count: int = field(default=1, compare=False)
    limit: int = field(default=0, compare=False)
    rule: str = field(default="", compare=False)
    advice: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class OtherGrant:
    """The unexpired grant of another worker of the same upstream."""

    worker_id: WorkerId
    slots: int
    wanted: int


def decide(request: SlotRequest, others: Sequence[OtherGrant], *, turn: int) -> Grant:
    """The grant for a request: at most what the others leave, and more than the fair share only if it is
    held.

    Args:
        others: the unexpired grants of the upstream's other workers.
        turn: a number that grows with time; with fewer slots than workers, it decides which workers are next.
    """
    if request.wanted == 0 and request.held == 0:
        return Grant(0, 0)
    wanted = {other.worker_id: other.wanted for other in others if other.wanted}
    if request.wanted:
        wanted[request.worker_id] = request.wanted
    order = sorted(wanted)
    first = turn % len(order) if len(order) > request.concurrency_limit else 0
    order = order[first:] + order[:first]
    target = fair_shares(
        request.concurrency_limit, {worker_id: wanted[worker_id] for worker_id in order}
    ).get(request.worker_id, 0)
    room = max(0, request.concurrency_limit - sum(other.slots for other in others))
    slots = min(room, max(target, request.held))
    if request.may_be_cut and slots < request.in_flight:
        # The limit was cut. Attempts in flight keep their slots, and none is used again.
        return Grant(request.in_flight, min(target, slots), len(order))
    return Grant(slots, target, len(order))


def fair_shares(concurrency_limit: int, wanted: Mapping[WorkerId, int]) -> dict[WorkerId, int]:
    """Gives each worker the slots it wants or an equal part; slots that no worker wants are shared evenly.

    Args:
        wanted: wanted slots of each worker; slots that cannot be shared evenly go to the first workers.
    """
    shares = dict.fromkeys(wanted, 0)
    left = concurrency_limit
    hungry: list[WorkerId] = list(wanted)
    while left and hungry:
        part, odd = divmod(left, len(hungry))
        for place, worker_id in enumerate(hungry):
            more = min(part + (place < odd), wanted[worker_id] - shares[worker_id])
            shares[worker_id] += more
            left -= more
        hungry = [worker_id for worker_id in hungry if shares[worker_id] < wanted[worker_id]]
        hungry.sort(key=lambda worker_id: shares[worker_id])
    if wanted:
        part, odd = divmod(left, len(wanted))
        for place, worker_id in enumerate(wanted):
            shares[worker_id] += part + (place < odd)
    return shares


class Slots:
    """A worker's side of its grant of one upstream. Times are monotonic seconds of the worker's clock.

    Args:
        upstream: see `SlotRequest`.
        concurrency_limit: see `SlotRequest`; unused with `bounds`.
        ttl_s: lifetime of a grant, from the time of its request.
        ask_every_s: interval of the requests of a worker that uses its grant.
        rebalance_s: interval while the grant differs from the worker's share. Both intervals grow with the
            number of workers.
        bounds: makes the limit adaptive. Then every attempt's end is reported with a `note_` method.
    """

    __slots__ = (
        "_ask_at",
        "_ask_every_s",
        "_asked_at",
        "_bounds",
        "_concurrency_limit",
        "_cut_at",
        "_granted",
        "_is_lacking",
        "_is_leaving",
        "_load_share",
        "_rebalance_s",
        "_reported_at",
        "_seen",
        "_slots",
        "_soonest_s",
        "_target",
        "_ttl_s",
        "_until",
        "_upstream",
        "_whole",
    )

    def __init__(
        self,
        upstream: str,
        *,
        concurrency_limit: int,
        ttl_s: float,
        ask_every_s: float,
        rebalance_s: float = 0.25,
        bounds: Bounds | None = None,
    ) -> None:
        self._upstream = upstream
        self._bounds = bounds
        self._load_share: LoadShare | None = None
        self._whole = min(bounds.start, bounds.most) if bounds else concurrency_limit
        self._concurrency_limit = self._whole
        self._ttl_s = ttl_s
        self._ask_every_s = ask_every_s
        self._rebalance_s = min(rebalance_s, ask_every_s)
        self._soonest_s = _SOONEST_S
        self._slots = 0
        self._target = 0
        self._until = 0.0
        self._ask_at = 0.0
        self._asked_at = 0.0
        self._cut_at = -math.inf  # attempts that started earlier were sent under a higher limit
        self._reported_at: float | None = None
        self._is_leaving = False
        self._is_lacking = False
        self._granted = Grant(0, 0)
        self._seen = _Seen()

    @property
    def concurrency_limit(self) -> int:
        """Attempts in flight at once, over all workers of the upstream; if adaptive, as of the last grant."""
        return self._concurrency_limit

    @property
    def rule(self) -> str:
        """The `LimitRule` that set the limit; empty with a fixed limit and before the first grant."""
        if self._bounds is None and self._load_share is not None and self._load_share.part < 1:
            return LimitRule.SHARE
        return self._granted.rule

    @property
    def advice(self) -> str | None:
        """What to change at the engine for a higher limit."""
        return self._granted.advice

    @property
    def share(self) -> float:
        """This worker's part of the upstream's rate limits, from 0 to 1."""
        return min(1.0, min(self._slots, self._target) / self._concurrency_limit)

    def use_share(self, load_share: LoadShare | None) -> None:
        """Uses another share of the upstream from now on; the next request is due at once.

        Args:
            load_share: None for the whole upstream at all times.
        """
        if load_share == self._load_share:
            return
        self._load_share = load_share
        self._ask_at = 0.0
        if self._bounds is None:
            self._concurrency_limit = self._whole if load_share is None else load_share.of(self._whole)

    def limit(self, now: float) -> int:
        """An attempt may start while fewer are in flight; 0 once the grant has expired."""
        if now >= self._until:
            return 0
        return max(0, min(self._slots, self._target) - self._seen.blocked)

    def is_due(self, now: float, *, wanted: int) -> bool:
        """Whether to send a request now. A worker that has and wants no slots never sends requests."""
        if not (wanted or self._slots):
            return False
        return now >= self._ask_at or (self._has_evidence() and now >= self._asked_at + self._soonest_s)

    def rebalance_in_s(self, now: float) -> float:
        """Seconds until a request may bring the grant to the share, or an adaptive limit nearer to its value;
        infinite while neither is expected."""
        wait_s = math.inf if self._slots == self._target else max(0.0, self._ask_at - now)
        if self._bounds is None or not (self._is_searching() or self._seen.blocked):
            return wait_s
        # What is seen until then decides whether the request is due.
        soonest_s = self._asked_at + self._soonest_s - now
        return min(wait_s, max(0.0 if self._has_evidence() else self._soonest_s, soonest_s))

    def request(
        self,
        worker_id: WorkerId,
        *,
        in_flight: int,
        wanted: int,
        now: float = 0.0,
        gauges: EngineGauges | None = None,
    ) -> SlotRequest:
        """The request to send. From now on no more than its `held` attempts may be in flight.

        Args:
            now: only used with an adaptive limit.
            gauges: the newest reading of the engine's gauges that was in no request before.
        """
        usable = max(0, min(self._slots, self._target) - self._seen.blocked)
        self._is_lacking = wanted > usable
        self._slots = held = max(in_flight, usable) if wanted else in_flight
        self._is_leaving = wanted == 0
        if self._bounds is None:
            return SlotRequest(
                upstream=self._upstream,
                worker_id=worker_id,
                concurrency_limit=self._concurrency_limit,
                held=held,
                wanted=min(wanted, self._concurrency_limit),
                in_flight=in_flight,
                load_share=self._load_share,
            )
        seen, self._seen = self._seen, _Seen()
        over_s = 0.0 if self._reported_at is None else now - self._reported_at
        self._reported_at = now if wanted else None  # no report covers the time without work
        return SlotRequest(
            upstream=self._upstream,
            worker_id=worker_id,
            concurrency_limit=self._concurrency_limit,
            held=held,
            wanted=min(wanted, self._bounds.most),
            in_flight=in_flight,
            observed=seen.observed(is_lacking=self._is_lacking, over_s=over_s, gauges=gauges),
            bounds=self._bounds,
            load_share=self._load_share,
        )

    def take(self, grant: Grant, *, asked_at: float) -> None:
        """Applies the grant of the request that was sent at `asked_at`."""
        self._slots, self._target = grant.slots, grant.target
        self._until = asked_at + self._ttl_s
        self._asked_at = asked_at
        self._granted = grant
        if self._bounds is not None and grant.limit:
            if grant.limit < self._concurrency_limit:
                self._cut_at = asked_at
            self._concurrency_limit = grant.limit
        if self._is_leaving:
            self._ask_at = asked_at  # so that the next request is due as soon as there is work
            return
        is_settled = grant.slots == grant.target and grant.slots > 0 and not self._is_searching()
        turn_s = min(grant.worker_count * _REQUEST_S, self._ttl_s * _LONGEST_INTERVAL)
        self._soonest_s = max(_SOONEST_S, turn_s)
        self._ask_at = asked_at + max(self._ask_every_s if is_settled else self._rebalance_s, turn_s)

    def note_answers(self, count: int, *, tokens: int, busy_s: float) -> None:
        """Notes answered attempts, for an adaptive limit.

        Args:
            tokens: of all these answers; 0 if unknown.
            busy_s: sum of their durations.
        """
        self._seen.answered += count
        self._seen.tokens += tokens
        self._seen.busy_s += busy_s

    def note_refused(self, started_at: float) -> None:
        """Notes an attempt that was refused with 429, 503 or 529, for an adaptive limit.

        Its slot is not used again before the next grant, since the upstream does not take that many.
        """
        if self._bounds is None:
            return
        self._seen.blocked += 1
        self._seen.refused += started_at >= self._cut_at

    def note_timed_out(self, started_at: float) -> None:
        """Notes an attempt that timed out, for an adaptive limit."""
        self._seen.timed_out += started_at >= self._cut_at

    def _is_searching(self) -> bool:
        return self._is_lacking and self._granted.rule in _SEARCHING

    def _has_evidence(self) -> bool:
        """Whether the worker has seen enough since its last request to report early."""
        if self._bounds is None:
            return False
        seen = self._seen
        if seen.refused or seen.timed_out:
            return True
        return self._is_searching() and 2 * seen.answered >= min(self._slots, self._target)


class _Seen:
    """What a worker has seen since its last request.

    Attributes:
        blocked: slots that are not used before the next grant.
    """

    __slots__ = ("answered", "blocked", "busy_s", "refused", "timed_out", "tokens")

    def __init__(self) -> None:
        self.answered = self.tokens = self.refused = self.timed_out = self.blocked = 0
        self.busy_s = 0.0

    def observed(self, *, is_lacking: bool, over_s: float, gauges: EngineGauges | None) -> Observed:
        return Observed(
            answered=self.answered,
            tokens=self.tokens,
            busy_s=self.busy_s,
            refused=self.refused,
            timed_out=self.timed_out,
            lacking=is_lacking,
            over_s=over_s,
            gauges=gauges,
        )
