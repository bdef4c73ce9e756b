"""The records of an adaptive concurrency limit: what is reported, and what `core/adaptive_limit.py` keeps."""

from typing import Self

import msgspec
from msgspec.structs import replace

from nightmill.core.engine_gauges import EngineGauges, advice_on
from nightmill.core.limit_rules import LimitRule

FIRST_GROW_PAUSE = 4  # windows
FIRST_SHRINK_PAUSE = 8
LONGEST_SHRINK_PAUSE = 64

_USED = 0.7  # part of the limit that must be in flight for a window to be evidence
_STEADY_READINGS = 5
_RUNNING_OF_SENT = 0.85  # fewer run than were sent
_MANY_PER_SLOT = 8  # answers for each slot in a window, from which goodput is measured by the clock


class Bounds(msgspec.Struct, frozen=True):
    """The first value of an adaptive limit, and its highest."""

    start: int = 16
    most: int = 1024


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker saw of an upstream since its last report.

    Args:
        answered: attempts that were answered.
        tokens: tokens of these answers; 0 if unknown.
        busy_s: sum of the durations of these attempts.
        refused: attempts refused with 429, 503 or 529 that were sent under the present limit.
        timed_out: attempts that timed out and were sent under the present limit.
        lacking: whether lines waited for a slot.
        over_s: seconds that the report covers.
        gauges: the newest reading of the engine's gauges, if this worker has a new one.
    """

    answered: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    refused: int = 0
    timed_out: int = 0
    lacking: bool = False
    over_s: float = 0.0
    gauges: EngineGauges | None = None

    @property
    def outcomes(self) -> int:
        """Attempts that ended."""
        return self.answered + self.refused + self.timed_out


class EvidenceWindow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all workers have reported since the last decision. Sums, except where it says otherwise."""

    begun_at: float
    unacknowledged: float = 0.0
    answered: float = 0.0
    tokens: float = 0.0
    busy_s: float = 0.0
    lacking: float = 0.0
    refused: float = 0.0
    timed_out: float = 0.0
    reports: int = 0
    in_flight: int = 0
    readings: int = 0
    running: int = 0
    waiting: int = 0
    preempted: int = 0
    kv_use: float | None = None
    hit_share: float | None = None
    engine: str = ""

    def goodput(self, limit: int, now: float) -> float | None:
        """Goodput of a full window; None if the limit was not used, so that the window is no evidence."""
        if self.lacking < self.answered / 2:
            return None
        amount = self.tokens or self.answered
        elapsed_s = now - self.begun_at
        if self.answered >= _MANY_PER_SLOT * limit or not self.busy_s:
            concurrency = self.busy_s / elapsed_s if self.busy_s else limit
            return amount / elapsed_s if concurrency >= _USED * limit else None
        concurrency = min(limit, self.in_flight / self.reports)
        return amount * concurrency / self.busy_s if concurrency >= _USED * limit else None


class LimitState(msgspec.Struct, frozen=True, omit_defaults=True):
    """An adaptive limit and what it remembers. Times are seconds of the store's clock.

    Args:
        limit: attempts that may be in flight at once, over all workers.
        rule: the `LimitRule` that set the limit last.
        advice: what to change at the engine for more throughput; stands until more in flight brings more.
        since: when the limit changed last.
        at: time of the newest report.
        goodput: mean over the windows at this limit; `windows` is their number.
        base: the limit before, while another limit is tried; 0 otherwise.
        peak: the best goodput seen, slowly forgotten.
        noise: relative variance of goodput between windows.
        stride: the part by which the limit grows next.
        worse_at: a higher limit whose goodput was less; 0 if none is known.
        shifts: windows in a row in which goodput was higher (positive) or lower than before.
        is_queued: whether a queue in the engine keeps the limit from growing.
        steady: running requests at the newest reading, if the engine's queue was empty although more were
            sent; 0 otherwise.
        steady_readings: readings in a row with that number.
        is_yielding: whether other clients of the engine had to wait and are still there.
        found: the limit at full load, while only a share of it is in effect; 0 otherwise.
        part: the share in effect.
        found_at: when a limit was found at full load last; None if none was.
        search_at: when the present search at full load began; None without one.
    """

    limit: int
    since: float
    at: float
    window: EvidenceWindow
    rule: str = LimitRule.START
    advice: str | None = None
    by_tokens: bool = False
    goodput: float = 0.0
    windows: int = 0
    base: int = 0
    base_goodput: float = 0.0
    peak: float = 0.0
    noise: float = 0.01
    stride: float = 1.0
    worse_at: int = 0
    shifts: int = 0
    grow_in: int = 0
    grow_pause: int = FIRST_GROW_PAUSE
    shrink_in: int = 2
    shrink_pause: int = FIRST_SHRINK_PAUSE
    is_queued: bool = False
    latency_s: float = 0.0
    answered_at: float = 0.0
    hit_share: float = 0.0
    preemptions: int | None = None
    steady: int = 0
    steady_readings: int = 0
    is_yielding: bool = False
    found: int = 0
    part: float = 1.0
    found_at: float | None = None
    search_at: float | None = None

    @classmethod
    def at_start(cls, limit: int, now: float) -> Self:
        """A limit of which nothing is known."""
        return cls(limit, now, now, EvidenceWindow(now))

    def moved(self, limit: int, rule: LimitRule, now: float, in_flight: int) -> Self:
        """The state after a change of the limit: a new window after the attempts in flight, and nothing
        known."""
        return replace(
            self,
            limit=limit,
            since=now,
            rule=rule,
            window=EvidenceWindow(now, in_flight),
            goodput=0.0,
            windows=0,
            base=0,
            base_goodput=0.0,
            shifts=0,
        )

    def with_running(self, gauges: EngineGauges, in_flight: int) -> Self:
        """The state after a reading of the engine's gauges."""
        steady = gauges.running
        if gauges.waiting or steady > _RUNNING_OF_SENT * in_flight:
            steady = 0
        readings = self.steady_readings + 1 if steady == self.steady else 1
        return replace(self, steady=steady, steady_readings=readings)

    @property
    def advice_without_queue(self) -> str | None:
        """What limits an engine whose queue is empty although fewer requests run than were sent to it.

        The number that runs is then constant; while requests only begin and end, it is not.
        """
        if not self.steady or self.steady_readings < _STEADY_READINGS:
            return None
        return advice_on(self.window.engine, running=self.steady, waiting=0, kv_use=self.window.kv_use)
