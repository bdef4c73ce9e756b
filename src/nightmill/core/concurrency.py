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

The store runs `decide` in a transaction; the worker sends a request when `Slots.is_due` says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nightmill.ids import WorkerId

_REQUEST_S = 0.01
"""Average time for which each worker may lock the upstream's row: a request among a thousand workers locks
the row for some milliseconds. Many workers therefore send requests more seldom (see docs/scale.md).
"""

_LONGEST_INTERVAL = 1 / 3  # of a grant's lifetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRequest:
    """A worker's request for slots of an upstream, for example "held 40, wanted 100 of 64".

    Args:
        upstream: the name under which all workers of one upstream share its limit.
        concurrency_limit: attempts in flight at once, over all workers.
        held: the most attempts the worker will have in flight until the grant arrives.
        wanted: slots the worker could use now; 0 returns the grant.
    """

    upstream: str
    worker_id: WorkerId
    concurrency_limit: int
    held: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a `SlotRequest`. Not to be confused with a `Lease`, which is a right to lines.

    Args:
        slots: attempts the worker may have in flight until the grant expires.
        target: slots the worker will have once other workers have shrunk or grown to their shares.
        worker_count: workers that want slots, this worker included.
    """

    slots: int
    target: int
    worker_count: int = field(default=1, compare=False)


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
    return Grant(min(room, max(target, request.held)), target, len(order))


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
        concurrency_limit: see `SlotRequest`.
        ttl_s: lifetime of a grant, from the time of its request.
        ask_every_s: interval of the requests of a worker that uses its grant.
        rebalance_s: interval while the grant differs from the worker's share. Both intervals grow with the
            number of workers.
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
    def concurrency_limit(self) -> int:
        """Attempts in flight at once, over all workers of the upstream."""
        return self._concurrency_limit

    @property
    def share(self) -> float:
        """This worker's part of the upstream's rate limits, from 0 to 1."""
        return min(self._slots, self._target) / self._concurrency_limit

    def limit(self, now: float) -> int:
        """An attempt may start while fewer are in flight; 0 once the grant has expired."""
        return min(self._slots, self._target) if now < self._until else 0

    def is_due(self, now: float, *, wanted: int) -> bool:
        """Whether to send a request now. A worker that has and wants no slots never sends requests."""
        return bool(wanted or self._slots) and now >= self._ask_at

    def rebalance_in_s(self, now: float) -> float:
        """Seconds until a request may bring the grant to the share; infinite while the grant is the share."""
        return math.inf if self._slots == self._target else max(0.0, self._ask_at - now)

    def request(self, worker_id: WorkerId, *, in_flight: int, wanted: int) -> SlotRequest:
        """The request to send. From now on no more than its `held` attempts may be in flight."""
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
        """Applies the grant of the request that was sent at `asked_at`."""
        self._slots, self._target = grant.slots, grant.target
        self._until = asked_at + self._ttl_s
        if self._is_leaving:
            self._ask_at = asked_at  # so that the next request is due as soon as there is work
            return
        is_settled = grant.slots == grant.target and grant.slots > 0
        turn_s = min(grant.worker_count * _REQUEST_S, self._ttl_s * _LONGEST_INTERVAL)
        self._ask_at = asked_at + max(self._ask_every_s if is_settled else self._rebalance_s, turn_s)
