"""Leases segments, renews their leases by heartbeat, and completes or releases the segments.

Guarantees: an answer is in a durable part before it counts. A worker that is past its last confirmed lease
starts no attempt. Answers that arrive after a lease was lost are not written. A line may be sent twice; it is
settled once. Attempts in flight belong to `dispatcher`, the output files to `finalizer`.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain

from nightmill.core.answer_work import AnswerWork
from nightmill.core.batch import Status
from nightmill.core.clocks import Clocks
from nightmill.core.schedule import preferred_batches, spread
from nightmill.core.segment import BatchTerms, Lease
from nightmill.errors import LeaseLost, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import BatchId, ProjectId, WorkerId
from nightmill.roles.batch_cap import BatchCap
from nightmill.roles.dispatcher import Dispatcher
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.line_reporter import LineReporter
from nightmill.roles.loop import Notifier, keep_turning, plain
from nightmill.roles.segment_opener import SegmentOpener, Storage
from nightmill.roles.upstream_reports import WorkerUpstreams
from nightmill.settings import WorkerSettings
from nightmill.telemetry import (
    Emit,
    LeaseWasLost,
    RoleFailed,
    SegmentDone,
    UpstreamHeld,
    WritingPaused,
    WritingResumed,
)
from nightmill.upstream.registry import UpstreamRegistry

_LOOK_S = 0.1
_BATCH_LOOK_S = 0.2
_IDLE_LOOK_S = 0.9
_IDLE_S = 1.0
_MOST_PREFERRED = 8
_MOST_HELD = 128
_LONGEST_PAUSE_S = 1.0


class Worker:
    """The worker role of one process.

    Args:
        upstreams: where lines are sent; the store grants each worker its part of their slots.
        request_prefix: hexadecimal start of the request ids made for answers that brought none.

    Attributes:
        upstreams: the upstreams, to be changed and reported on.
    """

    name = "worker"

    def __init__(
        self,
        *,
        storage: Storage,
        upstreams: UpstreamRegistry,
        settings: WorkerSettings,
        worker_id: WorkerId,
        request_prefix: str,
        notifier: Notifier,
        emit: Emit,
        clocks: Clocks,
    ) -> None:
        self._store = storage.store
        self._blobs = storage.blobs
        self._parts = storage.parts
        self._settings = settings
        self._worker_id = worker_id
        self._notifier = notifier
        self._emit = emit
        self._monotonic = clocks.monotonic
        self._random = clocks.random

        self._segments: dict[tuple[str, int], LeasedSegment] = {}
        self._answer_work = AnswerWork()
        self._dispatcher = Dispatcher(
            upstreams,
            parts=storage.parts,
            request_prefix=request_prefix,
            notify=notifier.notify_local,
            emit=emit,
            clocks=clocks,
            project_weights=settings.project_weights,
        )
        self.upstreams = WorkerUpstreams(self._dispatcher, parts=storage.parts, clocks=clocks)
        self._line_reporter = LineReporter(storage.store, self._dispatcher.upstreams, clocks=clocks)
        self._is_draining = False
        self._next_beat = 0.0
        self._next_look = 0.0
        self._seen_count = 0
        self._stalled: str | None = None
        self._opener = SegmentOpener(storage, worker_id=worker_id, emit=emit, monotonic=clocks.monotonic)
        self._batches_seen_at = 0.0
        self._batches_seen_count = 0
        self._next_project = ProjectId("")
        self._next_model: str = ""
        self._knows_other_batches = True

    @property
    def in_flight(self) -> int:
        """Attempts in flight."""
        return self._dispatcher.in_flight

    @property
    def held(self) -> Iterator[UpstreamHeld]:
        """What is held now, and until when."""
        return self._dispatcher.upstreams.held

    async def run(self, stop: asyncio.Event, *, grace_s: Callable[[], float]) -> None:
        """Works until `stop` is set, then drains.

        Args:
            grace_s: seconds that attempts in flight may still take; called when the drain begins and during
            it.
        """
        async with asyncio.TaskGroup() as group:
            dispatcher = group.create_task(self._dispatcher.run())
            try:
                await keep_turning(
                    self,
                    notifier=self._notifier,
                    stop=stop,
                    emit=self._emit,
                    random=self._random,
                    longest_pause_s=self._settings.beat_s,
                )
                await self._drain(grace_s)
                with suppress(UnavailableError):  # then the grants expire
                    await self._return_slots()
            finally:
                dispatcher.cancel()

    async def turn(self) -> float:
        await self._end_segments()
        if self._monotonic() >= self._next_beat:
            self._next_beat = self._monotonic() + self._settings.beat_s
            await self._request_slots()
            await self._beat()
            await self._end_segments()
        elif self._segments and self._notifier.count != self._seen_count:
            await self._look()
            await self._end_segments()
        self._emit_writing_state()
        is_idle = await self._lease_more()
        await self._request_slots()
        if not is_idle and self._dispatcher.supply.lacking_lines > 0:
            is_idle = await self._lease_more()  # before the first grant no lines were wanted
        self._dispatcher.wake()  # a full disk or an unconfirmed lease may have kept its lines waiting
        return self._pause_s(is_idle=is_idle)

    def _pause_s(self, *, is_idle: bool) -> float:
        """Seconds until the next turn."""
        now = self._monotonic()
        pause_s = max(0.001, self._next_beat - now)
        if self._segments:
            if self._notifier.count != self._seen_count:
                pause_s = min(pause_s, max(0.001, self._next_look - now))
            if self._notifier.count != self._batches_seen_count:
                pause_s = min(pause_s, max(0.01, self._batches_seen_at + _BATCH_LOOK_S - now))
            for upstream in self._dispatcher.upstreams:
                for group in upstream.groups:
                    pause_s = min(pause_s, max(0.01, group.slots.rebalance_in_s(now)))
        return min(pause_s, _IDLE_S) if self._segments or not is_idle else _IDLE_S

    async def _end_segments(self) -> None:
        """Completes or releases every segment that is over."""
        over = [segment for segment in self._segments.values() if segment.is_over]
        if not over:
            return
        async with asyncio.TaskGroup() as group:
            for segment in over:
                group.create_task(self._end(segment))

    async def _end(self, segment: LeasedSegment) -> None:
        try:
            async with asyncio.timeout(self._settings.beat_s):
                await segment.writer.flush()
            await segment.writer.close()
        except TimeoutError:
            return  # a full or slow disk: renew the leases first, try again in the next turn
        except LeaseLost:
            segment.lose()
        if segment.attempts is not None:
            await segment.attempts.write(self._blobs)
        del self._segments[segment.key]
        segment.learn(self._answer_work)
        lease, report = segment.lease, segment.report
        if segment.is_lost:
            self._emit(LeaseWasLost(lease.segment.batch_id, lease.segment.number, lease.token))
            return
        is_done = report.tally.answered == lease.segment.count
        end = self._store.segments.complete if is_done else self._store.segments.release
        failpoint("worker.before_complete" if is_done else "worker.before_release")
        try:
            ended = await end(lease, report, segment.parts)
            failpoint("worker.completed" if is_done else "worker.released")
        except BaseException:
            self._segments[segment.key] = segment
            raise
        if not ended:
            self._emit(LeaseWasLost(lease.segment.batch_id, lease.segment.number, lease.token))
            return
        self._emit(
            SegmentDone(lease.segment.batch_id, lease.segment.number, lease.token, report.tally.answered)
        )
        # A notification for every segment of a long batch would wake every role of every process for nothing.
        if not is_done or all(other.batch_id != segment.batch_id for other in self._segments.values()):
            self._notifier.notify()

    async def _beat(self) -> None:
        if not self._segments:
            return
        asked_at = self._monotonic()
        reports = [segment.report for segment in self._segments.values()]
        failpoint("worker.before_beat")
        reply = await self._store.segments.renew(self._worker_id, reports, ttl_s=self._settings.lease_ttl_s)
        failpoint("worker.beaten")
        for key, segment in self._segments.items():
            if key in reply.lost:
                segment.lose()
                self._dispatcher.abort(segment)
                continue
            segment.confirm(asked_at + self._settings.lease_ttl_s)
        self._follow(reply.terms, asked_at)
        if reply.wanted:
            await self._line_reporter.report(reply.wanted, self._segments.values())
        for segment in [*self._segments.values()]:
            if segment.attempts is not None and segment.attempts.is_due(self._monotonic()):
                await segment.attempts.write(self._blobs)

    async def _look(self) -> None:
        """Follows the batches' changes after a notification, so that a cancel does not wait for the next
        beat."""
        asked_at = self._monotonic()
        if asked_at < self._next_look:
            return
        self._next_look, self._seen_count = asked_at + _LOOK_S, self._notifier.count
        batch_ids = {segment.batch_id for segment in self._segments.values()}
        self._follow(await self._store.batches.terms(batch_ids), asked_at)

    def _follow(self, terms: Mapping[BatchId, BatchTerms], asked_at: float) -> None:
        """Stops the segments of batches that are paused or ending, and takes over what else has changed."""
        have_moved = False
        for segment in self._segments.values():
            of_batch = terms.get(segment.batch_id)
            if of_batch is None:
                pass
            elif of_batch.status is Status.IN_PROGRESS:
                have_moved |= segment.follow(of_batch)
            else:
                grace_s = self._settings.cancel_grace_s if of_batch.status is Status.CANCELLING else 0.0
                segment.stop(of_batch.status, at=asked_at + grace_s)
            if segment.stopped_by is not None:
                self._dispatcher.forget_waiting(segment)
                if self._monotonic() >= segment.stop_at:
                    self._dispatcher.abort(segment)
        self._dispatcher.count_unsent()
        if have_moved:
            self._dispatcher.update_batches()

    def _emit_writing_state(self) -> None:
        reason = self._parts.stalled
        if reason is not None and self._stalled is None:
            self._emit(WritingPaused(reason))
        if reason is None and self._stalled is not None:
            self._emit(WritingResumed())
        self._stalled = reason

    async def _lease_more(self) -> bool:
        """Leases as many segments as are wanted, and a few of batches without lines here; returns whether the
        store had fewer than wanted."""
        if self._is_draining or self._parts.stalled is not None or self._dispatcher.supply.is_crowded:
            return False
        asked_at = self._monotonic()
        if asked_at < self._opener.lease_again_at:
            return False
        lacking = self._dispatcher.supply.lacking_lines
        held_bytes = sum(segment.text_bytes for segment in self._segments.values())
        room_bytes = self._settings.text_bytes - held_bytes
        limit = min(
            -(-lacking // self._settings.lines_per_segment),
            room_bytes // self._settings.segment_bytes - 1,  # the last one is for small batches
        )
        is_look_due = self._is_look_due(asked_at)
        is_for_models = bool(lacking) and self._dispatcher.supply.is_plentiful
        if is_for_models:
            limit, is_look_due = 0, True
        if limit <= 0 and not is_look_due:
            return False
        preferred: Sequence[tuple[BatchId, int]] = ()
        if is_look_due or self._knows_other_batches:
            preferred = await self._preferred(max(0, limit), room_bytes)
        if limit <= 0 and not preferred:
            if is_for_models:
                self._dispatcher.note_supply(is_exhausted=True)
            return False
        leases = await self._lease(max(0, limit), preferred)
        confirmed_until = asked_at + self._settings.lease_ttl_s
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(self._opener.opened(lease, confirmed_until)) for lease in leases]
        for segment in filter(None, [task.result() for task in opening]):
            self._limit(segment)
            self._segments[segment.key] = segment
            segment.learn(self._answer_work)
            self._dispatcher.add(segment)
            if not segment.unsent:
                self._notifier.notify_local()
        if is_for_models:
            self._dispatcher.note_supply(is_exhausted=not leases)
        if limit <= 0:
            return False
        is_idle = len(leases) < limit
        self._dispatcher.note_supply(is_exhausted=is_idle)
        return is_idle

    def _limit(self, segment: LeasedSegment) -> None:
        """Gives all segments of a batch with a concurrency of its own one limit. No other worker has any."""
        concurrency = segment.lease.concurrency
        if concurrency is None:
            return
        beside = [other for other in self._segments.values() if other.batch_id == segment.batch_id]
        caps = [other.cap for other in beside if other.cap is not None]
        cap = caps[0] if caps else BatchCap(concurrency)
        for other in (segment, *beside):
            other.limit(cap)

    def _is_look_due(self, now: float) -> bool:
        """Whether to look for batches without lines here although there are enough unsent lines."""
        pause_s = _IDLE_LOOK_S if self._notifier.count == self._batches_seen_count else _BATCH_LOOK_S
        return now >= self._batches_seen_at + pause_s

    async def _preferred(self, limit: int, room_bytes: int) -> list[tuple[BatchId, int]]:
        """The batches that are leased first, and how many segments of each."""
        self._batches_seen_at, self._batches_seen_count = self._monotonic(), self._notifier.count
        for segment in self._segments.values():
            segment.learn(self._answer_work)
        held = self._dispatcher.supply.batches
        candidates = await self._store.open_batches.candidates(
            after=self._next_project,
            most=_MOST_PREFERRED,
            passed_over={batch.id for batch in held} | self._dispatcher.supply.batches_aside,
            after_model=self._next_model if self._dispatcher.supply.are_several else None,
            worker_id=self._worker_id,
        )
        self._next_project, self._next_model = candidates.next_after, candidates.next_model
        for segment in self._segments.values():
            segment.prioritize(candidates.priorities)
        self._dispatcher.update_batches()
        of_models = [batch for _, batch in candidates.by_model]
        known = {batch.id for batch in chain(held, candidates.near, *candidates.by_project, of_models)}
        self._knows_other_batches = len(known) > 1
        if len(held) >= _MOST_HELD:
            return []
        chosen = preferred_batches(
            candidates,
            held,
            room_bytes=room_bytes,
            segment_bytes=self._settings.segment_bytes,
            most=_MOST_PREFERRED,
            is_needed=self._dispatcher.supply.needs,
        )
        return [(batch.id, count) for batch, count in spread(limit, chosen)]

    async def _lease(self, limit: int, preferred: Sequence[tuple[BatchId, int]]) -> Sequence[Lease]:
        failpoint("worker.before_lease")
        leases = await self._store.segments.lease(
            self._worker_id,
            limit=limit,
            ttl_s=self._settings.lease_ttl_s,
            preferred=preferred,
            passed_over=self._dispatcher.supply.batches_aside,
        )
        if leases:
            failpoint("worker.leased")
        return leases

    async def _request_slots(self) -> None:
        """Renews this worker's grant of each upstream's slots where it is due."""
        for upstream in self._dispatcher.upstreams:
            for group in upstream.groups:
                slots = group.slots
                wanted = self._dispatcher.supply.wanted_slots(upstream, group)
                now = self._monotonic()
                if slots.is_due(now, wanted=wanted):
                    request = slots.request(
                        self._worker_id,
                        in_flight=group.in_flight,
                        wanted=wanted,
                        now=now,
                        gauges=upstream.slots.take_gauges(group),
                    )
                    grant = await self._store.grants.request(request, ttl_s=self._settings.lease_ttl_s)
                    slots.take(grant, asked_at=now)
                    self._dispatcher.wake()

    async def _return_slots(self) -> None:
        for upstream in self._dispatcher.upstreams:
            for group in upstream.groups:
                request = group.slots.request(self._worker_id, in_flight=0, wanted=0)
                await self._store.grants.request(request, ttl_s=_LONGEST_PAUSE_S)

    async def _drain(self, grace_s: Callable[[], float]) -> None:
        """Starts no attempt, settles the outcomes that arrive in time, and releases every segment."""
        self._is_draining = True
        until = self._monotonic() + grace_s()
        for segment in self._segments.values():
            segment.stop(Status.IN_PROGRESS, at=until)
            self._dispatcher.forget_waiting(segment)
        self._dispatcher.count_unsent()
        while self._segments:
            try:
                await self._end_segments()
                await self._request_slots()
            except (UnavailableError, ExceptionGroup) as away:
                self._emit(RoleFailed(self.name, plain(away)))
                if self._monotonic() >= until:
                    return  # the next holder of the lease finds the durable answers
            remaining_s = min(until, self._monotonic() + grace_s()) - self._monotonic()
            if remaining_s <= 0:
                for segment in self._segments.values():
                    self._dispatcher.abort(segment)
                if self._parts.stalled is not None:
                    return  # the disk takes no bytes: the next holder sends again what is not on the disk
            count_before = self._notifier.count
            if self._segments:
                await self._notifier.wait(since=count_before, timeout_s=min(max(remaining_s, 0.01), 0.5))
                with suppress(UnavailableError):
                    await self._beat()
