"""Leases segments and keeps one pool of attempts in flight, refilled across them.

Promise: an answer is in a durable part before it counts; a worker that is past its last confirmed lease
starts nothing new; what a lost lease still answers is written nowhere. A line may be sent twice, it is
settled once. Not its duty: retry policy (`pacing`), HTTP (`upstream`), the files at the end (finalizer).
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import assert_never

from nightmill.batch import Status, Tally
from nightmill.blobs import Blobs
from nightmill.crash import point
from nightmill.errors import LeaseLost, UnavailableError
from nightmill.ids import BatchId, WorkerId, output_line_id
from nightmill.line import OutputLine, answered, unanswered
from nightmill.pacing import (
    NOT_JSON,
    Answered,
    Broken,
    Expire,
    Gate,
    Outcome,
    Paused,
    Resumed,
    Retry,
    Settle,
    Throttled,
    TimedOut,
    Unreachable,
    is_success,
    verdict,
)
from nightmill.parts import Parts
from nightmill.roles.loop import Bell, keep_turning, plain
from nightmill.roles.open_segment import OpenSegment, PendingLine, read_segment
from nightmill.segment import Lease, PinnedPart, Report
from nightmill.settings import Settings
from nightmill.store import Store
from nightmill.telemetry import (
    Emit,
    LeaseWasLost,
    RoleFailed,
    SegmentDone,
    SegmentLeased,
    UpstreamPaused,
    UpstreamResumed,
    WritingPaused,
    WritingResumed,
)
from nightmill.upstream import Upstream
from nightmill.window import Rate, Window

_AHEAD_S = 0.25
_LOOK_S = 0.1
_IDLE_S = 1.0
_LONGEST_PAUSE_S = 1.0
_ASK_BEATS = 0.75  # of a beat: each beat asks, also one that comes a little early
_AWAY = "The model server could not be reached."


class Worker:
    """One worker process's pool.

    Args:
        slots: attempts in flight at once, over all workers of the upstream; the store grants each its part.
        upstream_name: under which all workers of the upstream meet.
        clock: Unix seconds, for deadlines; monotonic: for leases and pauses.
        random: numbers in [0, 1).
        request_prefix: hexadecimal start of the request ids made for answers that brought none.
    """

    name = "worker"

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        parts: Parts,
        upstream: Upstream,
        gate: Gate,
        settings: Settings,
        slots: int,
        worker_id: WorkerId,
        request_prefix: str,
        bell: Bell,
        emit: Emit,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        random: Callable[[], float],
        upstream_name: str = "upstream",
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._parts = parts
        self._upstream = upstream
        self._gate = gate
        self._settings = settings.worker
        self._attempt_timeout_s = settings.upstream.timeout_s
        self._max_attempts = settings.upstream.max_attempts
        self._slot_count = slots
        self._worker_id = worker_id
        self._request_prefix = request_prefix
        self._bell = bell
        self._emit = emit
        self._clock = clock
        self._monotonic = monotonic
        self._random = random

        self._segments: dict[tuple[str, int], OpenSegment] = {}
        self._queue: deque[OpenSegment] = deque()
        self._unsent = 0
        self._low_water = 1
        self._window = Window(
            upstream_name,
            window=slots,
            ttl_s=self._settings.lease_ttl_s,
            ask_every_s=_ASK_BEATS * self._settings.beat_s,
        )
        self._requests = Rate(settings.upstream.requests_per_minute)
        self._tokens = Rate(settings.upstream.tokens_per_minute)
        self._tokens_per_line = 0.0
        self._has_rates = bool(settings.upstream.requests_per_minute or settings.upstream.tokens_per_minute)
        self._pool: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._has_asked = False
        self._retries: list[tuple[float, int, PendingLine]] = []
        self._sequence = count()
        self._more = asyncio.Event()
        self._sending: dict[asyncio.Task[None], PendingLine] = {}
        self._aborted: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._next_beat = 0.0
        self._next_look = 0.0
        self._heard = 0
        self._stalled: str | None = None
        self._lease_again_at = 0.0
        self._settled_count = 0
        self._rate_since = 0.0
        self._rate_count = 0

    @property
    def in_flight(self) -> int:
        return len(self._sending)

    async def run(self, stop: asyncio.Event, *, grace_s: Callable[[], float]) -> None:
        """Works until `stop` is set, then drains; `grace_s` says how long attempts in flight may take."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await keep_turning(
                    self,
                    bell=self._bell,
                    stop=stop,
                    emit=self._emit,
                    random=self._random,
                    longest_pause_s=self._settings.beat_s,
                )
                await self._drain(grace_s)
                with suppress(UnavailableError):  # else it lapses by itself
                    await self._store.grant(
                        self._window.claim(self._worker_id, in_flight=0, wanted=0), ttl_s=_LONGEST_PAUSE_S
                    )
            finally:
                self._group = None
                for slot in self._pool:
                    slot.cancel()

    # --- housekeeping ------------------------------------------------------------------------------

    async def turn(self) -> float:
        await self._end_segments()
        if self._monotonic() >= self._next_beat:
            self._next_beat = self._monotonic() + self._settings.beat_s
            await self._ask_for_slots()
            await self._beat()
            await self._end_segments()
        elif self._segments and self._bell.rings != self._heard:
            await self._look()
            await self._end_segments()
        self._tell_of_disk()
        is_idle = await self._lease_more()
        await self._ask_for_slots()
        if not is_idle and self._unsent < self._wanted_lines():
            is_idle = await self._lease_more()  # the first grant was what it waited for
        if self._unsent or self._retries:
            self._more.set()  # what kept them waiting, a full disk or an unconfirmed lease, may be over
        until_beat_s = max(0.001, self._next_beat - self._monotonic())
        if self._segments and self._bell.rings != self._heard:
            until_beat_s = min(until_beat_s, max(0.001, self._next_look - self._monotonic()))
        if self._segments:
            until_beat_s = min(until_beat_s, max(0.01, self._window.reshape_in_s(self._monotonic())))
        return min(until_beat_s, _IDLE_S) if self._segments or not is_idle else _IDLE_S

    async def _end_segments(self) -> None:
        """Completes or gives back every segment that is over."""
        over = [segment for segment in self._segments.values() if segment.is_over]
        if not over:
            return
        async with asyncio.TaskGroup() as group:
            for segment in over:
                group.create_task(self._end(segment))

    async def _end(self, segment: OpenSegment) -> None:
        try:
            async with asyncio.timeout(self._settings.beat_s):
                await segment.writer.flush()
            await segment.writer.close()
        except TimeoutError:
            return  # a full or slow disk: beat first, try again next turn
        except LeaseLost:
            segment.is_lost = True
        del self._segments[segment.key]
        lease, report = segment.lease, segment.report
        if segment.is_lost:
            self._emit(LeaseWasLost(lease.segment.batch_id, lease.segment.number, lease.token))
            return
        is_done = report.tally.answered == lease.segment.count
        end = self._store.complete_segment if is_done else self._store.release_segment
        point("worker.before_complete" if is_done else "worker.before_release")
        try:
            ended = await end(lease, report, segment.parts)
            point("worker.completed" if is_done else "worker.released")
        except BaseException:
            self._segments[segment.key] = segment
            raise
        if not ended:
            self._emit(LeaseWasLost(lease.segment.batch_id, lease.segment.number, lease.token))
            return
        self._emit(
            SegmentDone(lease.segment.batch_id, lease.segment.number, lease.token, report.tally.answered)
        )
        # For every segment of a long batch it would wake every role of every process for nothing.
        if not is_done or all(other.batch_id != segment.batch_id for other in self._segments.values()):
            self._bell.ring()

    async def _beat(self) -> None:
        if not self._segments:
            return
        asked_at = self._monotonic()
        reports = [segment.report for segment in self._segments.values()]
        point("worker.before_beat")
        reply = await self._store.beat(self._worker_id, reports, ttl_s=self._settings.lease_ttl_s)
        point("worker.beaten")
        for key, segment in self._segments.items():
            if key in reply.lost:
                segment.is_lost = True
                self._abort(segment)
                continue
            segment.confirmed_until = asked_at + self._settings.lease_ttl_s
        self._stop(reply.stopping, asked_at)

    async def _look(self) -> None:
        """The bell has rung: a cancel must not wait for the next beat to be heard of."""
        asked_at = self._monotonic()
        if asked_at < self._next_look:
            return
        self._next_look, self._heard = asked_at + _LOOK_S, self._bell.rings
        batch_ids = {segment.lease.segment.batch_id for segment in self._segments.values()}
        self._stop(await self._store.stopping(batch_ids), asked_at)

    def _stop(self, stopping: Mapping[BatchId, Status], asked_at: float) -> None:
        for segment in self._segments.values():
            status = stopping.get(segment.lease.segment.batch_id)
            if status is not None:
                grace_s = self._settings.cancel_grace_s if status is Status.CANCELLING else 0.0
                segment.stop(status, at=asked_at + grace_s)
            if segment.stopped_by is not None:
                self._forget_retries(segment)
                if self._monotonic() >= segment.stop_at:
                    self._abort(segment)
        self._count_unsent()

    def _tell_of_disk(self) -> None:
        reason = self._parts.stalled
        if reason is not None and self._stalled is None:
            self._emit(WritingPaused(reason))
        if reason is None and self._stalled is not None:
            self._emit(WritingResumed())
        self._stalled = reason

    async def _lease_more(self) -> bool:
        """Whether no more work was to be had."""
        if self._is_draining or self._parts.stalled is not None or len(self._retries) > self._slot_count:
            return False
        if self._monotonic() < self._lease_again_at:
            return False
        wanted = self._wanted_lines()
        if self._unsent >= wanted:
            return False
        limit = -(-(wanted - self._unsent) // self._settings.lines_per_segment)
        asked_at = self._monotonic()
        point("worker.before_lease")
        leases = await self._store.lease_segments(
            self._worker_id, limit=limit, ttl_s=self._settings.lease_ttl_s
        )
        if leases:
            point("worker.leased")
        confirmed_until = asked_at + self._settings.lease_ttl_s
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(self._opened(lease, confirmed_until)) for lease in leases]
        for segment in filter(None, [task.result() for task in opening]):
            self._segments[segment.key] = segment
            self._unsent += segment.unsent
            self._queue.append(segment)
            if not segment.unsent:
                self._bell.ring_here()
        self._more.set()
        is_idle = len(leases) < limit
        self._has_asked = is_idle
        return is_idle

    def _wanted_lines(self) -> int:
        """Enough for a full pool and for what was settled in the last quarter of a second."""
        now = self._monotonic()
        elapsed_s = now - self._rate_since
        if elapsed_s > _AHEAD_S:
            self._low_water = int((self._settled_count - self._rate_count) / elapsed_s * _AHEAD_S)
            self._rate_since, self._rate_count = now, self._settled_count
        self._low_water = max(1, self._window.limit(now), self._low_water)
        return 2 * self._low_water

    async def _ask_for_slots(self) -> None:
        """Keeps our part of the upstream's window, and makes the pool as large as it."""
        now = self._monotonic()
        wanted = self._unsent + len(self._sending) + len(self._retries)
        if self._window.is_due(now, wanted=wanted):
            claim = self._window.claim(self._worker_id, in_flight=len(self._sending), wanted=wanted)
            grant = await self._store.grant(claim, ttl_s=self._settings.lease_ttl_s)
            self._window.take(grant, asked_at=now)
        if self._group is None:
            return
        for _ in range(self._window.limit(self._monotonic()) - len(self._pool)):
            self._pool.add(self._group.create_task(self._slot()))

    async def _opened(self, lease: Lease, confirmed_until: float) -> OpenSegment | None:
        try:
            return await self._open(lease, confirmed_until)
        except Exception as error:  # noqa: BLE001 - one damaged segment must not hold up those leased with it
            self._emit(RoleFailed(self.name, error))
            return None  # the lease lapses by itself

    async def _open(self, lease: Lease, confirmed_until: float) -> OpenSegment | None:
        segment = lease.segment
        self._emit(SegmentLeased(segment.batch_id, segment.number, lease.token))
        try:
            pinned, known, earlier = await self._found(lease)
            text, offset, lines = await read_segment(self._blobs, lease, known)
        except UnavailableError as error:
            self._lease_again_at = self._monotonic() + error.retry_after_s
            await self._store.release_segment(
                lease, Report(segment.batch_id, segment.number, lease.token, lease.tally), ()
            )
            raise
        if lease.token > 1:
            report = Report(segment.batch_id, segment.number, lease.token, earlier)
            point("worker.before_pin")
            if not await self._store.pin_parts(lease, pinned, report):
                self._emit(LeaseWasLost(segment.batch_id, segment.number, lease.token))
                return None
            point("worker.pinned")
        return OpenSegment(
            lease,
            writer=self._parts.open(lease),
            text=text,
            offset=offset,
            lines=lines,
            pinned=pinned,
            earlier=earlier,
            confirmed_until=confirmed_until,
        )

    async def _found(self, lease: Lease) -> tuple[tuple[PinnedPart, ...], set[int], Tally]:
        """The parts of earlier tokens, the ordinals they answer, and their tally."""
        known: set[int] = set()
        earlier, pinned = Tally(), lease.pinned
        if lease.token > 1:
            pinned = tuple(await self._parts.find(lease))
            async for record in self._parts.read(pinned):
                if record.ordinal in known:
                    continue  # only after a restore of an older database; the first answer stands
                known.add(record.ordinal)
                earlier = earlier.plus(_tally_of(record.output))
        return pinned, known, earlier

    def _count_unsent(self) -> None:
        self._queue = deque(segment for segment in self._queue if segment.unsent and not segment.is_lost)
        self._unsent = sum(segment.unsent for segment in self._queue)

    def _forget_retries(self, segment: OpenSegment) -> None:
        kept = [entry for entry in self._retries if entry[2].segment is not segment]
        dropped = len(self._retries) - len(kept)
        if dropped:
            segment.in_flight -= dropped
            segment.abandoned += dropped
            heapq.heapify(kept)
            self._retries = kept

    def _abort(self, segment: OpenSegment) -> None:
        """Gives up what is in flight for the segment."""
        self._forget_retries(segment)
        for task, line in list(self._sending.items()):
            if line.segment is segment and task not in self._aborted:
                self._aborted.add(task)
                task.cancel()

    async def _drain(self, grace_s: Callable[[], float]) -> None:
        """Starts nothing new, settles what comes back in time, gives every segment back."""
        self._is_draining = True
        until = self._monotonic() + grace_s()
        for segment in self._segments.values():
            segment.stop(Status.IN_PROGRESS, at=until)
            self._forget_retries(segment)
        self._count_unsent()
        while self._segments:
            try:
                await self._end_segments()
                await self._ask_for_slots()
            except (UnavailableError, ExceptionGroup) as away:
                self._emit(RoleFailed(self.name, plain(away)))
                if self._monotonic() >= until:
                    return  # what is durable is found by whoever comes next
            remaining_s = min(until, self._monotonic() + grace_s()) - self._monotonic()
            if remaining_s <= 0:
                for segment in self._segments.values():
                    self._abort(segment)
                if self._parts.stalled is not None:
                    return  # the disk takes nothing: what is not on it is sent again, by whoever comes next
            rings = self._bell.rings
            if self._segments:
                await self._bell.wait(since=rings, timeout_s=min(max(remaining_s, 0.01), 0.5))
                with suppress(UnavailableError):
                    await self._beat()

    # --- the pool ----------------------------------------------------------------------------------

    async def _slot(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._send_lines(task)
        finally:
            self._pool.discard(task)

    async def _send_lines(self, task: asyncio.Task[None]) -> None:
        """One line after the other, until the pool is larger than it may be."""
        while len(self._pool) <= self._window.limit(now := self._monotonic()):
            if not self._gate.is_open or self._has_rates:
                wait_s = self._gate.wait_s(now) or self._pace_s(now)
                if wait_s > 0:
                    await asyncio.sleep(min(wait_s, _LONGEST_PAUSE_S))
                    continue
            line = self._next_line(now)
            if line is None:
                self._more.clear()
                await self._more.wait()
                continue
            self._sending[task] = line
            try:
                await self._answer(line)
            except asyncio.CancelledError:
                if task not in self._aborted:
                    raise
                # Only the attempt was given up; the slot itself goes on.
                self._aborted.discard(task)
                task.uncancel()
                self._give_up(line)
            finally:
                self._sending.pop(task, None)
            if self._parts.is_full:
                await self._parts.room()

    def _pace_s(self, now: float) -> float:
        share = self._window.share
        return max(self._requests.wait_s(now, share=share), self._tokens.wait_s(now, share=share))

    def _next_line(self, now: float) -> PendingLine | None:
        if self._parts.stalled is not None:
            return None
        if self._retries and self._retries[0][0] <= now:
            if self._retries[0][2].segment.confirmed_until < now:
                return None
            return heapq.heappop(self._retries)[2]
        if len(self._retries) > self._slot_count:
            return None
        queue = self._queue
        while queue:
            segment = queue[0]
            if segment.unsent and not segment.is_lost:
                if segment.confirmed_until < now:
                    return None
                self._unsent -= 1
                if self._unsent <= self._low_water and not self._has_asked:
                    self._has_asked = True
                    self._bell.ring_here()
                return segment.take()
            queue.popleft()
        return None

    async def _answer(self, line: PendingLine) -> None:
        segment = line.segment
        lease = segment.lease
        timeout_s = min(self._attempt_timeout_s, lease.deadline - self._clock())
        if timeout_s <= 0:
            self._give_up(line)
            return
        if not self._gate.is_open:
            self._gate.sent(self._monotonic())
        guess = self._tokens_per_line
        if self._has_rates:
            self._requests.spend(1)
            self._tokens.spend(guess)
        outcome = await self._upstream.send(lease.endpoint, line.request.body, timeout_s=timeout_s)
        row, outcome = self._row(line, outcome)
        if self._has_rates and row.usage is not None:
            used = row.usage.total_tokens
            self._tokens.spend(used - guess)
            self._tokens_per_line = used if not guess else 0.9 * guess + 0.1 * used
        change = self._gate.note(outcome, now=self._monotonic(), random=self._random())
        if change is not None:
            self._tell(change)
        if segment.is_lost:
            segment.in_flight -= 1
            return
        if is_success(outcome):
            self._settle(line, row)
            return
        ruling = verdict(
            self._gate.judge(outcome),
            attempts=line.attempts + 1,
            max_attempts=self._max_attempts,
            now=self._clock(),
            deadline=lease.deadline,
            random=self._random(),
        )
        match ruling:
            case Settle():
                self._settle(line, row)
            case Retry(after_s, burns):
                line.attempts += burns
                self._retry(line, after_s)
            case Expire():
                self._give_up(line)

    def _settle(self, line: PendingLine, row: OutputLine) -> None:
        segment = line.segment
        segment.in_flight -= 1
        try:
            segment.writer.append(line.ordinal, row)
        except LeaseLost:
            segment.is_lost = True
        self._settled_count += 1
        if not segment.in_flight and segment.is_over:
            self._bell.ring_here()

    def _row(self, line: PendingLine, outcome: Outcome) -> tuple[OutputLine, Outcome]:
        """The output line if the outcome is settled, and the outcome once the answer has been read."""
        line_id = output_line_id(line.segment.batch_id, line.ordinal)
        match outcome:
            case Answered() | Throttled():
                row = answered(
                    line_id,
                    line.request,
                    status=outcome.status,
                    request_id=outcome.request_id or self._request_id(),
                    body=outcome.body,
                )
                return row, NOT_JSON if row.is_error and 200 <= outcome.status < 300 else outcome
            case TimedOut() | Broken():
                return unanswered(line_id, line.request, code=outcome.code, message=outcome.message), outcome
            case Unreachable():
                return unanswered(line_id, line.request, code="upstream_unreachable", message=_AWAY), outcome
            case _:
                assert_never(outcome)

    def _request_id(self) -> str:
        return f"{self._request_prefix}{next(self._sequence):08x}"

    def _tell(self, change: Paused | Resumed) -> None:
        match change:
            case Paused(reason, seconds):
                self._emit(UpstreamPaused(reason, seconds, self._gate.held))
            case Resumed():
                self._emit(UpstreamResumed())
                self._more.set()

    def _retry(self, line: PendingLine, after_s: float) -> None:
        if line.segment.stopped_by is not None:
            self._give_up(line)
            return
        heapq.heappush(self._retries, (self._monotonic() + after_s, next(self._sequence), line))
        asyncio.get_running_loop().call_later(after_s + 0.001, self._more.set)

    def _give_up(self, line: PendingLine) -> None:
        line.segment.in_flight -= 1
        line.segment.abandoned += 1
        if line.segment.is_over:
            self._bell.ring_here()


def _tally_of(row: OutputLine) -> Tally:
    tally = Tally(0, 1) if row.is_error else Tally(1, 0)
    return tally if row.usage is None else Tally(tally.completed, tally.failed, row.usage)
