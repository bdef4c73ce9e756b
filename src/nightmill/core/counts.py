"""What one process has counted since its start, and how the counts of many processes become one. No I/O.

A process counts in plain numbers and stores the sums as JSON every few seconds. Sums only grow, so that those
of all processes can be added for `/metrics`. No count is kept for a batch, a key or a line.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from nightmill.core.batch import Usage

ATTEMPT_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the buckets for attempts, in seconds; the last bucket has none."""
PHASE_BOUNDS_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0)
"""As `ATTEMPT_BOUNDS_S`, for the phases of a batch."""
ANSWERED: Final = "answered"
"""The outcome of an attempt with a result; other outcomes are named after their `FailureKind`."""


class Histogram(msgspec.Struct):
    """Durations by bucket, for example 3 attempts of less than 0.1 s, with the sum of all in seconds.

    Args:
        buckets: counts, one more than there are bounds.
        sum_s: of all durations.
    """

    buckets: list[int]
    sum_s: float = 0.0

    def clear(self) -> None:
        """Starts again at zero."""
        self.buckets[:] = [0] * len(self.buckets)
        self.sum_s = 0.0

    def add(self, other: "Histogram") -> None:
        """Adds the counts of another. One with other bounds, of another version, is left out."""
        if len(other.buckets) == len(self.buckets):
            self.buckets[:] = [
                mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)
            ]
            self.sum_s += other.sum_s


def attempt_histogram() -> Histogram:
    """An empty histogram over `ATTEMPT_BOUNDS_S`."""
    return Histogram([0] * (len(ATTEMPT_BOUNDS_S) + 1))


def phase_histogram() -> Histogram:
    """An empty histogram over `PHASE_BOUNDS_S`."""
    return Histogram([0] * (len(PHASE_BOUNDS_S) + 1))


class UpstreamCounts(msgspec.Struct, omit_defaults=True):
    """What was counted of one upstream, for example 400 attempts that were answered and 3 that failed.

    Args:
        attempts: ended attempts by outcome: `ANSWERED`, or the kind of the failure.
        duration: from the start of an attempt to its end.
        first_byte: from the start of an attempt to the first byte of its answer.
        input_tokens, cached_tokens, output_tokens: of the answers that say how many they used.
        retries: attempts that failed and whose line is sent again.
        retry_wait_s: the pauses before those lines may be sent again.
        rate_waits: how often a rate limit delayed a line.
    """

    attempts: dict[str, int] = {}
    duration: Histogram = msgspec.field(default_factory=attempt_histogram)
    first_byte: Histogram = msgspec.field(default_factory=attempt_histogram)
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    retries: int = 0
    retry_wait_s: float = 0.0
    rate_waits: int = 0

    def note_attempt(self, outcome: str, duration_s: float) -> None:
        """Counts an attempt that has ended."""
        self.attempts[outcome] = self.attempts.get(outcome, 0) + 1
        self.duration.buckets[bisect_left(ATTEMPT_BOUNDS_S, duration_s)] += 1
        self.duration.sum_s += duration_s

    def note_first_byte(self, after_s: float) -> None:
        """Counts the first byte of an answer."""
        self.first_byte.buckets[bisect_left(ATTEMPT_BOUNDS_S, after_s)] += 1
        self.first_byte.sum_s += after_s

    def note_answers(self, durations_s: Sequence[float], usages: Iterable[Usage]) -> tuple[float, int]:
        """Counts answered attempts.

        Args:
            durations_s: of each attempt; at least one.
            usages: of the answers that say how many tokens they used.

        Returns:
            The sums of the durations and of the output tokens.
        """
        count, sum_s, buckets = len(durations_s), sum(durations_s), self.duration.buckets
        lowest = bisect_left(ATTEMPT_BOUNDS_S, min(durations_s))
        if lowest == bisect_left(ATTEMPT_BOUNDS_S, max(durations_s)):
            buckets[lowest] += count
        else:
            for duration_s in durations_s:
                buckets[bisect_left(ATTEMPT_BOUNDS_S, duration_s)] += 1
        inputs = cached = outputs = 0
        for usage in usages:
            inputs += usage.input_tokens
            cached += usage.cached_tokens
            outputs += usage.output_tokens
        self.duration.sum_s += sum_s
        self.attempts[ANSWERED] = self.attempts.get(ANSWERED, 0) + count
        self.input_tokens += inputs
        self.cached_tokens += cached
        self.output_tokens += outputs
        return sum_s, outputs

    def note_retry(self, pause_s: float) -> None:
        """Counts a line that is sent again after a pause."""
        self.retries += 1
        self.retry_wait_s += pause_s

    def note_rate_wait(self) -> None:
        """Counts a line that a rate limit delays."""
        self.rate_waits += 1

    def clear(self) -> None:
        """Starts again at zero."""
        self.attempts = {}
        self.duration.clear()
        self.first_byte.clear()
        self.input_tokens = self.cached_tokens = self.output_tokens = 0
        self.retries = self.rate_waits = 0
        self.retry_wait_s = 0.0

    def add(self, other: "UpstreamCounts") -> None:
        """Adds the counts of another process."""
        _add(self.attempts, other.attempts)
        self.duration.add(other.duration)
        self.first_byte.add(other.first_byte)
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.retries += other.retries
        self.retry_wait_s += other.retry_wait_s
        self.rate_waits += other.rate_waits


class ProcessCounts(msgspec.Struct, omit_defaults=True):
    """What one process, or a whole fleet, has counted.

    Args:
        upstreams: by the name of the upstream.
        intake: from the creation of a batch to the end of its validation.
        finalizing: from the last answer of a batch to its files.
        ended: ended batches by status.
        deliveries: attempts to deliver a webhook by result.
    """

    upstreams: dict[str, UpstreamCounts] = {}
    intake: Histogram = msgspec.field(default_factory=phase_histogram)
    finalizing: Histogram = msgspec.field(default_factory=phase_histogram)
    ended: dict[str, int] = {}
    deliveries: dict[str, int] = {}

    def of_upstream(self, name: str) -> UpstreamCounts:
        """The counts of an upstream, which are the same object at each call."""
        return self.upstreams.setdefault(name, UpstreamCounts())

    def note_intake(self, duration_s: float) -> None:
        """Counts a batch whose validation has ended."""
        _note_phase(self.intake, duration_s)

    def note_end(self, status: str, *, finalizing_s: float | None) -> None:
        """Counts a batch that has ended; `finalizing_s` is None if it never was finalizing."""
        _add(self.ended, {status: 1})
        if finalizing_s is not None:
            _note_phase(self.finalizing, finalizing_s)

    def note_delivery(self, result: str) -> None:
        """Counts an attempt to deliver a webhook."""
        _add(self.deliveries, {result: 1})

    def taken(self) -> "ProcessCounts":
        """A copy of the counts, which start again at zero. The objects of the upstreams stay the same."""
        copy = ProcessCounts()
        copy.add(self)
        for counts in self.upstreams.values():
            counts.clear()
        self.intake.clear()
        self.finalizing.clear()
        self.ended, self.deliveries = {}, {}
        return copy

    def add(self, other: "ProcessCounts") -> None:
        """Adds the counts of another process."""
        for name, counts in other.upstreams.items():
            self.of_upstream(name).add(counts)
        self.intake.add(other.intake)
        self.finalizing.add(other.finalizing)
        _add(self.ended, other.ended)
        _add(self.deliveries, other.deliveries)


def _add(counts: dict[str, int], others: dict[str, int]) -> None:
    for name, count in others.items():
        counts[name] = counts.get(name, 0) + count


def _note_phase(histogram: Histogram, duration_s: float) -> None:
    histogram.buckets[bisect_left(PHASE_BOUNDS_S, duration_s)] += 1
    histogram.sum_s += duration_s
