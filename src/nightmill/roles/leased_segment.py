"""A segment that a worker has leased: its unsent lines, its lines in flight, and the part its answers go to.

The bookkeeping of one lease in one process. Every line of the segment is in exactly one state: unsent, in
flight (a line that waits to be sent again counts as in flight), settled, or given up. The attributes are read
by the worker and the dispatcher, and change only through the methods of `LeasedSegment`. When a line is sent
and what is written for it belong to `dispatcher`.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from nightmill.blobs import Blobs
from nightmill.core.answer_work import UNKNOWN_ANSWER_WORK, AnswerWork, work_of_answers
from nightmill.core.batch import Status, Tally
from nightmill.core.output_line import OutputLine
from nightmill.core.request_line import RequestLine, slice_line
from nightmill.core.schedule import OpenBatch, in_sending_order
from nightmill.core.segment import (
    INDEX_RECORD_BYTES,
    BatchTerms,
    IndexedLine,
    Lease,
    PinnedPart,
    SegmentReport,
    unpack_lines,
)
from nightmill.errors import LeaseLost
from nightmill.ids import BatchId, output_line_id
from nightmill.parts import PartWriter
from nightmill.roles.attempt_log import AttemptLog
from nightmill.roles.batch_cap import BatchCap


class LeasedSegment:
    """One lease at work.

    Args:
        lease: the lease.
        writer: the part of this lease's token.
        text: the bytes of the input file that span `lines`.
        offset: where `text` begins in the input file.
        lines: the lines that no earlier part answers.
        pinned: the parts of earlier tokens.
        earlier: the tally of the lines that `pinned` answers.
        confirmed_until: monotonic time until which the lease is certainly held by this worker.

    Attributes:
        batch: the batch, as the order between batches sees it.
        cap: the limit of the batch's own concurrency; None without one.
        line_work: work of an average line and its answer, by which batches share the upstream.
        unsent: lines that were never sent and may be.
        in_flight: lines that were taken and are neither settled nor given up.
        retries: attempts beyond the first of a line.
        abandoned: lines that were given up.
        attempts: records each attempt; None unless the batch asks for it.
        is_lost: whether the lease is known to be lost; then nothing is sent or written any more.
        stopped_by: the batch status that stops new lines; None while lines may be sent.
        stop_at: monotonic time at which a stopped segment's attempts in flight are ended.
    """

    __slots__ = (
        "_earlier",
        "_learned",
        "_line_id_start",
        "_lines",
        "_offset",
        "_prompt_work",
        "_text",
        "abandoned",
        "attempts",
        "batch",
        "batch_id",
        "cap",
        "confirmed_until",
        "in_flight",
        "is_lost",
        "lease",
        "line_work",
        "pinned",
        "retries",
        "stop_at",
        "stopped_by",
        "unsent",
        "writer",
    )

    def __init__(
        self,
        lease: Lease,
        *,
        writer: PartWriter,
        text: bytes,
        offset: int,
        lines: Sequence[IndexedLine],
        pinned: tuple[PinnedPart, ...],
        earlier: Tally,
        confirmed_until: float,
    ) -> None:
        self.lease = lease
        self.batch_id = lease.segment.batch_id
        self.batch = OpenBatch(
            self.batch_id,
            lease.project_id,
            lease.batch_sequence,
            lease.deadline,
            lease.batch_bytes,
            lease.priority,
        )
        self.cap: BatchCap | None = None
        self._prompt_work = max(1.0, len(text) / max(1, len(lines)))
        self._learned = (0, 0.0)
        self.line_work = self._prompt_work + UNKNOWN_ANSWER_WORK
        self.pinned = pinned
        self.confirmed_until = confirmed_until
        self.unsent = len(lines)
        self.in_flight = 0
        self.retries = 0
        self.abandoned = 0
        self.is_lost = False
        self.stopped_by: Status | None = None
        self.stop_at = 0.0
        self._earlier = earlier
        self.writer = writer
        self.attempts = AttemptLog(lease.segment, lease.token) if lease.records_attempts else None
        self._text = memoryview(text)
        self._offset = offset
        self._lines = iter(in_sending_order(lines))
        self._line_id_start = output_line_id(self.batch_id, 0)[:-8].encode("ascii")

    @property
    def key(self) -> tuple[str, int]:
        return (self.batch_id, self.lease.segment.number)

    @property
    def text_bytes(self) -> int:
        """Bytes of request lines in memory."""
        return self._text.nbytes

    @property
    def is_over(self) -> bool:
        """Whether nothing will be sent or settled any more.

        A line that was given up for lack of time keeps the segment until its batch ends. If the segment were
        released, its line would be sent again and again without a pause.
        """
        if self.in_flight:
            return False
        return self.is_lost or self.stopped_by is not None or not (self.unsent or self.abandoned)

    @property
    def parts(self) -> tuple[PinnedPart, ...]:
        """The parts of earlier tokens, and this lease's own part as far as it is durable."""
        own = self.writer.pinned
        return self.pinned if own is None else (*self.pinned, own)

    @property
    def report(self) -> SegmentReport:
        """The durable answers so far."""
        tally = self._earlier.plus(self.writer.durable_tally)
        number, token = self.lease.segment.number, self.lease.token
        return SegmentReport(self.batch_id, number, token, tally, self.retries)

    def learn(self, answer_work: AnswerWork) -> None:
        """Adds the answers that became durable since the last call to what is known about answers, and takes
        over what the next ones are expected to be."""
        tally, part = self.writer.durable_tally, self.writer.pinned
        # Failed lines report no tokens.
        answers = tally.completed if tally.usage.total_tokens else tally.answered
        work = work_of_answers(tally, 0 if part is None else part.length_bytes)
        model = (self.lease.endpoint, self.lease.model)
        learned_answers, learned_work = self._learned
        self._learned = (answers, work)
        answer_work.learn(
            self.batch_id, model, answers=answers - learned_answers, work=max(0.0, work - learned_work)
        )
        self.line_work = self._prompt_work + answer_work.expected(self.batch_id, model)

    def prioritize(self, priorities: Mapping[BatchId, int]) -> None:
        """Takes over the priority of the batch if it is known and has changed."""
        priority = priorities.get(self.batch_id, self.batch.priority)
        if priority != self.batch.priority:
            self.batch = replace(self.batch, priority=priority)

    def take(self) -> tuple[int, RequestLine]:
        """The ordinal and the text of the next unsent line, which is in flight from now on."""
        line = next(self._lines)
        self.unsent -= 1
        self.in_flight += 1
        if self.cap is not None:
            self.cap.take()
        start = line.offset - self._offset
        return line.ordinal, slice_line(self._text[start : start + line.length_bytes])

    def line_id(self, ordinal: int) -> bytes:
        """`output_line_id` of a line of this segment."""
        return b"%b%08x" % (self._line_id_start, ordinal)

    def note_retry(self) -> None:
        """A line is sent again."""
        self.retries += 1

    def settle(self, ordinal: int, row: OutputLine) -> None:
        """Ends a line in flight with its output line, which is written unless the lease is lost."""
        self.in_flight -= 1
        if self.cap is not None:
            self.cap.give_back()
        if self.is_lost:
            return
        try:
            self.writer.append(ordinal, row)
        except LeaseLost:
            self.is_lost = True

    def give_up(self, lines: int = 1) -> None:
        """Ends lines in flight without an output line."""
        self.in_flight -= lines
        self.abandoned += lines
        if self.cap is not None:
            self.cap.give_back(lines)

    def confirm(self, until: float) -> None:
        """The store has renewed the lease; it is held until monotonic time `until`."""
        self.confirmed_until = until

    def lose(self) -> None:
        """The lease is lost."""
        self.is_lost = True

    def stop(self, status: Status, *, at: float) -> None:
        """Sends no further line; attempts in flight may finish until monotonic time `at`.

        A segment that was stopped to be released, while its batch goes on, may be stopped earlier.
        """
        if self.stopped_by is None or (self.stopped_by is Status.IN_PROGRESS and at < self.stop_at):
            self.stopped_by, self.stop_at = status, at
            self.unsent = 0

    def release(self) -> None:
        """Sends no further line, so that the lease ends once the attempts in flight are answered. Another
        lease goes on with the other lines."""
        self.stop(Status.IN_PROGRESS, at=math.inf)

    def limit(self, cap: BatchCap | None) -> None:
        """Counts the lines at work in `cap` from now on; None ends the limit."""
        if cap is not None and cap is not self.cap:
            cap.take(self.in_flight)
        self.cap = cap

    def follow(self, terms: BatchTerms) -> bool:
        """Takes over what has changed of a batch that is in progress; returns whether something has.

        A lease without a limit is released when the batch gets one: other workers may have such leases too.
        """
        if terms.is_paused or (terms.concurrency is not None and self.cap is None):
            self.release()
        elif self.cap is not None:
            if terms.concurrency is None:
                self.limit(None)
            else:
                self.cap.change(terms.concurrency)
        if terms.deadline == self.lease.deadline:
            return False
        if terms.deadline > self.lease.deadline and self.abandoned:
            self.release()  # lines that were given up for lack of time now have time
        self.lease = replace(self.lease, deadline=terms.deadline)
        self.batch = replace(self.batch, deadline=terms.deadline)
        return True


async def read_segment(
    blobs: Blobs, lease: Lease, answered: Set[int]
) -> tuple[bytes, int, list[IndexedLine]]:
    """The text that spans the unanswered lines of a segment, its offset in the input, and those lines."""
    segment = lease.segment
    records = await blobs.read(
        lease.index_blob_key, segment.first * INDEX_RECORD_BYTES, segment.count * INDEX_RECORD_BYTES
    )
    lines = [line for line in unpack_lines(records) if line.ordinal not in answered]
    if not lines:
        return b"", 0, lines
    start = min(line.offset for line in lines)
    end = max(line.offset + line.length_bytes for line in lines)
    return await blobs.read(lease.input_blob_key, start, end - start), start, lines
