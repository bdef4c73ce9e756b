"""Whose fault is a failed attempt: the line's, or the model server's? No I/O.

    all is well ──failures in a row──▶ held ──a probe is answered──▶ few in flight ──▶ all is well
         └──Retry-After, or too much at once──▶ paused, or fewer in flight ──────────────▲

`Health` is kept for each model of an upstream, and once for the upstream as a whole (no connection). It
exists only while something is wrong. It compares a line with the other lines of its model:

- **What counts.** A failure counts against its line in the proportion in which other lines were answered
  since the line's failure before: in full if all were, not at all if none was. The first failure of a line
  at an upstream never counts. So an outage uses up no line's attempts, whatever its status, and a line that
  fails while others are answered ends.
- **Holding.** As many failures in a row as attempts are in flight, at least `_HOLDING_FAILURES` and of
  several lines, hold the model. Without a connection the first failure holds the upstream. While held, one
  probe at a time is sent, with growing pauses: the calls of an outage are bounded by its length, not by the
  number of lines. Probes alternate between a cheap request (`core.probe`) and a waiting line. An answer to
  an attempt that started after the failures ends the hold. After a long hold the number in flight grows
  again from 1.
- **Evidence.** When a line fails again and nothing was answered since, the cause may be the line or the
  server. A cheap request then finds out (`needs_evidence`).
- **Load.** A refusal for load (429, 503) pauses the model if it names Retry-After. If refusals follow one
  another, no more attempts are sent than are in flight. When lines are refused again while others are
  answered, the refusals concern those lines, and pause no other.
- **Time-outs.** A time-out counts only if a line that started later was answered, or if the line was alone.
  Otherwise requests may queue in the server, and from then on half as many are in flight.

`now` is a monotonic time in seconds; `random` is a number in [0, 1).
"""

import math
from dataclasses import dataclass
from typing import Final

import msgspec

from nightmill.core.failure import PAUSE_FLOOR_S, Failure, FailureKind, bounded_s

_HOLDING_FAILURES: Final = 5
_SHORT_HOLD_S: Final = 2.0
"""A shorter hold is not announced, and does not limit what is in flight afterwards."""
_SHORTEST_QUEUE_S: Final = 0.2
"""A 504 that comes sooner was not caused by a queue."""
_PROBE_LAPSE_S: Final = 5.0
"""After so long without an outcome a probe is probably being answered; another may join it. Doubles."""
_LONGEST_LAPSE_S: Final = 600.0
_EVIDENCE_DELAY: Final = 0.5
"""The part of its longest time after which a line that timed out before is compared with a cheap request."""
_GROWTH: Final = 4
"""The number in flight grows by one after so many times as many answers."""
_LONGEST_PAUSE_S: Final = {
    FailureKind.LOAD: 5.0,
    FailureKind.ACCESS: 30.0,
    FailureKind.ACCOUNT: 30.0,
}
_LONGEST_OTHER_PAUSE_S: Final = 10.0
_NEEDS_OPERATOR: Final = frozenset({FailureKind.ACCESS, FailureKind.ACCOUNT})


@dataclass(frozen=True, slots=True)
class Held:
    """Only probes are sent, or nothing.

    Args:
        reason: a few words, as in `Failure`.
        since: monotonic time of the failure that began it.
        until: monotonic time at which the pause ends.
        needs_operator: whether the server refuses nightmill itself, so that a setting has to change.
    """

    reason: str
    since: float
    until: float
    needs_operator: bool


@dataclass(frozen=True, slots=True)
class Resumed:
    """Lines are sent again after a `Held`, `held_s` seconds long."""

    held_s: float


class LineRecord(msgspec.Struct, gc=False):
    """The failures of one line.

    Args:
        failures: attempts that failed.
        counted: how many of them count against the line.
        has_moved: whether all of them were at other upstreams.
        is_explained: whether the latest one counts.
        is_late: whether the latest one was a time-out.
        refusals: those for load.
        answered_before: lines of the model answered before the latest one.
        first_failures_before: lines of the model that had failed for the first time before the latest one.
    """

    failures: int = 0
    counted: float = 0.0
    has_moved: bool = False
    is_explained: bool = False
    is_late: bool = False
    refusals: int = 0
    answered_before: int = 0
    first_failures_before: int = 0


class Health:
    """What the outcomes of a model's attempts say about the model.

    Attributes:
        cap: the most attempts in flight, None without a limit of its own.
        needs_evidence: whether a cheap request should show if the model answers at all.
    """

    __slots__ = (
        "_announced",
        "_answered",
        "_asked_until",
        "_cap_credit",
        "_cut_at",
        "_evidence_at",
        "_evidence_floor",
        "_evidence_pauses",
        "_failed_start",
        "_first_failures",
        "_held",
        "_in_a_row",
        "_is_of_several_lines",
        "_last_failed",
        "_lines_refused",
        "_pauses",
        "_probe_at",
        "_probe_lapse_s",
        "_refused_in_a_row",
        "_safe_cap",
        "_server_refused",
        "_slow_start_until",
        "_until",
        "cap",
        "needs_evidence",
    )

    def __init__(self) -> None:
        self.cap: int | None = None
        self.needs_evidence = False
        self._answered = 0
        self._first_failures = 0
        self._in_a_row = 0
        self._last_failed: LineRecord | None = None
        self._is_of_several_lines = False
        self._held: Held | None = None
        self._failed_start = 0.0
        self._announced: Held | None = None
        self._until = 0.0
        self._asked_until = 0.0
        self._pauses = 0
        self._probe_at: float | None = None
        self._probe_lapse_s = _PROBE_LAPSE_S
        self._evidence_at = 0.0
        self._evidence_floor = 0.0
        self._evidence_pauses = 0
        self._cap_credit = 0.0
        self._slow_start_until = 0.0
        self._safe_cap = math.inf
        self._cut_at = -math.inf
        self._refused_in_a_row = 0
        self._lines_refused = 0
        self._server_refused = 0

    @property
    def held(self) -> Held | None:
        """Why only probes are sent, None while the model is not held."""
        return self._held

    @property
    def has_failed_last(self) -> bool:
        """Whether no answer has come since a failure that does not count against its line."""
        return self._in_a_row > 0

    def is_calm(self, now: float) -> bool:
        """Whether every attempt may start."""
        return self._held is None and self.cap is None and self._asked_until <= now

    def is_paused(self, now: float) -> bool:
        """Whether only probes are sent, or nothing until the end of a pause that the server named."""
        return self._held is not None or self._asked_until > now

    def wait_s(self, now: float, *, in_flight: int) -> float:
        """Seconds until an attempt, or a probe while held, may start; 0 if it may start now, infinite while
        an outcome has to come first.
        """
        if now < self._pause_ends_at:
            return self._pause_ends_at - now
        if self._held is not None and self._probe_at is not None:
            return max(0.0, self._probe_at + self._probe_lapse_s - now)
        if self.cap is not None and in_flight >= self.cap:
            return math.inf
        return 0.0

    @property
    def _pause_ends_at(self) -> float:
        return max(self._until, self._asked_until)

    def started(self, now: float, *, record: LineRecord | None = None, timeout_s: float = 0.0) -> None:
        """Notes that an attempt starts. While held, the attempt is a probe.

        Args:
            record: the earlier failures of the line, None without any, and for cheap requests.
            timeout_s: the longest time of the attempt.
        """
        if self._held is None:
            if record is not None and record.is_late and not self.needs_evidence:
                # If the cheap request overtakes the line, no queue is the cause: the line is slow by itself.
                self.needs_evidence = True
                self._evidence_at = max(self._evidence_floor, now + timeout_s * _EVIDENCE_DELAY)
            return
        if self._probe_at is not None:
            self._probe_lapse_s = min(2 * self._probe_lapse_s, _LONGEST_LAPSE_S)
        self._probe_at = now

    def hurry(self, now: float) -> None:
        """Shortens the pause of a held model, but no pause that the server named."""
        self._until = min(self._until, now + PAUSE_FLOOR_S)

    @property
    def is_cheap_probe_next(self) -> bool:
        """Whether the next probe is a cheap request: every second one is, and each after a time-out."""
        return self._pauses % 2 == 1 or (self._last_failed is not None and self._last_failed.is_late)

    def is_evidence_due(self, now: float) -> bool:
        """Whether to send a cheap request now, beside the lines, while the model is not held."""
        evidence_at = self.evidence_at
        return evidence_at is not None and now >= evidence_at

    @property
    def evidence_at(self) -> float | None:
        """Monotonic time from which a cheap request may be sent beside the lines; None if none is needed."""
        if not self.needs_evidence or self._held is not None:
            return None
        return max(self._evidence_at, self._asked_until)

    def evidence_requested(self, now: float) -> None:
        """Notes that the cheap request starts."""
        self.needs_evidence = False
        self._evidence_floor = now + min(2.0**self._evidence_pauses, _LONGEST_OTHER_PAUSE_S)
        self._evidence_at = self._evidence_floor
        self._evidence_pauses += 1

    def answered(
        self, record: LineRecord | None, *, started_at: float, limit: int, now: float
    ) -> Resumed | None:
        """Takes an answer into account. While held, an answer to an earlier attempt says nothing.

        Args:
            record: the earlier failures of the line, None without any.
            started_at: monotonic time at which the attempt started.
            limit: the most attempts in flight without a limit of this model's own.
        """
        if self._held is not None and started_at < self._failed_start:
            return None
        self._answered += 1
        self._in_a_row = self._refused_in_a_row = 0
        self._is_of_several_lines = False
        self._last_failed = None
        self.needs_evidence = False
        self._evidence_pauses = 0
        if record is not None and record.refusals:
            self._server_refused += record.refusals
            self._lines_refused -= record.refusals - 1
        self._end_hold(now)
        self._grow(limit)
        if self._announced is None or now < self._asked_until:
            return None
        resumed = Resumed(now - self._announced.since)
        self._announced = None
        return resumed

    def forgotten(self, now: float) -> Resumed | None:
        """The last change of a model that is forgotten because no line waits for it."""
        return None if self._announced is None else Resumed(now - self._announced.since)

    def _end_hold(self, now: float) -> None:
        """Sends again, after a long hold one attempt first and then more."""
        if self._held is None:
            return
        if now - self._held.since >= _SHORT_HOLD_S:
            self._set_cap(1, slow_start_until=self._safe_cap)
        self._held = None
        self._pauses = 0
        self._probe_at = None
        self._probe_lapse_s = _PROBE_LAPSE_S

    def _set_cap(self, cap: int, *, slow_start_until: float = 0.0) -> None:
        self.cap, self._cap_credit, self._slow_start_until = cap, 0.0, slow_start_until

    def _grow(self, limit: int) -> None:
        if self.cap is None:
            return
        is_slow_start = self.cap < self._slow_start_until
        self._cap_credit += 1.0 if is_slow_start else 1.0 / (_GROWTH * self.cap)
        if self._cap_credit >= 1.0:
            self._cap_credit = 0.0
            self.cap += 1
        if self.cap >= limit:
            self.cap = None

    def failed(
        self,
        failure: Failure,
        record: LineRecord,
        *,
        started_at: float,
        is_overtaken: bool,
        in_flight: int,
        now: float,
        random: float,
    ) -> Held | None:
        """Takes a failed attempt into account: in `record` for its line, and for the model.

        Args:
            started_at: monotonic time at which the attempt started.
            is_overtaken: whether an attempt that started later was answered.
            in_flight: other attempts of the model in flight.

        Returns:
            The hold or pause, when it is to be announced.
        """
        if failure.kind is FailureKind.UNREACHABLE:  # the line was not read
            record.is_explained = record.is_late = False
            self._note_in_a_row(record)
            self._hold(failure, started_at=started_at, now=now, random=random)
            return self._announcement(failure, now)
        kind = failure.kind
        if kind is FailureKind.LATE and now - started_at < _SHORTEST_QUEUE_S:
            kind = FailureKind.FAULT
        is_late = kind is FailureKind.LATE
        may_queue = is_late and not is_overtaken
        is_first = record.has_moved or not record.failures
        counts = 0.0 if may_queue and in_flight else failure.counts_as * self._answered_share(record)
        self._first_failures += is_first
        record.failures += 1
        record.has_moved = False
        record.counted += counts
        record.is_explained = counts > 0
        record.is_late = is_late
        record.answered_before = self._answered
        record.first_failures_before = self._first_failures
        if kind is FailureKind.LOAD:
            record.refusals += 1
            self._lines_refused += record.refusals > 1
            self._note_refusal(failure, in_flight)
        if not counts:
            self._note_in_a_row(record)
            if not is_first:
                self.needs_evidence = True
                self._evidence_at = self._evidence_floor
        is_outage = self._is_outage(kind, in_flight=in_flight, started_at=started_at)
        if may_queue and not counts:
            self._note_queue(started_at=started_at, in_flight=in_flight, now=now)
        elif is_late and counts:
            self._safe_cap = self._slow_start_until = math.inf  # the line is slow by itself
        if is_outage:
            self._hold(failure, started_at=started_at, now=now, random=random)
        elif failure.retry_after_s is not None and not counts and not self.lines_are_refused:
            self._asked_until = max(self._asked_until, now + bounded_s(failure.retry_after_s))
        return self._announcement(failure, now)

    def _answered_share(self, record: LineRecord) -> float:
        """The part of the other lines that were answered since the failure before; 0 before the first."""
        answered = self._answered - record.answered_before
        if record.has_moved or not record.failures or not answered:
            return 0.0
        return answered / (answered + self._first_failures - record.first_failures_before)

    @property
    def lines_are_refused(self) -> bool:
        """Whether refusals for load were seen to concern the refused lines, not the server."""
        return self._lines_refused > self._server_refused

    def _note_in_a_row(self, record: LineRecord) -> None:
        self._in_a_row += 1
        self._is_of_several_lines |= self._last_failed is not None and self._last_failed is not record
        self._last_failed = record

    def _is_outage(self, kind: FailureKind, *, in_flight: int, started_at: float) -> bool:
        if self._held is not None:
            return True
        if kind is FailureKind.LATE:
            return self.cap == 1 and in_flight == 0 and started_at >= self._cut_at
        if self._in_a_row < max(_HOLDING_FAILURES, in_flight):
            return False
        return in_flight == 0 or (self._is_of_several_lines and kind is not FailureKind.LOAD)

    def _note_refusal(self, failure: Failure, in_flight: int) -> None:
        """Two refusals in a row, or one with Retry-After: the server takes no more than what is in flight."""
        self._refused_in_a_row += 1
        if failure.retry_after_s is None and self._refused_in_a_row < 2:
            return
        if in_flight == 0 or self.lines_are_refused:
            return
        if self.cap is None or in_flight < self.cap:
            self._set_cap(in_flight)

    def _note_queue(self, *, started_at: float, in_flight: int, now: float) -> None:
        """A time-out in a queue: half as many in flight, once for all attempts that started before."""
        if started_at < self._cut_at:
            return
        before = in_flight + 1 if self.cap is None else min(self.cap, in_flight + 1)
        self._safe_cap = max(1, before // 2)
        self._set_cap(self._safe_cap)
        self._cut_at = now

    def _hold(self, failure: Failure, *, started_at: float, now: float, random: float) -> None:
        since = now if self._held is None else self._held.since
        if self._held is None:
            self._failed_start = started_at
        is_waiting = self._held is not None and self._probe_at is None
        if not is_waiting:  # otherwise the attempt was in flight when the hold began
            self._until = now + self._probe_pause_s(failure.kind, random)
            if failure.retry_after_s is not None:
                self._asked_until = max(self._asked_until, now + bounded_s(failure.retry_after_s))
            self._pauses += 1
            self._probe_at = None
            self._probe_lapse_s = _PROBE_LAPSE_S
        self._held = Held(failure.reason, since, self._pause_ends_at, failure.kind in _NEEDS_OPERATOR)

    def _probe_pause_s(self, kind: FailureKind, random: float) -> float:
        longest_s = _LONGEST_PAUSE_S.get(kind, _LONGEST_OTHER_PAUSE_S)
        base_s = 1.0 if kind in _NEEDS_OPERATOR else 2 * PAUSE_FLOOR_S
        span_s = min(longest_s, base_s * 2.0 ** min(self._pauses, 16)) - PAUSE_FLOOR_S
        return PAUSE_FLOOR_S + random * span_s

    def _announcement(self, failure: Failure, now: float) -> Held | None:
        held = self._held
        if held is None:
            held = Held(failure.reason, now, self._asked_until, needs_operator=False)
        is_certain = held.needs_operator and self._pauses > 1
        if not is_certain and max(now - held.since, self._asked_until - now) < _SHORT_HOLD_S:
            return None
        before = self._announced
        if before is not None and before.needs_operator == held.needs_operator:
            return None
        self._announced = held
        return held
