"""The attempts in flight of one worker, refilled across all the segments it holds.

An answer is in a part's queue before its line counts as settled. No attempt starts for a lease past its last
confirmed moment, while answers cannot be written, or beyond what the concurrency limit, the rate limits and
the circuit breaker allow. Every line taken from a segment is settled or abandoned, once. Leases belong to
`worker`, the meaning of an outcome for a line to `core.retry`, HTTP to `upstream`.

The dispatcher works in ticks: the event loop reads what has arrived, then one step settles all of it and
sends as many new attempts. No task is woken for a single line, and an upstream on the same machine is woken
once for many lines.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import assert_never

from nightmill.core.circuit_breaker import CircuitBreaker, Paused, Resumed
from nightmill.core.concurrency import Slots
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
from nightmill.core.rate_limit import Rate
from nightmill.core.retry import Expire, Retry, Settle, verdict
from nightmill.errors import LeaseLost
from nightmill.parts import Parts
from nightmill.roles.leased_segment import LeasedSegment, PendingLine
from nightmill.settings import UpstreamSettings
from nightmill.telemetry import Emit, UpstreamPaused, UpstreamResumed
from nightmill.upstream import Attempts, Upstream, attempts_of

_LONGEST_PAUSE_S = 1.0
_AHEAD_S = 0.1
_AWAY = "The model server could not be reached."


class Dispatcher:
    """What one worker has in flight, is to send, and is to send again.

    Args:
        slots: attempts in flight at once, over all workers of the upstream; `slots_granted` says how many of
        them are granted to this worker.
        request_prefix: hexadecimal start of the request ids made for answers that brought none.
        notify: told when a segment may be over or lines run low.
        clock: Unix seconds, for deadlines; monotonic: for leases and pauses.
        random: numbers in [0, 1).
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        parts: Parts,
        slots_granted: Slots,
        breaker: CircuitBreaker,
        settings: UpstreamSettings,
        slots: int,
        request_prefix: str,
        notify: Callable[[], None],
        emit: Emit,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._parts = parts
        self._granted = slots_granted
        self._breaker = breaker
        self._attempt_timeout_s = settings.timeout_s
        self._max_attempts = settings.max_attempts
        self._slots = slots
        self._request_prefix = request_prefix.encode()
        self._notify = notify
        self._emit = emit
        self._clock = clock
        self._monotonic = monotonic
        self._random = random

        self.unsent = 0
        """Lines that may be sent and never were."""
        self.has_asked = False
        """Whether it has rung for want of lines; whoever adds some, or knows that there are none, says so."""
        self._queue: deque[LeasedSegment] = deque()
        self._retries: list[tuple[float, int, PendingLine]] = []
        self._in_flight: set[PendingLine] = set()
        self._arrived: list[tuple[PendingLine, Outcome]] = []
        self._requests = Rate(settings.requests_per_minute)
        self._tokens = Rate(settings.tokens_per_minute)
        self._tokens_per_line = 0.0
        self._has_rates = bool(settings.requests_per_minute or settings.tokens_per_minute)
        self._sequence = count()
        self._low_water = 1
        self._settled_count = 0
        self._rate_since = 0.0
        self._rate_count = 0

        self._attempts: Attempts | None = None
        self._group: asyncio.TaskGroup | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._is_woken = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._room: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def wanted(self) -> int:
        """How many lines it knows that are not settled."""
        return self.unsent + len(self._in_flight) + len(self._retries)

    @property
    def is_crowded(self) -> bool:
        """So many lines wait to be sent again that no other is taken."""
        return len(self._retries) > self._slots

    async def run(self) -> None:
        """Until it is cancelled; then nothing is in flight any more."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._attempts = attempts_of(self._upstream, group=group)
                while True:
                    if self._is_woken:
                        await asyncio.sleep(0)
                    else:
                        self._sleeper = loop.create_future()
                        await self._sleeper
                    self._is_woken, self._sleeper = False, None
                    now = self._monotonic()
                    self._take_in(now)
                    self._send_more(now)
                    self._set_alarm(now)
        finally:
            for line in self._in_flight:
                self._forget(line)
            if self._alarm is not None:
                self._alarm.cancel()

    def wake(self) -> None:
        """Something has changed: more lines, a larger window, a lease confirmed, room on the disk."""
        sleeper = self._sleeper
        if sleeper is None:
            self._is_woken = True
        elif not sleeper.done():
            sleeper.set_result(None)

    # --- lines -------------------------------------------------------------------------------------

    def add(self, segment: LeasedSegment) -> None:
        self._queue.append(segment)
        self.unsent += segment.unsent
        self.wake()

    def wanted_lines(self) -> int:
        """Twice a full dispatcher, or twice what is settled in `_AHEAD_S`: their text is held in memory."""
        now = self._monotonic()
        elapsed_s = now - self._rate_since
        if elapsed_s > _AHEAD_S:
            self._low_water = int((self._settled_count - self._rate_count) / elapsed_s * _AHEAD_S)
            self._rate_since, self._rate_count = now, self._settled_count
        self._low_water = max(1, self._granted.limit(now), self._low_water)
        return 2 * self._low_water

    def count_unsent(self) -> None:
        """After segments were stopped or lost."""
        self._queue = deque(segment for segment in self._queue if segment.unsent and not segment.is_lost)
        self.unsent = sum(segment.unsent for segment in self._queue)

    def forget_retries(self, segment: LeasedSegment) -> None:
        """Gives up the lines of the segment that wait to be sent again."""
        kept = [entry for entry in self._retries if entry[2].segment is not segment]
        dropped = len(self._retries) - len(kept)
        if dropped:
            segment.in_flight -= dropped
            segment.abandoned += dropped
            heapq.heapify(kept)
            self._retries = kept

    def abort(self, segment: LeasedSegment) -> None:
        """Gives up what is in flight for the segment; what has arrived by now still counts."""
        self._take_in(self._monotonic())
        self.forget_retries(segment)
        for line in [line for line in self._in_flight if line.segment is segment]:
            self._in_flight.remove(line)
            self._forget(line)
            self._give_up(line)

    def _forget(self, line: PendingLine) -> None:
        if self._attempts is not None:
            self._attempts.give_up(line)

    def _next_line(self, now: float) -> PendingLine | None:
        if self._retries:
            if self._retries[0][0] <= now:
                if self._retries[0][2].segment.confirmed_until < now:
                    return None
                return heapq.heappop(self._retries)[2]
            if self.is_crowded:
                return None
        queue = self._queue
        while queue:
            segment = queue[0]
            if segment.unsent and not segment.is_lost:
                if segment.confirmed_until < now:
                    return None
                self.unsent -= 1
                return segment.take()
            queue.popleft()
        return None

    # --- out ---------------------------------------------------------------------------------------

    def _send_more(self, now: float) -> None:
        room = self._granted.limit(now) - len(self._in_flight)
        if room <= 0:
            return
        if self._parts.is_full:
            self._wait_for_room()
            return
        if self._parts.stalled is not None:
            return
        assert self._attempts is not None
        start, on_outcome, in_flight, breaker = (
            self._attempts.start,
            self._on_outcome,
            self._in_flight,
            self._breaker,
        )
        clock = self._clock()
        while room > 0:
            if self._has_rates or not breaker.is_open:
                wait_s = breaker.wait_s(now) or self._pace_s(now)
                if wait_s > 0:
                    self._wake_at(now + min(wait_s, _LONGEST_PAUSE_S), now)
                    break
            line = self._next_line(now)
            if line is None:
                break
            lease = line.segment.lease
            timeout_s = min(self._attempt_timeout_s, lease.deadline - clock)
            if timeout_s <= 0:
                self._give_up(line)
                continue
            if not breaker.is_open:
                breaker.sent(now)
            if self._has_rates:
                line.guess = self._tokens_per_line
                self._requests.spend(1)
                self._tokens.spend(line.guess)
            in_flight.add(line)
            room -= 1
            start(line, lease.endpoint, line.request.body, timeout_s=timeout_s, on_outcome=on_outcome)
        if self.unsent <= self._low_water and not self.has_asked:
            self.has_asked = True
            self._notify()

    def _pace_s(self, now: float) -> float:
        share = self._granted.share
        return max(self._requests.wait_s(now, share=share), self._tokens.wait_s(now, share=share))

    def _wait_for_room(self) -> None:
        if self._room is None and self._group is not None:
            self._room = self._group.create_task(self._until_room())

    async def _until_room(self) -> None:
        await self._parts.room()
        self._room = None
        self.wake()

    def _set_alarm(self, now: float) -> None:
        """For the next line to be sent again. One that is due already waits for something else than time."""
        if self._retries and self._retries[0][0] > now:
            self._wake_at(self._retries[0][0], now)

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

    # --- in ----------------------------------------------------------------------------------------

    def _on_outcome(self, line: PendingLine, outcome: Outcome) -> None:
        self._arrived.append((line, outcome))
        self.wake()

    def _take_in(self, now: float) -> None:
        arrived, self._arrived = self._arrived, []
        in_flight, is_well = self._in_flight, False
        for line, outcome in arrived:
            in_flight.remove(line)
            segment = line.segment
            segment.in_flight -= 1
            row = self._row(line, outcome)
            is_answered = not row.is_error
            if self._has_rates and row.usage is not None:
                self._note_tokens(line, row.usage.total_tokens)
            if not (is_answered and is_well):  # a second success in a row has nothing to teach
                if not is_answered and is_success(outcome):
                    outcome = NOT_JSON  # noqa: PLW2901 - what it is once it has been read
                change = self._breaker.note(outcome, now=now, random=self._random())
                if change is not None:
                    self._tell(change)
                is_well = is_answered
            if not segment.is_lost and (is_answered or self._is_settled(line, outcome, now)):
                try:
                    segment.writer.append(line.ordinal, row)
                except LeaseLost:
                    segment.is_lost = True
                self._settled_count += 1
            if not segment.in_flight and segment.is_over:
                self._notify()

    def _is_settled(self, line: PendingLine, outcome: Outcome, now: float) -> bool:
        """Whether the line's outcome stands; else it waits to be sent again, or is given up."""
        segment = line.segment
        ruling = verdict(
            self._breaker.judge(outcome),
            attempts=line.attempts + 1,
            max_attempts=self._max_attempts,
            now=self._clock(),
            deadline=segment.lease.deadline,
            random=self._random(),
        )
        match ruling:
            case Settle():
                return True
            case Retry(after_s, burns) if segment.stopped_by is None:
                line.attempts += burns
                segment.in_flight += 1
                heapq.heappush(self._retries, (now + after_s, next(self._sequence), line))
            case Retry() | Expire():
                segment.abandoned += 1
        return False

    def _give_up(self, line: PendingLine) -> None:
        line.segment.in_flight -= 1
        line.segment.abandoned += 1
        if line.segment.is_over:
            self._notify()

    def _row(self, line: PendingLine, outcome: Outcome) -> OutputLine:
        """The output line if the outcome is settled; no error means that the answer can be used."""
        line_id = line.segment.line_id(line.ordinal)
        match outcome:
            case Answered() | Throttled():
                if outcome.request_id is None:
                    request_id = b'"%b%08x"' % (self._request_prefix, next(self._sequence))
                else:
                    request_id = ascii_string(outcome.request_id)
                return answered(
                    line_id, line.request, status=outcome.status, request_id=request_id, body=outcome.body
                )
            case TimedOut() | Broken():
                return unanswered(line_id, line.request, code=outcome.code, message=outcome.message)
            case Unreachable():
                return unanswered(line_id, line.request, code="upstream_unreachable", message=_AWAY)
            case _:
                assert_never(outcome)

    def _note_tokens(self, line: PendingLine, used: int) -> None:
        guess = self._tokens_per_line
        self._tokens.spend(used - line.guess)
        self._tokens_per_line = used if not guess else 0.9 * guess + 0.1 * used

    def _tell(self, change: Paused | Resumed) -> None:
        match change:
            case Paused(reason, seconds):
                self._emit(UpstreamPaused(reason, seconds, self._breaker.held))
            case Resumed():
                self._emit(UpstreamResumed())
