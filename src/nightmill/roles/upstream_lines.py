"""The lines of one upstream in one worker: in flight, arrived, and waiting while something is wrong.

Every line that `start`, `park` or `retry` was given is in exactly one place until the dispatcher takes the
line out. What an outcome means belongs to `core.failure` and `core.health`, when a line is sent to
`dispatcher`.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from nightmill.core.failure import AnswerError, Failure, FailureKind, failure_of
from nightmill.core.health import Health, Held, LineRecord, Resumed
from nightmill.core.outcome import Answered, Outcome
from nightmill.core.output_line import answered
from nightmill.core.request_line import RequestLine
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.model_lines import MOST_FRESH, ModelLines, PendingLine
from nightmill.upstream import Attempts, attempts_of
from nightmill.upstream.registry import UpstreamRuntime

_RETRY_SHARE: Final = 4
"""One in so many attempts in flight may be a line that failed before, while other lines wait."""
_NO_ID: Final = b'""'


class _CheapRequest(msgspec.Struct, eq=False, gc=False):
    """A request of `core.probe` in flight."""

    model_lines: ModelLines
    endpoint: str
    request: RequestLine
    started_at: float

    def error_in(self, outcome: Outcome) -> AnswerError | None:
        """What an answer that is no result reports; None for a result and without an answer."""
        if not isinstance(outcome, Answered):
            return None
        status, body = outcome.status, outcome.body
        row = answered(b"", self.request, endpoint=self.endpoint, status=status, request_id=_NO_ID, body=body)
        return row.error


class UpstreamLines:
    """The lines in flight at one upstream, and those that wait there.

    Args:
        runtime: the upstream.
        on_arrival: called when the first outcome arrives after a call of `take_arrived`.
        on_change: called with a model, or None for the whole upstream, when lines are held or sent again.

    Attributes:
        models: the models with which something is wrong.
        is_calm: whether nothing is wrong with the upstream or any model; then lines may start without a look
            at their model.
    """

    __slots__ = (
        "_arrived",
        "_arrived_probes",
        "_attempts",
        "_in_flight",
        "_newest_answered_start",
        "_on_arrival",
        "_on_change",
        "_probes",
        "_routed",
        "_start",
        "_whole",
        "is_calm",
        "models",
        "runtime",
    )

    def __init__(
        self,
        runtime: UpstreamRuntime,
        *,
        on_arrival: Callable[[], None],
        on_change: Callable[[UpstreamRuntime, str | None, Held | Resumed], None],
    ) -> None:
        self.runtime = runtime
        self.models: dict[str | None, ModelLines] = {}
        self.is_calm = True
        self._whole = Health()
        self._on_arrival = on_arrival
        self._on_change = on_change
        self._in_flight: set[PendingLine] = set()
        self._probes: set[_CheapRequest] = set()
        self._routed: deque[PendingLine] = deque()
        self._newest_answered_start = -math.inf
        self._arrived: list[tuple[PendingLine, Outcome]] = []
        self._arrived_probes: list[tuple[_CheapRequest, Outcome]] = []
        self._attempts: Attempts  # from `open` on

    def open(self, group: asyncio.TaskGroup) -> None:
        """Must be called before the first `start`. A client that needs a task per attempt runs it there."""
        self._attempts = attempts_of(self.runtime.client, group=group)
        self._start = self._attempts.start

    def close(self) -> None:
        """Ends every attempt in flight."""
        for tag in (*self._in_flight, *self._probes):
            self._attempts.give_up(tag)
        self._in_flight.clear()
        self._probes.clear()

    @property
    def in_flight(self) -> int:
        """Attempts in flight, those included whose outcome has arrived and was not taken yet."""
        return len(self._in_flight) + len(self._probes)

    @property
    def waiting(self) -> int:
        """Lines that wait to be sent, or to be sent again."""
        return len(self._routed) + sum(lines.waiting for lines in self.models.values())

    @property
    def has_waiting(self) -> bool:
        """Whether `next_waiting` may find a line."""
        return bool(self.models or self._routed)

    @property
    def is_full(self) -> bool:
        """Whether so many lines wait for this upstream that segments with further ones are set aside."""
        return len(self._routed) >= MOST_FRESH

    @property
    def held(self) -> Iterator[tuple[str | None, Held]]:
        """What is held, and why: models, and None for the whole upstream."""
        if self._whole.held is not None:
            yield None, self._whole.held
        for model, lines in self.models.items():
            if lines.health.held is not None:
                yield model, lines.health.held

    # --- sending -----------------------------------------------------------------------------------

    def start(self, line: PendingLine, *, timeout_s: float, now: float) -> None:
        """Sends a line."""
        if not self.is_calm:
            self._note_start(line, timeout_s, now)
        self._in_flight.add(line)
        self._start(
            line,
            line.segment.lease.endpoint,
            line.request.body,
            timeout_s=timeout_s,
            on_outcome=self._on_outcome,
        )

    def _note_start(self, line: PendingLine, timeout_s: float, now: float) -> None:
        line.start(now)
        self._whole.started(now)
        if line.model_lines is not None:
            line.model_lines.note_start(line.record, now=now, timeout_s=timeout_s)

    def _on_outcome(self, line: PendingLine, outcome: Outcome) -> None:
        if not self._arrived:
            self._on_arrival()
        self._arrived.append((line, outcome))

    def start_due_probes(self, now: float, *, room: int) -> int:
        """Sends the cheap requests that are due, at most `room`; returns how many."""
        started = 0
        for lines in self.models.values():
            if started >= room:
                break
            if not self._is_probe_due(lines.health, now):
                continue
            cheap_request = lines.cheap_request()
            if cheap_request is None:
                continue
            endpoint, request = cheap_request
            if self._whole.held is None and lines.health.held is None:
                lines.health.evidence_requested(now)
            self._whole.started(now)
            lines.note_start(None, now=now, timeout_s=0.0)
            started += 1
            probe = _CheapRequest(lines, endpoint, request, now)
            self._probes.add(probe)
            self._start(
                probe,
                endpoint,
                request.body,
                timeout_s=self.runtime.attempt_timeout_s,
                on_outcome=self._on_probe_outcome,
            )
        return started

    def _is_probe_due(self, health: Health, now: float) -> bool:
        """Whether to send a cheap request to a model now.

        While there is no connection, a request to any model shows if the connection is back, and no line is
        sent that may be the cause of the outage.
        """
        if self._whole.held is not None:
            return not (self._whole.wait_s(now, in_flight=0) or health.wait_s(now, in_flight=0))
        if health.held is None:
            return health.is_evidence_due(now)
        return health.is_cheap_probe_next and not health.wait_s(now, in_flight=0)

    def _on_probe_outcome(self, probe: _CheapRequest, outcome: Outcome) -> None:
        if probe in self._probes:
            self._arrived_probes.append((probe, outcome))
            self._on_arrival()

    def wait_s(self, now: float) -> float:
        """Seconds until a line may be sent at all; 0 if one may be sent now, infinite while an outcome has to
        come first."""
        return 0.0 if self.is_calm else self._whole.wait_s(now, in_flight=self.in_flight)

    def park(self, line: PendingLine, now: float) -> ModelLines | None:
        """Keeps a new line if its model can't be sent now; returns the model's lines then, else None."""
        lines = self.models.get(line.model)
        if lines is None:
            return None
        line.join(lines)
        if not lines.health.wait_s(now, in_flight=lines.in_flight):
            return None
        lines.add_fresh(line, now)
        return lines

    def next_waiting(self, now: float, *, beyond_share: bool) -> PendingLine | None:
        """Takes out a waiting line that may be sent now, None without any.

        Args:
            beyond_share: also a line that failed before although many of them are in flight.
        """
        line = self._next_routed(now)
        if line is not None or self.is_calm:
            return line
        limit = self.runtime.slots.limit(now)
        # The last slot is kept for the cheap request that shows whether a slow line or a queue is the cause.
        beyond_share &= limit == 1 or self.in_flight < limit - 1
        for lines in self.models.values():
            health = lines.health
            if not lines.waiting or health.wait_s(now, in_flight=lines.in_flight):
                continue
            if health.held is not None and health.is_cheap_probe_next and lines.cheap_request() is not None:
                continue
            share = min(limit, health.cap or limit) // _RETRY_SHARE
            line = lines.next_fresh(now) if health.held is not None else None
            if line is None and (beyond_share or lines.may_retry(now, share=share)):
                line = lines.next_retry(now)
            line = line or lines.next_fresh(now)
            if line is not None:
                return line
        return None

    def add_routed(self, line: PendingLine) -> None:
        """Keeps a new line that another upstream's turn found."""
        self._routed.append(line)

    def retry(self, line: PendingLine, *, until: float) -> None:
        """Keeps a line that failed and may be sent again at monotonic time `until`.

        A line whose failure may be its own or the server's waits for the cheap request that shows which.
        """
        lines = self._troubled(line)
        evidence_at = lines.health.evidence_at
        if evidence_at is not None and line.record is not None and not line.record.is_explained:
            until = max(until, evidence_at)
        lines.add_retry(line, until=until)

    def _next_routed(self, now: float) -> PendingLine | None:
        while self._routed and self._routed[0].segment.confirmed_until >= now:
            line = self._routed.popleft()
            if self.is_calm or self.park(line, now) is None:
                return line
        return None

    def next_wake_in_s(self, now: float) -> float:
        """Seconds until time alone allows something to be sent; infinite if only an outcome can."""
        if self.is_calm:
            return math.inf
        whole_s = self._whole.wait_s(now, in_flight=self.in_flight)
        if whole_s > 0:
            return whole_s
        wakes = [lines.next_wake_in_s(now) for lines in self.models.values()]
        return min((wake_s for wake_s in wakes if wake_s > 0), default=math.inf)

    # --- outcomes ----------------------------------------------------------------------------------

    def take_arrived(self) -> list[tuple[PendingLine, Outcome]]:
        """The lines whose outcomes have arrived, with their outcomes; none of them is in flight any more."""
        arrived = self._arrived
        if arrived:
            self._arrived = []
            self._in_flight.difference_update([line for line, _ in arrived])
        return arrived

    def note_newest_answer(self, started_at: float) -> None:
        """Notes an answered attempt, one of each tick: attempts that started earlier were overtaken."""
        self._newest_answered_start = max(self._newest_answered_start, started_at)

    def answered(self, line: PendingLine, now: float) -> None:
        """Takes an answer into account. Needs no call while `is_calm`."""
        self._note_end(line)
        self._answered(line.model_lines, line.record, started_at=line.started_at, now=now)

    def _answered(
        self, lines: ModelLines | None, record: LineRecord | None, *, started_at: float, now: float
    ) -> None:
        limit = self.runtime.slots.concurrency_limit
        self._report(None, self._whole.answered(None, started_at=started_at, limit=limit, now=now))
        if lines is not None:
            change = lines.health.answered(record, started_at=started_at, limit=limit, now=now)
            self._report(lines.model, change)

    def failed(self, line: PendingLine, failure: Failure, *, now: float, random: float) -> LineRecord:
        """Takes a failed attempt into account; returns the failures of the line."""
        self._note_end(line)
        record = line.record or LineRecord()
        self._failed(
            self._troubled(line),
            failure,
            record,
            started_at=line.started_at,
            is_overtaken=line.started_at < self._newest_answered_start,
            now=now,
            random=random,
        )
        line.keep(record)
        return record

    def _failed(
        self,
        lines: ModelLines,
        failure: Failure,
        record: LineRecord,
        *,
        started_at: float,
        is_overtaken: bool,
        now: float,
        random: float,
    ) -> None:
        is_reached = failure.kind is not FailureKind.UNREACHABLE
        if is_reached:  # an error is an answer: there is a connection
            self._answered(None, None, started_at=started_at, now=now)
        health = lines.health if is_reached else self._whole
        held = health.failed(
            failure,
            record,
            started_at=started_at,
            is_overtaken=is_overtaken,
            in_flight=lines.in_flight,
            now=now,
            random=random,
        )
        self._report(lines.model if is_reached else None, held)
        self.is_calm = False

    def _note_end(self, line: PendingLine) -> None:
        if line.model_lines is not None:
            line.model_lines.note_end(line.record)

    def _troubled(self, line: PendingLine) -> ModelLines:
        """The lines of the line's model, which has failed."""
        if line.model_lines is not None:
            return line.model_lines
        model = line.model
        lines = self.models.get(model)
        if lines is None:
            lines = self.models[model] = ModelLines(model)
            for other in self._in_flight:
                if other.model_lines is None and other.model == model:
                    lines.adopt(other)
        line.join(lines)
        return lines

    def take_arrived_probes(self, now: float, random: Callable[[], float]) -> None:
        """Takes the outcomes of cheap requests into account."""
        arrived, self._arrived_probes = self._arrived_probes, []
        for probe, outcome in arrived:
            self._probes.discard(probe)
            lines = probe.model_lines
            lines.note_end(None)
            error = probe.error_in(outcome)
            if error is None and isinstance(outcome, Answered):
                self.note_newest_answer(probe.started_at)
                self._answered(lines, None, started_at=probe.started_at, now=now)
                continue
            failure = failure_of(outcome, error)
            held = lines.health.held
            if failure.kind is FailureKind.REQUEST:
                # The model may refuse the cheap request alone: there is a connection, and no more is known.
                self._answered(None, None, started_at=probe.started_at, now=now)
                if held is None:
                    continue
                failure = Failure(FailureKind.FAULT, held.reason)
            self._failed(
                lines,
                failure,
                LineRecord(),
                started_at=probe.started_at,
                is_overtaken=False,
                now=now,
                random=random(),
            )

    def _report(self, model: str | None, change: Held | Resumed | None) -> None:
        if change is not None:
            self._on_change(self.runtime, model, change)

    # --- lines that are not sent -------------------------------------------------------------------

    def forget_waiting(self, segment: LeasedSegment) -> int:
        """Drops the waiting lines of a segment; returns how many."""
        kept = deque(line for line in self._routed if line.segment is not segment)
        dropped = len(self._routed) - len(kept)
        self._routed = kept
        return dropped + sum(lines.forget(segment) for lines in self.models.values())

    def abort(self, segment: LeasedSegment) -> int:
        """Ends the attempts in flight of a segment; returns how many."""
        ended = [line for line in self._in_flight if line.segment is segment]
        for line in ended:
            self._in_flight.remove(line)
            self._attempts.give_up(line)
            self._note_end(line)
        return len(ended)

    def settle_down(self, now: float) -> None:
        """Forgets the models with which nothing is wrong any more, and the pauses that no line waits for."""
        for model, lines in list(self.models.items()):
            if lines.is_empty or lines.is_over(now):
                del self.models[model]
                self._report(model, lines.health.forgotten(now))
                for line in self._in_flight:
                    if line.model_lines is lines:
                        line.join(None)
        if not self.models and not self._in_flight:
            self._report(None, self._whole.forgotten(now))
            self._whole = Health()
        self.is_calm = not self.models and self._whole.is_calm(now)
