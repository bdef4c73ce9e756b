"""How much of an upstream each worker may use, so that all of them together stay within its limits.

The store keeps one **grant** per upstream and worker: how many attempts it may have in flight, until when.
Promise: the unexpired grants of an upstream never add up to more than its concurrency limit, in whatever
order workers ask, die or wake. A worker promises before it asks: more than `held` it will not have in flight
until it has its answer. A worker that is to shrink keeps what it has in flight until that is answered; only
then others grow. The rates are shared in the same proportion, so they add up too.

No I/O: the store runs `decide` in a transaction, the worker asks when `Slots.is_due` says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nightmill.ids import WorkerId

_CLAIM_S = 0.01
"""So much of the upstream's row each sharer may take, on the average: a request among a thousand holds it for
some milliseconds. Many workers therefore ask more seldom (see docs/scale.md)."""

_LONGEST_ASK = 1 / 3  # of a lease


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRequest:
    """What a worker says when it asks.

    Args:
        upstream: the name under which all workers of one upstream meet.
        concurrency_limit: attempts in flight at once, over all workers.
        held: the most it will have in flight until it is answered.
        wanted: how many it could use now; 0 gives the grant back.
    """

    upstream: str
    worker_id: WorkerId
    concurrency_limit: int
    held: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What a worker may have in flight (`slots`), and what it is to come to (`target`) as others move.

    `worker_count` is how many want a part, the worker itself included.
    """

    slots: int
    target: int
    worker_count: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class OtherGrant:
    """Another worker's unexpired grant."""

    worker_id: WorkerId
    slots: int
    wanted: int


def decide(request: SlotRequest, others: Sequence[OtherGrant], *, turn: int) -> Grant:
    """The answer: at most what the others leave, and never more than the fair share unless it is held.

    With fewer slots than workers `turn`, a number that grows with time, says whose turn it is.
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
    return Grant(min(room, max(target, request.held)), target, len(order))


def fair_shares(concurrency_limit: int, wanted: Mapping[WorkerId, int]) -> dict[WorkerId, int]:
    """Everybody gets what it wants, or an equal part of what there is; what is left over is shared evenly.

    The order of `wanted` says who gets the odd slots.
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
    """A worker's side of its grant. Times are of its monotonic clock.

    Args:
        upstream: see `SlotRequest`.
        concurrency_limit: see `SlotRequest`.
        ttl_s: a grant lapses so long after it was asked for.
        ask_every_s: a worker that uses its grant asks as often, at least.
        rebalance_s: and so often while it has more or less than its share. Both hold for few workers; many
            take
            turns.
    """

    __slots__ = (
        "_ask_at",
        "_ask_every_s",
        "_concurrency_limit",
        "_is_leaving",
        "_rebalance_s",
        "_slots",
        "_target",
        "_ttl_s",
        "_until",
        "_upstream",
    )

    def __init__(
        self,
        upstream: str,
        *,
        concurrency_limit: int,
        ttl_s: float,
        ask_every_s: float,
        rebalance_s: float = 0.25,
    ) -> None:
        self._upstream = upstream
        self._concurrency_limit = concurrency_limit
        self._ttl_s = ttl_s
        self._ask_every_s = ask_every_s
        self._rebalance_s = min(rebalance_s, ask_every_s)
        self._slots = 0
        self._target = 0
        self._until = 0.0
        self._ask_at = 0.0
        self._is_leaving = False

    @property
    def share(self) -> float:
        """The part of the upstream's rates that is ours."""
        return min(self._slots, self._target) / self._concurrency_limit

    def limit(self, now: float) -> int:
        """An attempt may be started while fewer are in flight. 0 once the grant has lapsed."""
        return min(self._slots, self._target) if now < self._until else 0

    def is_due(self, now: float, *, wanted: int) -> bool:
        """Whether to ask now. One that wants nothing and has nothing never asks."""
        return bool(wanted or self._slots) and now >= self._ask_at

    def rebalance_in_s(self, now: float) -> float:
        """How long until it is to ask for what it lacks or give what it has too much; else its beats do."""
        return math.inf if self._slots == self._target else max(0.0, self._ask_at - now)

    def request(self, worker_id: WorkerId, *, in_flight: int, wanted: int) -> SlotRequest:
        """What to ask; from now on no more than `held` are in flight."""
        self._slots = held = max(in_flight, min(self._slots, self._target)) if wanted else in_flight
        self._is_leaving = wanted == 0
        return SlotRequest(
            upstream=self._upstream,
            worker_id=worker_id,
            concurrency_limit=self._concurrency_limit,
            held=held,
            wanted=min(wanted, self._concurrency_limit),
        )

    def take(self, grant: Grant, *, asked_at: float) -> None:
        self._slots, self._target = grant.slots, grant.target
        self._until = asked_at + self._ttl_s
        if self._is_leaving:
            self._ask_at = asked_at  # it asks again as soon as there is work
            return
        is_settled = grant.slots == grant.target and grant.slots > 0
        turn_s = min(grant.worker_count * _CLAIM_S, self._ttl_s * _LONGEST_ASK)
        self._ask_at = asked_at + max(self._ask_every_s if is_settled else self._rebalance_s, turn_s)
