"""Counts of a process, and their sums over processes."""

import msgspec

from nightmill.core.batch import Usage
from nightmill.core.counts import ATTEMPT_BOUNDS_S, Histogram, ProcessCounts, UpstreamCounts


def some_counts() -> ProcessCounts:
    counts = ProcessCounts()
    counts.of_upstream("a").note_answers([0.05, 0.06], [Usage(5, 1, 2, 0, 7)])
    counts.of_upstream("a").note_attempt("fault", 1_000.0)
    counts.of_upstream("a").note_first_byte(0.2)
    counts.of_upstream("a").note_retry(2.0)
    counts.of_upstream("a").note_rate_wait()
    counts.note_intake(0.5)
    counts.note_end("failed", finalizing_s=None)
    counts.note_end("completed", finalizing_s=20_000.0)
    counts.note_delivery("failed")
    return counts


def test_a_duration_is_in_the_bucket_whose_bound_it_does_not_exceed():
    upstream = some_counts().of_upstream("a")
    assert upstream.duration.buckets == [1, 1, *[0] * (len(ATTEMPT_BOUNDS_S) - 2), 1]
    assert upstream.duration.sum_s == 1_000.11
    assert upstream.attempts == {"answered": 2, "fault": 1}


def test_answers_that_took_about_as_long_are_in_one_bucket_with_all_their_tokens():
    upstream = UpstreamCounts()
    sums = upstream.note_answers([0.2, 0.11, 0.25], [Usage(5, 1, 2, 0, 7), Usage(1, 0, 4, 0, 5)])
    assert sums == (0.56, 6)
    assert upstream.duration.buckets == [0, 0, 3, *[0] * (len(ATTEMPT_BOUNDS_S) - 2)]
    assert (upstream.input_tokens, upstream.cached_tokens, upstream.output_tokens) == (6, 1, 6)
    assert upstream.attempts == {"answered": 3}


def test_the_counts_of_two_processes_add_up():
    total = some_counts()
    total.add(some_counts())
    upstream = total.upstreams["a"]
    assert upstream.attempts == {"answered": 4, "fault": 2}
    assert (upstream.input_tokens, upstream.cached_tokens, upstream.output_tokens) == (10, 2, 4)
    assert (upstream.retries, upstream.retry_wait_s, upstream.rate_waits) == (2, 4.0, 2)
    assert sum(upstream.first_byte.buckets) == 2
    assert total.intake.buckets[0] == 2
    assert total.finalizing.buckets[-1] == 2
    assert total.ended == {"failed": 2, "completed": 2}
    assert total.deliveries == {"failed": 2}


def test_taken_counts_start_again_at_zero_in_the_same_objects():
    counts = some_counts()
    upstream, buckets = counts.of_upstream("a"), counts.of_upstream("a").duration.buckets
    assert counts.taken() == some_counts()
    assert counts.of_upstream("a") is upstream
    assert upstream.duration.buckets is buckets
    assert upstream == UpstreamCounts()
    upstream.note_attempt("fault", 0.0)
    counts.add(some_counts())
    assert counts.of_upstream("a").attempts == {"answered": 2, "fault": 2}


def test_counts_are_the_same_after_a_trip_through_json():
    document = msgspec.json.encode(some_counts())
    assert msgspec.json.decode(document, type=ProcessCounts) == some_counts()


def test_a_histogram_of_another_version_with_other_bounds_is_left_out():
    counts = some_counts()
    counts.intake.add(Histogram([7, 7], 3.0))
    assert counts.intake == some_counts().intake
