"""The attempts in flight of one worker, refilled across all the segments the worker has leased.

Guarantees: an answer is in a part's queue before its line counts as settled. No attempt starts for a lease
past its last confirmed time, while answers cannot be written, or beyond what the concurrency limit, the rate
limits and the circuit breaker of the upstream allow. Every line taken from a segment is settled or given
up, once. Leases belong to `worker`, the meaning of an outcome for a line to `core.retry`, the order of
segments to `core.schedule`, the choice of an upstream to `core.routing`, HTTP to `upstream`.

The dispatcher works in ticks: the event loop reads what has arrived, then one step settles all of it and
sends as many new attempts. No task is woken for a single line, and an upstream on the same machine is woken
once for many lines. For each line no task, timer or future is made.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import assert_never

from nightmill.core.circuit_breaker import Paused, Resumed
from nightmill.core.clocks import Clocks
from nightmill.core.json_text import ascii_string
from nightmill.core.outcome import (
    NOT_JSON,
    Answered,
    Broken,
    Outcome,
    Throttled,
    TimedOut,
    Unreachable,
    is_success,
)
from nightmill.core.output_line import OutputLine, answered, unanswered
from nightmill.core.retry import Expire, Retry, Settle, verdict
from nightmill.core.routing import route
from nightmill.core.schedule import SegmentQueue
from nightmill.parts import Parts
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.upstream_lines import PendingLine, UpstreamLines
from nightmill.telemetry import Emit, UpstreamPaused, UpstreamResumed
from nightmill.upstream.registry import UpstreamRegistry, UpstreamRuntime

_LONGEST_PAUSE_S = 1.0
_AHEAD_S = 0.1
_UNREACHABLE = "The model server could not be reached."


class Dispatcher:
    """The lines that one worker has in flight, has yet to send, and has to send again.

    Args:
        upstreams: where lines are sent.
        parts: asked whether answers can be written.
        request_prefix: hexadecimal start of the request ids made for answers without one.
        notify: called when a segment may be over or unsent lines run low.
    """

    def __init__(
        self,
        upstreams: UpstreamRegistry,
        *,
        parts: Parts,
        request_prefix: str,
        notify: Callable[[], None],
        emit: Emit,
        clocks: Clocks,
    ) -> None:
        self._parts = parts
        self._request_prefix = request_prefix.encode()
        self._notify = notify
        self._emit = emit
        self._clock = clocks.wall
        self._monotonic = clocks.monotonic
        self._random = clocks.random

        self.upstreams = tuple(UpstreamLines(runtime, on_arrival=self.wake) for runtime in upstreams)
        self._upstream_names = upstreams.names
        self._upstream_of = dict(zip(upstreams.names, self.upstreams, strict=True))
        self._queue: SegmentQueue[LeasedSegment] = SegmentQueue()
        self._current: LeasedSegment | None = None
        self._unsent = 0
        self._has_requested_lines = False
        self._request_sequence = count()
        self._low_water = 1
        self._settled_count = 0
        self._rate_since = 0.0
        self._rate_count = 0

        self._group: asyncio.TaskGroup | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._is_woken = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._room: asyncio.Task[None] | None = None

    @property
    def unsent(self) -> int:
        """Lines that may be sent and never were."""
        return self._unsent

    @property
    def in_flight(self) -> int:
        """Attempts in flight at all upstreams."""
        return sum(upstream.in_flight for upstream in self.upstreams)

    @property
    def is_crowded(self) -> bool:
        """Whether at every upstream so many lines wait to be sent again that no new line is taken."""
        return all(upstream.is_crowded for upstream in self.upstreams)

    def wanted_slots(self, upstream: UpstreamLines) -> int:
        """How many slots of an upstream the known lines could use."""
        return self._unsent + upstream.in_flight + len(upstream.retries)

    async def run(self) -> None:
        """Sends and settles until it is cancelled; then no attempt is in flight any more."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for upstream in self.upstreams:
                    upstream.open(group)
                while True:
                    if self._is_woken:
                        await asyncio.sleep(0)
                    else:
                        self._sleeper = loop.create_future()
                        await self._sleeper
                    self._is_woken, self._sleeper = False, None
                    now = self._monotonic()
                    for upstream in self.upstreams:
                        self._settle_arrived(upstream, now)
                        self._send_more(upstream, now)
                    self._set_alarm(now)
        finally:
            for upstream in self.upstreams:
                upstream.close()
            if self._alarm is not None:
                self._alarm.cancel()

    def wake(self) -> None:
        """Starts a tick: there are more lines or slots, a lease was confirmed, or answers can be written."""
        sleeper = self._sleeper
        if sleeper is None:
            self._is_woken = True
        elif not sleeper.done():
            sleeper.set_result(None)

    # --- lines to send -----------------------------------------------------------------------------

    def add(self, segment: LeasedSegment) -> None:
        """Sends the lines of a segment from now on."""
        self._queue.add(segment)
        self._unsent += segment.unsent
        self.wake()

    def note_supply(self, *, is_exhausted: bool) -> None:
        """The worker has leased what there was. `is_exhausted`: the store has no more lines now, so that the
        dispatcher does not notify the worker when lines run low."""
        self._has_requested_lines = is_exhausted

    def wanted_lines(self) -> int:
        """How many unsent lines the worker should keep leased: twice the granted slots, or twice the lines
        that are settled in `_AHEAD_S`, whichever is more. Their text is in memory."""
        now = self._monotonic()
        elapsed_s = now - self._rate_since
        if elapsed_s > _AHEAD_S:
            self._low_water = int((self._settled_count - self._rate_count) / elapsed_s * _AHEAD_S)
            self._rate_since, self._rate_count = now, self._settled_count
        granted = sum(upstream.runtime.slots.limit(now) for upstream in self.upstreams)
        self._low_water = max(1, granted, self._low_water)
        return 2 * self._low_water

    def count_unsent(self) -> None:
        """Recounts the unsent lines after segments were stopped or lost."""
        self._queue.keep(_may_send)
        current = self._current
        if current is not None and not _may_send(current):
            self._current = current = None
        self._unsent = sum(segment.unsent for segment in self._queue)
        if current is not None:
            self._unsent += current.unsent

    def forget_retries(self, segment: LeasedSegment) -> None:
        """Gives up the lines of a segment that wait to be sent again."""
        for upstream in self.upstreams:
            segment.give_up(upstream.forget_retries(segment))

    def abort(self, segment: LeasedSegment) -> None:
        """Gives up the attempts in flight of a segment; outcomes that have arrived still count."""
        now = self._monotonic()
        for upstream in self.upstreams:
            self._settle_arrived(upstream, now)
            segment.give_up(upstream.forget_retries(segment))
            aborted = upstream.abort(segment)
            segment.give_up(aborted)
            if aborted and segment.is_over:
                self._notify()

    def _next_line(self, upstream: UpstreamLines, now: float) -> PendingLine | None:
        """The line to send to an upstream now, or None."""
        if upstream.retries:
            if upstream.is_due(now):
                return upstream.next_retry(now)
            if upstream.is_crowded:
                return None
        segment = self._current
        while True:
            if segment is None:
                segment = self._current = self._queue.next()
                if segment is None:
                    return None
            if segment.unsent and not segment.is_lost:
                if segment.confirmed_until < now:
                    return None
                self._unsent -= 1
                ordinal, request = segment.take()
                line = PendingLine(segment, ordinal, request)
                routed = self._upstream_of[route(request, self._upstream_names)]
                if routed is upstream:
                    return line
                routed.wait(line, until=now)
                self.wake()
            else:
                segment = None

    # --- sending -----------------------------------------------------------------------------------

    def _send_more(self, upstream: UpstreamLines, now: float) -> None:
        runtime = upstream.runtime
        room = runtime.slots.limit(now) - upstream.in_flight
        if room <= 0:
            return
        if self._parts.is_full:
            self._wait_for_room()
            return
        if self._parts.stalled is not None:
            return
        breaker, rates, clock = runtime.breaker, runtime.rates, self._clock()
        has_rates = rates.are_set
        while room > 0:
            if has_rates or not breaker.is_closed:
                wait_s = breaker.wait_s(now) or rates.wait_s(now, share=runtime.slots.share)
                if wait_s > 0:
                    self._wake_at(now + min(wait_s, _LONGEST_PAUSE_S), now)
                    break
            line = self._next_line(upstream, now)
            if line is None:
                break
            timeout_s = min(runtime.attempt_timeout_s, line.segment.lease.deadline - clock)
            if timeout_s <= 0:
                self._give_up(line)
                continue
            if not breaker.is_closed:
                breaker.sent(now)
            if has_rates:
                line.charge(rates.spend())
            room -= 1
            upstream.start(line, timeout_s=timeout_s)
        if self._unsent <= self._low_water and not self._has_requested_lines:
            self._has_requested_lines = True
            self._notify()

    def _wait_for_room(self) -> None:
        if self._room is None and self._group is not None:
            self._room = self._group.create_task(self._until_room())

    async def _until_room(self) -> None:
        await self._parts.room()
        self._room = None
        self.wake()

    def _set_alarm(self, now: float) -> None:
        """Sets the alarm for the next retry. A retry that is due does not wait for time."""
        for upstream in self.upstreams:
            next_retry_at = upstream.next_retry_at
            if next_retry_at is not None and next_retry_at > now:
                self._wake_at(next_retry_at, now)

    def _wake_at(self, moment: float, now: float) -> None:
        if self._alarm is not None:
            if self._alarm_at <= moment:
                return
            self._alarm.cancel()
        self._alarm_at = moment
        self._alarm = asyncio.get_running_loop().call_later(moment - now, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self.wake()

    # --- settling ----------------------------------------------------------------------------------

    def _settle_arrived(self, upstream: UpstreamLines, now: float) -> None:
        runtime, is_well = upstream.runtime, False
        breaker, rates = runtime.breaker, runtime.rates
        has_rates = rates.are_set
        for line, outcome in upstream.take_arrived():
            row = self._row(line, outcome)
            is_answered = not row.is_error
            if has_rates and row.usage is not None:
                rates.correct(row.usage.total_tokens, charged_tokens=line.charged_tokens)
            if not (is_answered and is_well):  # a second success in a row changes nothing in the breaker
                if not is_answered and is_success(outcome):
                    outcome = NOT_JSON  # noqa: PLW2901 - the outcome as it counts once its body has been read
                change = breaker.note(outcome, now=now, random=self._random())
                if change is not None:
                    self._emit_change(runtime, change)
                is_well = is_answered
            segment = line.segment
            if is_answered or segment.is_lost:
                segment.settle(line.ordinal, row)
                self._settled_count += is_answered
            else:
                self._settle_or_retry(upstream, line, outcome, row, now)
            if not segment.in_flight and segment.is_over:
                self._notify()

    def _settle_or_retry(
        self, upstream: UpstreamLines, line: PendingLine, outcome: Outcome, row: OutputLine, now: float
    ) -> None:
        """Settles a line that did not succeed, has the line sent again, or gives the line up."""
        segment, runtime = line.segment, upstream.runtime
        ruling = verdict(
            runtime.breaker.judge(outcome),
            attempts=line.attempts + 1,
            max_attempts=runtime.max_attempts,
            now=self._clock(),
            deadline=segment.lease.deadline,
            random=self._random(),
        )
        match ruling:
            case Settle():
                segment.settle(line.ordinal, row)
                self._settled_count += 1
            case Retry(after_s, burns) if segment.stopped_by is None:
                line.count_attempt(burns)
                upstream.wait(line, until=now + after_s)
            case Retry() | Expire():
                segment.give_up()

    def _give_up(self, line: PendingLine) -> None:
        line.segment.give_up()
        if line.segment.is_over:
            self._notify()

    def _row(self, line: PendingLine, outcome: Outcome) -> OutputLine:
        """The output line if the outcome is settled; without an error the answer can be used."""
        line_id = line.segment.line_id(line.ordinal)
        match outcome:
            case Answered() | Throttled():
                if outcome.request_id is None:
                    request_id = b'"%b%08x"' % (self._request_prefix, next(self._request_sequence))
                else:
                    request_id = ascii_string(outcome.request_id)
                return answered(
                    line_id, line.request, status=outcome.status, request_id=request_id, body=outcome.body
                )
            case TimedOut() | Broken():
                return unanswered(line_id, line.request, code=outcome.code, message=outcome.message)
            case Unreachable():
                return unanswered(line_id, line.request, code="upstream_unreachable", message=_UNREACHABLE)
            case _:
                assert_never(outcome)

    def _emit_change(self, runtime: UpstreamRuntime, change: Paused | Resumed) -> None:
        match change:
            case Paused(reason, seconds):
                self._emit(UpstreamPaused(runtime.name, reason, seconds, runtime.breaker.held))
            case Resumed():
                self._emit(UpstreamResumed(runtime.name))


def _may_send(segment: LeasedSegment) -> bool:
    return bool(segment.unsent) and not segment.is_lost
