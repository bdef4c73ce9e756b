"""The lines of one upstream in one worker: in flight, arrived, and waiting for another attempt.

Every line that `start` or `retry` was given is in one place until the dispatcher takes the line out. What an
outcome means belongs to `core.failure` and `core.health`, when a line is sent to `dispatcher`.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Set
from dataclasses import replace

from nightmill.core.failure import Failure, FailureKind, failure_of
from nightmill.core.health import Health, Held, LineRecord, Resumed
from nightmill.core.outcome import Answered, Outcome
from nightmill.core.sent_body import with_model, with_priority
from nightmill.roles.cheap_request import CheapRequest, is_cheap_probe_due
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.model_lines import ModelLines, PendingLine
from nightmill.roles.slot_group import SlotGroup, SlotGroups
from nightmill.upstream import Attempts, attempts_of
from nightmill.upstream.registry import UpstreamRuntime


class UpstreamLines:
    """The lines in flight at one upstream, and those that wait there.

    Args:
        runtime: the upstream.
        on_arrival: called when the first outcome arrives after a call of `take_arrived`.
        on_change: called with a model, or None for the whole upstream, when lines are held or sent again.

    Attributes:
        runtime: the upstream; replaced when its setting changes.
        slots: its attempts by the slots that they share.
        models: the models with which something is wrong.
        is_calm: whether nothing is wrong with the upstream or any model; then lines may start without a look
            at their model.
    """

    __slots__ = (
        "_arrived",
        "_arrived_probes",
        "_attempts",
        "_changes_bodies",
        "_in_flight",
        "_newest_answered_start",
        "_on_arrival",
        "_on_change",
        "_probes",
        "_start",
        "_whole",
        "is_calm",
        "models",
        "runtime",
        "slots",
    )

    def __init__(
        self,
        runtime: UpstreamRuntime,
        *,
        on_arrival: Callable[[], None],
        on_change: Callable[[UpstreamRuntime, str | None, Held | Resumed], None],
    ) -> None:
        self.runtime = runtime
        self._changes_bodies = runtime.changes_bodies
        self.models: dict[str | None, ModelLines] = {}
        self.is_calm = True
        self._whole = Health()
        self._on_arrival = on_arrival
        self._on_change = on_change
        self._in_flight: set[PendingLine] = set()
        self._probes: set[CheapRequest] = set()
        self.slots = SlotGroups()
        self._newest_answered_start = -math.inf
        self._arrived: list[tuple[PendingLine, Outcome]] = []
        self._arrived_probes: list[tuple[CheapRequest, Outcome]] = []
        self._attempts: Attempts  # from `open` on

    def open(self, group: asyncio.TaskGroup) -> None:
        """Must be called before the first `start`. A client that needs a task per attempt runs it there."""
        self._attempts = attempts_of(self.runtime.client, group=group)
        self._start = self._attempts.start
        self.group_of(None)

    def change(self, runtime: UpstreamRuntime) -> None:
        """Takes over a change of the upstream's setting; the client is the same."""
        self.runtime = runtime
        self._changes_bodies = runtime.changes_bodies
        for group in self.groups:
            group.slots.use_share(runtime.load_share)

    def leave(self) -> None:
        """Starts no attempt any more: the upstream was taken away."""
        self.runtime = replace(self.runtime, may_start=False)

    def forget(self, now: float) -> None:
        """Ends every announced hold: the upstream is gone."""
        for model, lines in self.models.items():
            self._report(model, lines.health.forgotten(now))
        self._report(None, self._whole.forgotten(now))
        self.models.clear()

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
    def lines_in_flight(self) -> Set[PendingLine]:
        return self._in_flight

    @property
    def groups(self) -> list[SlotGroup]:
        """The attempts by their slots."""
        return self.slots.groups

    def group_of(self, model: str | None) -> SlotGroup:
        """The attempts that share slots with those of a model that lines name."""
        return self.slots.of(self.runtime, model)

    def waiting(self, group: SlotGroup) -> int:
        """Lines of a group that wait to be sent again."""
        return sum(lines.waiting for model, lines in self.models.items() if self.group_of(model) is group)

    def is_held(self, model: str | None, now: float) -> bool:
        """Whether no line of a model is sent, or only one at a time."""
        if not self.runtime.may_start:
            return True
        if self.is_calm:
            return False
        lines = self.models.get(model)
        return self._whole.is_paused(now) or (lines is not None and lines.health.is_paused(now))

    def takes_new(self, model: str | None, now: float) -> bool:
        """Whether a line of a model that was never sent may be sent now, if there is a slot."""
        if self.is_calm:
            return True
        if self._whole.wait_s(now, in_flight=self.in_flight) > 0:
            return False
        lines = self.models.get(model)
        return lines is None or lines.takes_new(now)

    def are_lines_refused(self, model: str | None) -> bool:
        """As `Health.lines_are_refused`."""
        lines = self.models.get(model)
        return lines is not None and lines.health.lines_are_refused

    def hurry(self, model: str | None, now: float) -> None:
        """Shortens the pause of a held model: a new batch has come."""
        lines = self.models.get(model)
        if lines is not None:
            lines.health.hurry(now)

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
        """Sends a line of which `PendingLine.start` was called. The caller notes the start in its group."""
        if not self.is_calm:
            self._note_start(line, timeout_s, now)
        self._in_flight.add(line)
        self._start(
            line,
            line.segment.lease.endpoint,
            self._sent_body(line) if self._changes_bodies else line.request.body,
            timeout_s=timeout_s,
            on_outcome=self._on_outcome,
        )

    def _sent_body(self, line: PendingLine) -> bytes:
        body, sent = line.request.body, self.runtime.sent_model(line.model)
        if sent is not None and sent != line.model:
            body = with_model(body, sent)
        return body if self.runtime.priority is None else with_priority(body, self.runtime.priority)

    def _note_start(self, line: PendingLine, timeout_s: float, now: float) -> None:
        self._whole.started(now)
        if line.model_lines is None and (lines := self.models.get(line.model)) is not None:
            line.join(lines)
        if line.model_lines is not None:
            line.model_lines.note_start(line.record, now=now, timeout_s=timeout_s)

    def _on_outcome(self, line: PendingLine, outcome: Outcome) -> None:
        if not self._arrived:
            self._on_arrival()
        self._arrived.append((line, outcome))

    def start_due_probes(self, now: float) -> int:
        """Sends the cheap requests that are due, as far as there are slots; returns how many."""
        started = 0
        for model, lines in self.models.items():
            group = self.group_of(model)
            if group.room(now) <= 0 or not is_cheap_probe_due(lines.health, whole=self._whole, now=now):
                continue
            cheap_request = lines.cheap_request(self.runtime.sent_model(model))
            if cheap_request is None:
                continue
            endpoint, request = cheap_request
            if self._whole.held is None and lines.health.held is None:
                lines.health.evidence_requested(now)
            self._whole.started(now)
            lines.note_start(None, now=now, timeout_s=0.0)
            started += 1
            group.note_starts(1)
            probe = CheapRequest(lines, group, endpoint, request, now)
            self._probes.add(probe)
            self._start(
                probe,
                endpoint,
                request.body,
                timeout_s=self.runtime.attempt_timeout_s,
                on_outcome=self._on_probe_outcome,
            )
        return started

    def _on_probe_outcome(self, probe: CheapRequest, outcome: Outcome) -> None:
        if probe in self._probes:
            self._arrived_probes.append((probe, outcome))
            self._on_arrival()

    def wait_s(self, now: float) -> float:
        """Seconds until a line may be sent; 0 for now, infinite while an outcome has to come first."""
        return 0.0 if self.is_calm else self._whole.wait_s(now, in_flight=self.in_flight)

    def next_waiting(
        self, now: float, *, beyond_share: bool, has_new: Callable[[str | None], bool]
    ) -> PendingLine | None:
        """Takes out a line that failed before and may be sent again now, None without any.

        Args:
            beyond_share: also a line although many of them are in flight.
            has_new: whether there are lines of a model that were never sent. They probe a held model first.
        """
        for model, lines in self.models.items():
            if lines.waiting:
                line = lines.next_due(
                    now, self.group_of(model), beyond_share=beyond_share, has_new=has_new(model)
                )
                if line is not None:
                    return line
        return None

    def retry(self, line: PendingLine, *, until: float) -> None:
        """Keeps a line that failed and may be sent again at monotonic time `until`.

        A line whose failure may be its own or the server's waits for the cheap request that shows which.
        """
        lines = self._troubled(line)
        evidence_at = lines.health.evidence_at
        if evidence_at is not None and line.record is not None and not line.record.is_explained:
            until = max(until, evidence_at)
        lines.add_retry(line, until=until)

    def take_over(self, line: PendingLine, *, until: float) -> None:
        """Keeps a line that failed at another upstream, as `retry` does."""
        line.come_back(self)
        self.retry(line, until=until)

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
        """The lines that ended, with their outcomes."""
        arrived = self._arrived
        if arrived:
            self._arrived = []
            self._in_flight.difference_update([line for line, _ in arrived])
            self.slots.note_ends([line.group for line, _ in arrived])
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
        limit = sum(group.slots.concurrency_limit for group in self.groups)
        self._report(None, self._whole.answered(None, started_at=started_at, limit=limit, now=now))
        if lines is not None:
            limit = self.group_of(lines.model).slots.concurrency_limit
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
        line.keep(record, failure.reason)
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
            lines = self.models[model] = ModelLines(model, line.segment.lease.endpoint)
            self.is_calm = False
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
            probe.group.note_end()
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

    def forget_waiting(self, segment: LeasedSegment) -> int:
        """Drops the waiting lines of a segment; returns how many."""
        return sum(lines.forget(segment) for lines in self.models.values())

    def take_waiting(self, model: str | None) -> list[PendingLine]:
        """Takes out every waiting line of a model, for other upstreams."""
        lines = self.models.get(model)
        return [] if lines is None else lines.take_all()

    def abort(self, segment: LeasedSegment) -> int:
        """Ends the attempts in flight of a segment; returns how many."""
        ended = [line for line in self._in_flight if line.segment is segment]
        for line in ended:
            self._in_flight.remove(line)
            self._attempts.give_up(line)
            line.group.note_end()
            self._note_end(line)
        return len(ended)

    def settle_down(self, now: float, *, may_come: Callable[[str | None], bool]) -> None:
        """Forgets the models with which nothing is wrong any more, and the pauses that no line waits for.

        Args:
            may_come: whether there are lines of a model that may come here.
        """
        for model, lines in list(self.models.items()):
            is_over = lines.is_over(now) and not self._whole.has_failed_last
            if is_over or (lines.is_empty and not may_come(model)):
                del self.models[model]
                self._report(model, lines.health.forgotten(now))
                for line in self._in_flight:
                    if line.model_lines is lines:
                        line.join(None)
        if not self.models and not self._in_flight:
            self._report(None, self._whole.forgotten(now))
            self._whole = Health()
        self.is_calm = not self.models and self._whole.is_calm(now)
