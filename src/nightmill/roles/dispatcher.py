"""The attempts in flight of one worker, refilled across all the segments the worker has leased.

Guarantees: an answer is in a part's queue before its line counts as settled. No attempt starts for a lease
past its last confirmed time, while answers cannot be written, or beyond what the concurrency limit, the rate
limits and the health of the upstream allow. Every line taken from a segment is settled or given
up, once. Leases belong to `worker`, the meaning of an outcome for a line to `core.retry`, the order of
segments to `core.schedule`, the choice of an upstream to `core.routing`, HTTP to `upstream`.

The dispatcher works in ticks: the event loop reads what has arrived, then one step settles all of it and
sends as many new attempts. No task is woken for a single line, and an upstream on the same machine is woken
once for many lines. For each line no task, timer or future is made.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Final, assert_never

from nightmill.core.clocks import Clocks
from nightmill.core.failure import FailureKind, failure_of
from nightmill.core.health import Held, Resumed
from nightmill.core.json_text import ascii_string
from nightmill.core.outcome import Answered, Broken, Outcome, TimedOut, TooLong, Unreachable
from nightmill.core.output_line import OutputLine, answered, unanswered
from nightmill.core.retry import Expire, Retry, Settle, verdict
from nightmill.core.routing import route
from nightmill.core.schedule import OpenBatch
from nightmill.ids import BatchId
from nightmill.parts import Parts
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.model_lines import PendingLine
from nightmill.roles.unsent_segments import Blocker, UnsentSegments
from nightmill.roles.upstream_lines import UpstreamLines
from nightmill.telemetry import Emit, UpstreamHeld, UpstreamResumed
from nightmill.upstream.registry import UpstreamRegistry, UpstreamRuntime

_LONGEST_PAUSE_S: Final = 1.0
_AHEAD_S: Final = 0.1
_UNREACHABLE: Final = "The model server could not be reached."


class Dispatcher:
    """The lines that one worker has in flight, has yet to send, and has to send again.

    Args:
        upstreams: where lines are sent.
        parts: asked whether answers can be written.
        request_prefix: hexadecimal start of the request ids made for answers without one.
        notify: called when a segment may be over, or unsent lines run low or out.
        project_weights: shares of projects in the work; 1 where a project is missing.
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
        project_weights: Mapping[str, float] | None = None,
    ) -> None:
        self._parts = parts
        self._request_prefix = request_prefix.encode()
        self._notify = notify
        self._emit = emit
        self._clock = clocks.wall
        self._monotonic = clocks.monotonic
        self._random = clocks.random

        self.upstreams = tuple(
            UpstreamLines(runtime, on_arrival=self.wake, on_change=self._emit_change) for runtime in upstreams
        )
        self._routes = upstreams.routes
        self._upstream_of = dict(zip(upstreams.routes, self.upstreams, strict=True))
        self._segments = UnsentSegments(project_weights or {}, on_batch_sent=notify)
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
        return self._segments.unsent

    @property
    def batches(self) -> list[OpenBatch]:
        """The batches with unsent lines."""
        return self._segments.batches

    @property
    def in_flight(self) -> int:
        """Attempts in flight at all upstreams."""
        return sum(upstream.in_flight for upstream in self.upstreams)

    @property
    def held(self) -> Iterator[UpstreamHeld]:
        """What is held now, and until when."""
        for upstream in self.upstreams:
            for model, held in upstream.held:
                yield self._held_event(upstream.runtime, model, held)

    @property
    def is_crowded(self) -> bool:
        """Whether so many segments are set aside that no further one is leased."""
        return self._segments.is_crowded

    @property
    def batches_aside(self) -> set[BatchId]:
        """Batches of which no further segment is leased, since their lines can't be sent now."""
        return self._segments.batches_aside

    def wanted_slots(self, upstream: UpstreamLines) -> int:
        """How many slots of an upstream the known lines could use."""
        return self._segments.unsent + upstream.in_flight + upstream.waiting

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
                        if self._segments.are_aside:
                            self._segments.take_up_again()
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
        self._segments.add(segment)
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
        self._segments.drop_stopped()

    def forget_waiting(self, segment: LeasedSegment) -> None:
        """Gives up the lines of a segment that wait to be sent, or to be sent again."""
        now = self._monotonic()
        for upstream in self.upstreams:
            segment.give_up(upstream.forget_waiting(segment))
            upstream.settle_down(now)

    def abort(self, segment: LeasedSegment) -> None:
        """Gives up the attempts in flight of a segment; outcomes that have arrived still count."""
        now = self._monotonic()
        for upstream in self.upstreams:
            self._settle_arrived(upstream, now)
            aborted = upstream.abort(segment)
            segment.give_up(aborted)
            if aborted and segment.is_over:
                self._notify()
        self.forget_waiting(segment)

    def _next_line(self, upstream: UpstreamLines, now: float) -> PendingLine | None:
        """The line to send to an upstream now, or None."""
        return (
            upstream.next_waiting(now, beyond_share=False)
            or self._new_line(upstream, now)
            or upstream.next_waiting(now, beyond_share=True)
        )

    def _new_line(self, upstream: UpstreamLines, now: float) -> PendingLine | None:
        """The next line that was never sent and may be sent to an upstream now, or None.

        Lines of another upstream, or of a model that can't be sent now, are kept for later on the way. A
        segment is set aside when too many of its lines are kept.
        """
        segments = self._segments
        segment = segments.current
        while True:
            if segment is None or segment.unsent <= segments.turn_ends_at or segment.is_lost:
                segment = segments.next(self._clock())
                if segment is None:
                    return None
            if segment.confirmed_until < now:
                return None
            ordinal, request = segment.take()
            line = PendingLine(segment, ordinal, request, now)
            routed = self._upstream_of[route(request, self._routes)]
            blocker: Blocker | None
            if routed is not upstream:
                routed.add_routed(line)
                self.wake()
                blocker = routed
            elif upstream.is_calm:
                return line
            else:
                blocker = upstream.park(line, now)
                if blocker is None:
                    return line
            if blocker.is_full:
                segments.set_aside(segment, blocker)
                self._has_requested_lines = False
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
        rates, clock = runtime.rates, self._clock()
        has_rates = rates.are_set
        if not upstream.is_calm:
            for _ in range(upstream.start_due_probes(now, room=room)):
                rates.spend()
                room -= 1
        next_line = self._next_line if upstream.has_waiting else self._new_line
        while room > 0:
            if not upstream.is_calm and upstream.wait_s(now) > 0:
                break
            if has_rates:
                wait_s = rates.wait_s(now, share=runtime.slots.share)
                if wait_s > 0:
                    self._wake_at(now + min(wait_s, _LONGEST_PAUSE_S), now)
                    break
            line = next_line(upstream, now)
            if line is None:
                break
            timeout_s = min(runtime.attempt_timeout_s, line.segment.lease.deadline - clock)
            if timeout_s <= 0:
                self._give_up(line)
                continue
            if has_rates:
                line.charge(rates.spend())
            room -= 1
            upstream.start(line, timeout_s=timeout_s, now=now)
        if self._segments.unsent <= self._low_water and not self._has_requested_lines:
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
        """Sets the alarm for the next line or probe that time allows."""
        for upstream in self.upstreams:
            if not upstream.is_calm:
                wake_in_s = upstream.next_wake_in_s(now)
                if wake_in_s < math.inf:
                    self._wake_at(now + wake_in_s, now)

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
        rates = upstream.runtime.rates
        has_rates = rates.are_set
        last_answered: PendingLine | None = None
        for line, outcome in upstream.take_arrived():
            row = self._row(line, outcome)
            if has_rates and row.usage is not None:
                rates.correct(row.usage.total_tokens, charged_tokens=line.charged_tokens)
            segment = line.segment
            if row.is_error:
                self._settle_or_retry(upstream, line, outcome, row, now)
            else:
                last_answered = line
                if not upstream.is_calm:
                    upstream.answered(line, now)
                segment.settle(line.ordinal, row)
                self._settled_count += 1
            if not segment.in_flight and segment.is_over:
                self._notify()
        if last_answered is not None:
            upstream.note_newest_answer(last_answered.started_at)
        if not upstream.is_calm:
            upstream.take_arrived_probes(now, self._random)
            upstream.settle_down(now)

    def _settle_or_retry(
        self, upstream: UpstreamLines, line: PendingLine, outcome: Outcome, row: OutputLine, now: float
    ) -> None:
        """Settles a line that was not answered, has the line sent again, or gives the line up."""
        segment, failure = line.segment, failure_of(outcome, row.error)
        if failure.kind is FailureKind.REQUEST:
            upstream.answered(line, now)
            segment.settle(line.ordinal, row)
            self._settled_count += 1
            return
        record = upstream.failed(line, failure, now=now, random=self._random())
        if segment.is_lost:
            segment.settle(line.ordinal, row)
            return
        ruling = verdict(
            failure,
            record,
            max_attempts=upstream.runtime.max_attempts,
            now=self._clock(),
            deadline=segment.lease.deadline,
            random=self._random(),
        )
        match ruling:
            case Settle():
                segment.settle(line.ordinal, row)
                self._settled_count += 1
            case Retry(after_s) if segment.stopped_by is None:
                upstream.retry(line, until=now + after_s)
            case Retry() | Expire():
                segment.give_up()

    def _give_up(self, line: PendingLine) -> None:
        line.segment.give_up()
        if line.segment.is_over:
            self._notify()

    def _row(self, line: PendingLine, outcome: Outcome) -> OutputLine:
        """The output line if the outcome is settled; without an error the answer can be used."""
        request, segment = line.request, line.segment
        line_id = segment.line_id(line.ordinal)
        match outcome:
            case Answered():
                if outcome.request_id is None:
                    request_id_json = b'"%b%08x"' % (self._request_prefix, next(self._request_sequence))
                else:
                    request_id_json = ascii_string(outcome.request_id)
                return answered(
                    line_id,
                    request,
                    endpoint=segment.lease.endpoint,
                    status=outcome.status,
                    request_id=request_id_json,
                    body=outcome.body,
                )
            case TimedOut() | Broken() | TooLong():
                return unanswered(line_id, request, code=outcome.code, message=outcome.message)
            case Unreachable():
                return unanswered(line_id, request, code="upstream_unreachable", message=_UNREACHABLE)
            case _:
                assert_never(outcome)

    def _emit_change(self, runtime: UpstreamRuntime, model: str | None, change: Held | Resumed) -> None:
        match change:
            case Held():
                self._emit(self._held_event(runtime, model, change))
            case Resumed(held_s):
                self._emit(UpstreamResumed(runtime.name, model, held_s))

    def _held_event(self, runtime: UpstreamRuntime, model: str | None, held: Held) -> UpstreamHeld:
        ahead_s = self._clock() - self._monotonic()
        since, until = held.since + ahead_s, held.until + ahead_s
        return UpstreamHeld(runtime.name, model, held.reason, since, until, held.needs_operator)
