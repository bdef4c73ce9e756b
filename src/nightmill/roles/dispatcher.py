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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from nightmill.core.batch import Usage
from nightmill.core.clocks import Clocks
from nightmill.core.failure import Failure, FailureKind, failure_of, is_of_upstream_alone
from nightmill.core.outcome import Answered, Outcome
from nightmill.core.output_line import OutputLine
from nightmill.core.retry import Expire, Retry, Settle, verdict
from nightmill.parts import Parts
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.line_queues import LineQueue, LineQueues
from nightmill.roles.model_lines import PendingLine
from nightmill.roles.output_rows import OutputRows
from nightmill.roles.slot_group import NO_GROUP, SlotGroup
from nightmill.roles.supply import Supply
from nightmill.roles.upstream_lines import UpstreamLines
from nightmill.roles.upstream_set import UpstreamSet
from nightmill.roles.waker import Waker
from nightmill.telemetry import Emit
from nightmill.upstream.registry import UpstreamRegistry

_LONGEST_PAUSE_S: Final = 1.0
_UNSERVED_GRACE_S: Final = 60.0
"""A model server that restarts may list no model for a while."""


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
        self._rows = OutputRows(request_prefix)
        self._notify = notify
        self._clock = clocks.wall
        self._monotonic = clocks.monotonic
        self._random = clocks.random

        self._waker = Waker()
        self.upstreams = UpstreamSet(on_arrival=self._waker.wake, emit=emit, clocks=clocks)
        self._queues = LineQueues(project_weights or {}, serving=self.upstreams.serving, on_batch_sent=notify)
        self.supply = Supply(self._queues, self.upstreams, monotonic=clocks.monotonic)
        self._turn = 0
        self._has_requested_lines = False

        self._group: asyncio.TaskGroup | None = None
        self._room: asyncio.Task[None] | None = None
        self.set_upstreams(upstreams)

    def set_upstreams(self, upstreams: UpstreamRegistry) -> None:
        """Sends lines to these upstreams from now on; see `UpstreamSet.change`."""
        if not self.upstreams.change(upstreams, group=self._group):
            return
        self._queues.reroute()
        for upstream in self.upstreams:
            if not upstream.runtime.may_start:
                self._pass_on(upstream, tuple(upstream.models))
        self.wake()

    def _pass_on(self, upstream: UpstreamLines, models: tuple[str | None, ...]) -> None:
        """Gives lines that wait at an upstream to others that send their model now, if there are any."""
        now = self._monotonic()
        has_left = not self.upstreams.has(upstream)
        models = tuple(
            model
            for model in models
            if has_left
            or self.upstreams.sends_elsewhere(model, upstream.models[model].endpoints, upstream, now)
        )
        for line in [line for model in models for line in upstream.take_waiting(model)]:
            other = self.upstreams.other(line, upstream, may_have_failed=True, must_send=True, now=now)
            if other is None and not has_left:
                upstream.retry(line, until=now)
                continue
            line.leave(upstream)
            if other is not None:
                other.take_over(line, until=now)
            else:
                queue = self._queues.queue_of(line.model, line.segment.lease.endpoint)
                queue.sorted_lines.append(line)

    # --- state -------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Attempts in flight at all upstreams."""
        return sum(upstream.in_flight for upstream in self.upstreams)

    async def run(self) -> None:
        """Sends and settles until it is cancelled; then no attempt is in flight any more."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for upstream in self.upstreams:
                    upstream.open(group)
                while True:
                    await self._waker.wait()
                    self._tick(self._monotonic())
        finally:
            for upstream in self.upstreams:
                upstream.close()
            self._waker.cancel_alarm()

    def _tick(self, now: float) -> None:
        for upstream in self.upstreams:
            self._settle_arrived(upstream, now)
        self._queues.admit_limited()
        self._queues.sort_lines(now, self._clock)
        for upstream in self.upstreams:
            if upstream.runtime.may_start:
                self._send_more(upstream, now)
        if not self._has_requested_lines and self.supply.is_short(now):
            self._has_requested_lines = True
            self._notify()
        self.upstreams.drop_left(now)
        self._settle_unserved(now)
        self._set_alarm(now)

    def wake(self) -> None:
        """Starts a tick: there are more lines or slots, a lease was confirmed, or answers can be written."""
        self._waker.wake()

    # --- lines to send -----------------------------------------------------------------------------

    def add(self, segment: LeasedSegment) -> None:
        """Sends the lines of a segment from now on."""
        now = self._monotonic()
        self._queues.drop_empty(is_wanted=self._is_troubled)
        is_new = all(segment.batch_id != batch.id for batch in self._queues.batches(now))
        for queue in self._queues.add(segment):
            for upstream in queue.upstreams if is_new else ():
                upstream.hurry(queue.model, now)
        self.wake()

    def _is_troubled(self, model: str | None) -> bool:
        return any(model in upstream.models for upstream in self.upstreams)

    def _may_come(self, model: str | None) -> bool:
        """Whether there are lines of a model that an upstream may get. A line in flight may fail and move."""
        if self._queues.has_new(model):
            return True
        return self.upstreams.are_several and any(
            upstream.in_flight or (model in upstream.models and upstream.models[model].waiting)
            for upstream in self.upstreams
        )

    def note_supply(self, *, is_exhausted: bool) -> None:
        """The worker has leased what there was. `is_exhausted`: the store has no more lines now, so that the
        dispatcher does not notify the worker when lines run low."""
        self._has_requested_lines = is_exhausted

    def count_unsent(self) -> None:
        """Recounts the unsent lines after segments were stopped or lost."""
        self._queues.drop_stopped()

    def update_batches(self) -> None:
        """The priorities or deadlines of some segments' batches have changed."""
        self._queues.update_batches()

    def forget_waiting(self, segment: LeasedSegment) -> None:
        """Gives up the lines of a segment that wait to be sent, or to be sent again."""
        now = self._monotonic()
        segment.give_up(self._queues.forget(segment))
        for upstream in self.upstreams:
            segment.give_up(upstream.forget_waiting(segment))
            upstream.settle_down(now, may_come=self._may_come)

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

    # --- sending -----------------------------------------------------------------------------------

    def _send_more(self, upstream: UpstreamLines, now: float) -> None:
        if self._parts.is_full:
            self._wait_for_room()
            return
        if self._parts.stalled is not None:
            return
        if upstream.is_calm:
            self._send_new(upstream, now)
            return
        for _ in range(upstream.start_due_probes(now)):
            upstream.runtime.rates.spend()
        self._send_waiting(upstream, now, beyond_share=False)
        self._send_new(upstream, now)
        self._send_waiting(upstream, now, beyond_share=True)

    def _send_waiting(self, upstream: UpstreamLines, now: float, *, beyond_share: bool) -> None:
        """Sends lines again that failed before."""
        while upstream.models and upstream.wait_s(now) <= 0 and self._is_allowed(upstream, now):
            line = upstream.next_waiting(now, beyond_share=beyond_share, has_new=self._queues.has_new)
            if line is None:
                break
            group = upstream.group_of(line.model)
            line.start(now, group)
            line.segment.note_retry()
            self._start(upstream, (line,), group, now)

    def _send_new(self, upstream: UpstreamLines, now: float) -> None:
        """Sends lines that were never sent. Queues that share slots take turns."""
        feeds = [
            feed
            for feed in self.supply.feeds_of(upstream)
            if feed[0].unsent and feed[0].is_for(upstream, now)
        ]
        if len(feeds) > 1:
            self._turn += 1
            first = self._turn % len(feeds)
            feeds = feeds[first:] + feeds[:first]
        while feeds:
            unsated: list[tuple[LineQueue, SlotGroup]] = []
            for queue, group in feeds:
                room = group.room(now)
                most = room if len(feeds) == 1 else -(-room // len(feeds))
                if most > 0 and self._send_from(queue, upstream, group, most, now):
                    unsated.append((queue, group))
            feeds = unsated

    def _send_from(
        self, queue: LineQueue, upstream: UpstreamLines, group: SlotGroup, most: int, now: float
    ) -> bool:
        """Sends lines of a queue, at most `most`; returns whether there may be more lines and slots."""
        lines = queue.next_lines(now, self._clock, group, most=most)
        if upstream.runtime.rates.are_set or not upstream.is_calm:
            lines = self._while_allowed(lines, upstream, queue.model, now)
        return self._start(upstream, lines, group, now) == most and group.room(now) > 0

    def _while_allowed(
        self, lines: Iterator[PendingLine], upstream: UpstreamLines, model: str | None, now: float
    ) -> Iterator[PendingLine]:
        """Takes lines of a model while the upstream takes lines that were never sent."""
        while upstream.takes_new(model, now) and self._is_allowed(upstream, now):
            line = next(lines, None)
            if line is None:
                return
            yield line

    def _is_allowed(self, upstream: UpstreamLines, now: float) -> bool:
        """Whether the rate limits allow an attempt now; if not, a tick is due when they will."""
        rates = upstream.runtime.rates
        if not rates.are_set:
            return True
        wait_s = rates.wait_s(now, share=upstream.slots.share)
        if wait_s > 0:
            upstream.runtime.counts.note_rate_wait()
            self._waker.wake_at(now + min(wait_s, _LONGEST_PAUSE_S), now)
        return wait_s <= 0

    def _start(
        self, upstream: UpstreamLines, lines: Iterable[PendingLine], group: SlotGroup, now: float
    ) -> int:
        """Sends lines, or gives them up if their deadline has passed; returns how many lines there were.

        Args:
            group: the slots of the lines' model.
        """
        rates, longest_s = upstream.runtime.rates, upstream.runtime.attempt_timeout_s
        wall, taken, started, timeout_s = self._clock(), 0, 0, 0.0
        segment: LeasedSegment | None = None
        for line in lines:
            taken += 1
            if segment is not line.segment:
                segment = line.segment
                timeout_s = min(longest_s, segment.lease.deadline - wall)
            if timeout_s <= 0:
                line.segment.give_up()
                if line.segment.is_over:
                    self._notify()
                continue
            if rates.are_set:
                line.charge(rates.spend())
            upstream.start(line, timeout_s=timeout_s, now=now)
            started += 1
        group.note_starts(started)
        return taken

    def _settle_unserved(self, now: float) -> None:
        """Settles the lines of models that no upstream serves, a while after all lists were known."""
        for queue in self._queues:
            is_unserved = queue.has_lines and self.upstreams.unserved(queue.model, queue.endpoint)
            unserved_s = queue.unserved_s(now, is_unserved=is_unserved)
            if not is_unserved:
                continue
            if unserved_s < _UNSERVED_GRACE_S:
                self._waker.wake_at(now + _UNSERVED_GRACE_S - unserved_s, now)
                continue
            for line in queue.all_lines(now, self._clock):
                line.segment.settle(line.ordinal, self._rows.unserved(line))
                if not line.segment.in_flight and line.segment.is_over:
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
                    self._waker.wake_at(now + wake_in_s, now)

    # --- settling ----------------------------------------------------------------------------------

    def _settle_arrived(self, upstream: UpstreamLines, now: float) -> None:
        rates = upstream.runtime.rates
        has_rates = rates.are_set
        durations_s: list[float] = []
        usages: list[Usage] = []
        last_answered: PendingLine | None = None
        group, counts = NO_GROUP, upstream.runtime.counts
        for line, outcome in upstream.take_arrived():
            row = self._rows.row(line, outcome)
            if has_rates and row.usage is not None:
                rates.correct(row.usage.total_tokens, charged_tokens=line.charged_tokens)
            if isinstance(outcome, Answered) and outcome.remaining is not None:
                rates.note_remaining(outcome.remaining, now, in_flight=upstream.in_flight)
            segment = line.segment
            if segment.attempts is not None:
                name = upstream.runtime.name
                segment.attempts.note(line, outcome, row, upstream=name, now=now, wall=self._clock())
            if row.is_error:
                self._settle_or_retry(upstream, line, outcome, row, now)
            else:
                last_answered = line
                if not upstream.is_calm:
                    upstream.answered(line, now)
                segment.settle(line.ordinal, row)
                if line.group is not group:
                    if durations_s:
                        group.count_answers(durations_s, usages, counts)
                        durations_s, usages = [], []
                    group = line.group
                durations_s.append(now - line.started_at)
                if row.usage is not None:
                    usages.append(row.usage)
            if not segment.in_flight and segment.is_over:
                self._notify()
        if last_answered is not None:
            group.count_answers(durations_s, usages, counts)
            upstream.note_newest_answer(last_answered.started_at)
        if not upstream.is_calm:
            upstream.take_arrived_probes(now, self._random)
            upstream.settle_down(now, may_come=self._may_come)
            if self.upstreams.are_several or not self.upstreams.has(upstream):
                held = [model for model, lines in upstream.models.items() if lines.waiting]
                self._pass_on(upstream, tuple(model for model in held if upstream.is_held(model, now)))

    def _settle_or_retry(
        self, upstream: UpstreamLines, line: PendingLine, outcome: Outcome, row: OutputLine, now: float
    ) -> None:
        """Settles a line that was not answered, has the line sent again, or gives the line up."""
        segment, failure = line.segment, failure_of(outcome, row.error)
        counts = upstream.runtime.counts
        counts.note_attempt(failure.kind.name.lower(), now - line.started_at)
        other = None
        if self.upstreams.are_several and segment.stopped_by is None:
            is_of_upstream = is_of_upstream_alone(row.error)
            other = self.upstreams.other(
                line, upstream, may_have_failed=False, must_send=not is_of_upstream, now=now
            )
            if is_of_upstream and other is not None:
                failure = Failure(
                    FailureKind.ACCESS, f"{failure.reason}, while other upstreams serve the model"
                )
        if failure.kind is FailureKind.REQUEST:
            upstream.answered(line, now)
            segment.settle(line.ordinal, row)
            line.group.note_settled()
            return
        record = upstream.failed(line, failure, now=now, random=self._random())
        line.group.note_overload(
            failure,
            record,
            started_at=line.started_at,
            are_lines_refused=upstream.are_lines_refused(line.model),
        )
        if segment.is_lost:
            segment.settle(line.ordinal, row)
            return
        if other is not None:
            counts.note_retry(0.0)
            line.leave(upstream)
            other.take_over(line, until=now)
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
                line.group.note_settled()
            case Retry(after_s) if segment.stopped_by is None:
                counts.note_retry(after_s)
                upstream.retry(line, until=now + after_s)
            case Retry() | Expire():
                segment.give_up()
