"""Decides which fault a request gets: by words in the line, by the settings, and by chance, in this order.

A fault of the settings has a text to match in the body and a number of uses. The first fault in the list that
matches and is not used up is injected. Failures and waits by chance depend on the body and on how often it
failed before, so that a run can be repeated in any order of requests. Requests with a fault are recorded like
all others.
"""

from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Final

from msgspec import Struct

from nightmill.emulator.content import BadBodyError, error
from nightmill.emulator.faults import Fault
from nightmill.emulator.orders import MARK, orders_in

_MOST_COUNTED: Final = 100_000
_P99_SIGMAS: Final = 2.326_347_874


class Chances(Struct, frozen=True):
    """What is left to chance. `fail_rate` is a share; the failures have one of `fail_statuses`."""

    fail_rate: float = 0.0
    fail_statuses: tuple[int, ...] = (500, 503)
    delay_s: float = 0.0
    delay_p99_s: float | None = None
    seed: int = 0

    def delay_of(self, body: bytes) -> float:
        """Seconds before the answer to this body."""
        if self.delay_p99_s is None or self.delay_s <= 0:
            return self.delay_s
        spread = (self.delay_p99_s / self.delay_s) ** (1 / _P99_SIGMAS)
        return self.delay_s * spread ** self._random(body, 0).gauss(0, 1)

    def failure_of(self, body: bytes, failed_before: int) -> Fault | None:
        """The failure of this request; None for an answer."""
        random = self._random(body, failed_before + 1)
        if random.random() >= self.fail_rate:
            return None
        return Fault("status", status=random.choice(self.fail_statuses))

    def _random(self, body: bytes, draw: int) -> Random:
        key = b"%d %d" % (self.seed, draw)
        return Random(blake2b(body, digest_size=16, key=key[:64]).digest())  # noqa: S311 - no secret


NO_CHANCES: Final = Chances()


class FaultPlan:
    """The faults that are not used up, and how often each body has had one."""

    def __init__(self, faults: Sequence[Fault] = (), chances: Chances = NO_CHANCES) -> None:
        self._faults: list[tuple[Fault, bytes]] = [(fault, fault.match.encode()) for fault in faults]
        self._remaining: list[int | None] = [fault.times for fault in faults]
        self._chances = chances
        self._counts: dict[bytes, int] = {}

    def next_for(self, body: bytes) -> Fault | None:
        """The fault for this request; None for an answer."""
        if MARK in body and (fault := self._ordered(body)) is not None:
            return fault
        if self._faults and (fault := self._configured(body)) is not None:
            return fault
        return self._by_chance(body) if self._chances.fail_rate > 0 else None

    def _ordered(self, body: bytes) -> Fault | None:
        try:
            orders = orders_in(body)
        except BadBodyError as bad:
            return Fault("status", status=400, body=error(400, str(bad)).body.decode())
        key = b"o" + blake2b(body, digest_size=16).digest()
        left = self._counts.get(key, 0)
        for order in orders:
            if order.times is None:
                return order
            if left < order.times:
                self._count(key)
                return order
            left -= order.times
        self._counts.pop(key, None)  # the next request with this body begins anew
        return None

    def _configured(self, body: bytes) -> Fault | None:
        for index, (fault, match) in enumerate(self._faults):
            remaining = self._remaining[index]
            if remaining == 0 or match not in body:
                continue
            if remaining is not None:
                self._remaining[index] = remaining - 1
            return fault
        return None

    def _by_chance(self, body: bytes) -> Fault | None:
        key = b"c" + blake2b(body, digest_size=16).digest()
        fault = self._chances.failure_of(body, self._counts.get(key, 0))
        if fault is None:
            self._counts.pop(key, None)
        else:
            self._count(key)
        return fault

    def _count(self, key: bytes) -> None:
        self._counts[key] = self._counts.get(key, 0) + 1
        if len(self._counts) > _MOST_COUNTED:
            del self._counts[next(iter(self._counts))]  # the oldest
