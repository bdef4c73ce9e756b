"""The lines of one model of an upstream that failed before, while something is wrong with that model.

While all is well there is no `ModelLines`: lines go straight from their queue to the upstream. From a model's
first failure until all is well again, its lines that failed wait here for another attempt. What the failures
mean belongs to `core.health`.
"""

import heapq
import math
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec

from nightmill.core.health import Health, LineRecord
from nightmill.core.probe import probe_body
from nightmill.core.request_line import RequestLine
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.slot_group import NO_GROUP, SlotGroup

if TYPE_CHECKING:
    from nightmill.roles.upstream_lines import UpstreamLines

MOST_WAITING: Final = 4_096
"""Lines of a model that may wait before a line is sent again although its pause is not over."""
MOST_WAITING_BYTES: Final = 64 << 20
_RETRY_SHARE: Final = 4
"""One in so many attempts in flight may be a line that failed before, while other lines wait."""
_OVERDUE_S: Final = 30.0
_NO_ID: Final = b'""'


class PendingLine(msgspec.Struct, eq=False, gc=False):
    """A line that was taken from its segment and is not settled.

    Args:
        model: the model that the line names, None if it names none.
        started_at: monotonic time at which the latest attempt started.
        group: whose slot that attempt has.
        charged_tokens: the estimate that the rate limit was charged for the attempt in flight.
        record: the failures of the line, None without any.
        reason: why the latest attempt failed, None without a failure.
        model_lines: of the line's model, None while nothing was wrong with the model.
        failed_at: the upstreams that the line has left, each with what was recorded there.
    """

    segment: LeasedSegment
    ordinal: int
    request: RequestLine
    model: str | None
    started_at: float = 0.0
    group: SlotGroup = NO_GROUP
    charged_tokens: float = 0.0
    record: LineRecord | None = None
    reason: str | None = None
    model_lines: "ModelLines | None" = None
    failed_at: "dict[UpstreamLines, tuple[ModelLines | None, LineRecord | None]] | None" = None

    def start(self, now: float, group: SlotGroup) -> None:
        """Records the start of an attempt."""
        self.started_at, self.group = now, group

    def join(self, model_lines: "ModelLines | None") -> None:
        """Records the lines of the line's model, None when nothing is wrong with the model any more."""
        self.model_lines = model_lines

    def keep(self, record: LineRecord, reason: str) -> None:
        """Records the failures of the line, and the reason of the latest."""
        self.record, self.reason = record, reason

    def charge(self, tokens: float) -> None:
        """Records what the rate limit was charged for the attempt that starts."""
        self.charged_tokens = tokens

    def leave(self, upstream: "UpstreamLines") -> None:
        """Records that the line failed at an upstream and goes to another."""
        self.failed_at = {**(self.failed_at or {}), upstream: (self.model_lines, self.record)}
        self.model_lines = None
        if self.record is not None:
            self.record = msgspec.structs.replace(self.record, has_moved=True)

    def come_back(self, upstream: "UpstreamLines") -> None:
        """Records that the line goes to an upstream. If it failed there before, its next failure there is
        compared with the lines that were answered there meanwhile."""
        if self.failed_at is None or upstream not in self.failed_at or self.record is None:
            return
        lines, record = self.failed_at[upstream]
        if record is None or lines is not upstream.models.get(self.model):
            record = LineRecord()
        self.record = msgspec.structs.replace(
            self.record,
            has_moved=False,
            answered_before=record.answered_before,
            first_failures_before=record.first_failures_before,
        )


class ModelLines:
    """The lines of a model that wait to be sent again, and the number of its attempts in flight.

    Args:
        model: the model that the lines name, None for lines that name none.
        endpoint: of a line of the model, for cheap requests.

    Attributes:
        health: what the outcomes say about the model.
        in_flight: attempts of the model in flight, cheap requests included.
        retrying: those of lines that failed before.
        endpoints: of all lines that have waited.
    """

    __slots__ = (
        "_endpoint",
        "_retries",
        "_sequence",
        "_waiting_bytes",
        "endpoints",
        "health",
        "in_flight",
        "model",
        "retrying",
    )

    def __init__(self, model: str | None, endpoint: str) -> None:
        self.model = model
        self.health = Health()
        self.in_flight = 0
        self.retrying = 0
        self.endpoints: set[str] = set()
        self._endpoint = endpoint
        self._retries: list[tuple[float, int, PendingLine]] = []
        self._sequence = count()
        self._waiting_bytes = 0

    @property
    def waiting(self) -> int:
        """Lines that wait."""
        return len(self._retries)

    @property
    def waiting_lines(self) -> Iterator[tuple[float, PendingLine]]:
        """The lines that wait, each with the monotonic time at which it may be sent again."""
        return ((until, line) for until, _, line in self._retries)

    @property
    def is_empty(self) -> bool:
        """Whether no line of the model waits or is in flight here."""
        return not (self.in_flight or self._retries)

    @property
    def _is_crowded(self) -> bool:
        """Whether so many lines wait that a line that failed is sent again before its pause is over."""
        return len(self._retries) >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES

    def is_over(self, now: float) -> bool:
        """Whether nothing is wrong with the model any more.

        Lines that failed may be at other upstreams. Only an answer shows that the model is well again.
        """
        if self._retries or self.retrying or self.health.has_failed_last:
            return False
        return self.health.is_calm(now)

    def takes_new(self, now: float) -> bool:
        """Whether a line that was never sent may be sent now; it is a probe while the model is held."""
        health = self.health
        if health.wait_s(now, in_flight=self.in_flight):
            return False
        return not (health.held is not None and health.is_cheap_probe_next and self.has_cheap_request)

    def note_start(self, record: LineRecord | None, *, now: float, timeout_s: float) -> None:
        """Notes that an attempt starts; `record` as in `Health.started`."""
        self.in_flight += 1
        self.retrying += record is not None
        self.health.started(now, record=record, timeout_s=timeout_s)

    def note_end(self, record: LineRecord | None) -> None:
        """Notes that an attempt has ended; `record` as at its start."""
        self.in_flight -= 1
        self.retrying -= record is not None

    def adopt(self, line: PendingLine) -> None:
        """Takes over a line that was sent while nothing was wrong with the model, and is in flight."""
        line.join(self)
        self.in_flight += 1
        self.retrying += line.record is not None

    def add_retry(self, line: PendingLine, *, until: float) -> None:
        """Keeps a line that may be sent again at monotonic time `until`."""
        heapq.heappush(self._retries, (until, next(self._sequence), line))
        self._waiting_bytes += len(line.request.body)
        self.endpoints.add(line.segment.lease.endpoint)

    def may_retry(self, now: float, *, share: int) -> bool:
        """Whether a line that failed before may take a slot that another line could use.

        Args:
            share: attempts of such lines in flight beside other lines. With a share of 0 a line that has
                waited for long takes a slot nevertheless.
        """
        if self.retrying < share:
            return True
        return not self.retrying and bool(self._retries) and self._retries[0][0] + _OVERDUE_S <= now

    def next_due(
        self, now: float, group: SlotGroup, *, beyond_share: bool, has_new: bool
    ) -> PendingLine | None:
        """Takes out a line that may be sent again now, None without any.

        Args:
            group: the slots of the model.
            beyond_share: also a line although many of them are in flight.
            has_new: whether there are lines that were never sent. They probe a held model first.
        """
        health, room = self.health, group.room(now)
        if room <= 0 or health.wait_s(now, in_flight=self.in_flight):
            return None
        if health.held is not None and (has_new or (health.is_cheap_probe_next and self.has_cheap_request)):
            return None
        limit = room + group.in_flight
        # The last slot is for the cheap request that shows whether a slow line or a queue is the cause.
        is_beyond = beyond_share and (limit == 1 or room > 1)
        share = min(limit, health.cap or limit) // _RETRY_SHARE
        return self.next_retry(now) if is_beyond or self.may_retry(now, share=share) else None

    def next_retry(self, now: float) -> PendingLine | None:
        """Takes out the first line that may be sent again.

        Pauses do not matter for a probe of a held model, and when too many lines wait. A line whose lease is
        not confirmed goes back to the end.
        """
        if not self._retries:
            return None
        if self._retries[0][0] > now and self.health.held is None and not self._is_crowded:
            return None
        line = heapq.heappop(self._retries)[2]
        self._waiting_bytes -= len(line.request.body)
        if line.segment.confirmed_until < now:
            self.add_retry(line, until=now + 1.0)
            return None
        return line

    def take_all(self) -> list[PendingLine]:
        """Takes out every waiting line."""
        lines = [entry[2] for entry in self._retries]
        self._retries.clear()
        self._waiting_bytes = 0
        return lines

    def forget(self, segment: LeasedSegment) -> int:
        """Drops the waiting lines of a segment; returns how many."""
        waiting = len(self._retries)
        self._retries = [entry for entry in self._retries if entry[2].segment is not segment]
        heapq.heapify(self._retries)
        self._waiting_bytes = sum(len(entry[2].request.body) for entry in self._retries)
        return waiting - len(self._retries)

    @property
    def has_cheap_request(self) -> bool:
        return probe_body(self._endpoint, None) is not None

    def cheap_request(self, sent_model: str | None) -> tuple[str, RequestLine] | None:
        """The endpoint and the request of a cheap probe, None where there is none.

        Args:
            sent_model: the model as the upstream knows it.
        """
        body = probe_body(self._endpoint, sent_model)
        return None if body is None else (self._endpoint, RequestLine(_NO_ID, body))

    def next_wake_in_s(self, now: float) -> float:
        """Seconds until time alone allows a line to be sent; infinite when time is not the cause."""
        wait_s = self.health.wait_s(now, in_flight=self.in_flight)
        wakes = [wait_s] if wait_s > 0 else [entry[0] - now for entry in self._retries[:1]]
        evidence_at = self.health.evidence_at
        if evidence_at is not None:
            wakes.append(evidence_at - now)
        return min((wake_s for wake_s in wakes if wake_s > 0), default=math.inf)
