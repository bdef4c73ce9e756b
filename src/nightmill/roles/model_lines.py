"""The lines of one model of an upstream while something is wrong with that model, in one worker.

While all is well there is no `ModelLines`: lines go straight from their segment to the upstream. From a
model's first failure until all is well again, its lines that can't be sent wait here, so that they hold up no
line of another model. What the failures mean belongs to `core.health`.
"""

import heapq
import math
from collections import deque
from itertools import count
from typing import Final

import msgspec

from nightmill.core.health import Health, LineRecord
from nightmill.core.probe import probe_body
from nightmill.core.request_line import RequestLine
from nightmill.ids import BatchId
from nightmill.roles.leased_segment import LeasedSegment

MOST_WAITING: Final = 4_096
"""Lines of a model that may wait before segments with further lines of the model are set aside."""
MOST_WAITING_BYTES: Final = 64 << 20
MOST_FRESH: Final = 500
"""As `MOST_WAITING`, for lines that were never sent."""
_OVERDUE_S: Final = 30.0
_NO_ID: Final = b'""'


class PendingLine(msgspec.Struct, eq=False, gc=False):
    """A line that was taken from its segment and is not settled.

    Args:
        started_at: monotonic time at which the latest attempt started, or at which the line was taken.
        charged_tokens: the estimate that the rate limit was charged for the attempt in flight.
        record: the failures of the line, None without any.
        model_lines: of the line's model, None while nothing was wrong with the model.
    """

    segment: LeasedSegment
    ordinal: int
    request: RequestLine
    started_at: float
    charged_tokens: float = 0.0
    record: LineRecord | None = None
    model_lines: "ModelLines | None" = None

    @property
    def model(self) -> str | None:
        """The model that the line names. It is read from the line only if the batch has several models."""
        return self.segment.lease.model or self.request.model

    def start(self, now: float) -> None:
        """Records the start of an attempt."""
        self.started_at = now

    def join(self, model_lines: "ModelLines | None") -> None:
        """Records the lines of the line's model, None when nothing is wrong with the model any more."""
        self.model_lines = model_lines

    def keep(self, record: LineRecord) -> None:
        """Records the failures of the line."""
        self.record = record

    def charge(self, tokens: float) -> None:
        """Records what the rate limit was charged for the attempt that starts."""
        self.charged_tokens = tokens


class ModelLines:
    """The lines of a model that wait, and the number of its attempts in flight.

    Args:
        model: the model that the lines name, None for lines that name none.

    Attributes:
        health: what the outcomes say about the model.
        in_flight: attempts of the model in flight, cheap requests included.
        retrying: those of lines that failed before.
    """

    __slots__ = (
        "_batches",
        "_fresh",
        "_retries",
        "_sequence",
        "_waiting_bytes",
        "health",
        "in_flight",
        "model",
        "retrying",
    )

    def __init__(self, model: str | None) -> None:
        self.model = model
        self.health = Health()
        self.in_flight = 0
        self.retrying = 0
        self._fresh: deque[PendingLine] = deque()
        self._retries: list[tuple[float, int, PendingLine]] = []
        self._sequence = count()
        self._waiting_bytes = 0
        self._batches: set[BatchId] = set()

    @property
    def waiting(self) -> int:
        """Lines that wait."""
        return len(self._fresh) + len(self._retries)

    @property
    def is_empty(self) -> bool:
        """Whether no line of the model waits or is in flight here."""
        return not (self.in_flight or self._fresh or self._retries)

    @property
    def is_full(self) -> bool:
        """Whether so many lines wait that segments with further lines of the model are set aside."""
        return len(self._fresh) >= MOST_FRESH or self._is_crowded

    @property
    def _is_crowded(self) -> bool:
        """Whether so many lines wait that a line that failed is sent again before its pause is over."""
        return len(self._retries) >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES

    def is_over(self, now: float) -> bool:
        """Whether nothing is wrong with the model any more."""
        return not (self.waiting or self.retrying) and self.health.is_calm(now)

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

    def add_fresh(self, line: PendingLine, now: float) -> None:
        """Keeps a line that was never sent. The first line of a batch probes a held model soon."""
        if line.segment.batch_id not in self._batches:
            self._batches.add(line.segment.batch_id)
            self.health.hurry(now)
        self._fresh.append(line)
        self._waiting_bytes += len(line.request.body)

    def add_retry(self, line: PendingLine, *, until: float) -> None:
        """Keeps a line that may be sent again at monotonic time `until`."""
        heapq.heappush(self._retries, (until, next(self._sequence), line))
        self._waiting_bytes += len(line.request.body)

    def may_retry(self, now: float, *, share: int) -> bool:
        """Whether a line that failed before may take a slot that another line could use.

        Args:
            share: attempts of such lines in flight beside other lines. With a share of 0 a line that has
                waited for long takes a slot nevertheless.
        """
        if self.retrying < share:
            return True
        return not self.retrying and bool(self._retries) and self._retries[0][0] + _OVERDUE_S <= now

    def next_fresh(self, now: float) -> PendingLine | None:
        """Takes out the first line that was never sent; None while its lease is not confirmed."""
        if not self._fresh or self._fresh[0].segment.confirmed_until < now:
            return None
        line = self._fresh.popleft()
        self._waiting_bytes -= len(line.request.body)
        return line

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

    def forget(self, segment: LeasedSegment) -> int:
        """Drops the waiting lines of a segment; returns how many."""
        waiting = self.waiting
        self._fresh = deque(line for line in self._fresh if line.segment is not segment)
        self._retries = [entry for entry in self._retries if entry[2].segment is not segment]
        heapq.heapify(self._retries)
        self._waiting_bytes = sum(len(line.request.body) for line in self._fresh)
        self._waiting_bytes += sum(len(entry[2].request.body) for entry in self._retries)
        return waiting - self.waiting

    def cheap_request(self) -> tuple[str, RequestLine] | None:
        """The endpoint and the request of a cheap probe, None where there is none."""
        line = self._fresh[0] if self._fresh else self._retries[0][2] if self._retries else None
        if line is None:
            return None
        endpoint = line.segment.lease.endpoint
        body = probe_body(endpoint, self.model)
        return None if body is None else (endpoint, RequestLine(_NO_ID, body))

    def next_wake_in_s(self, now: float) -> float:
        """Seconds until time alone allows a line to be sent; infinite when time is not the cause."""
        wait_s = self.health.wait_s(now, in_flight=self.in_flight)
        wakes = [wait_s] if wait_s > 0 else [entry[0] - now for entry in self._retries[:1]]
        evidence_at = self.health.evidence_at
        if evidence_at is not None:
            wakes.append(evidence_at - now)
        return min((wake_s for wake_s in wakes if wake_s > 0), default=math.inf)
