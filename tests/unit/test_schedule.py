"""The order in which a worker sends the segments it has leased."""

from nightmill.core.schedule import BATCH_ORDER, SegmentQueue


def test_the_oldest_batch_is_first():
    assert BATCH_ORDER == ("sequence",)


def test_the_segment_that_was_leased_first_is_sent_first():
    queue: SegmentQueue[str] = SegmentQueue()
    for name in ("a", "b", "c"):
        queue.add(name)
    assert [queue.next(), queue.next(), queue.next(), queue.next()] == ["a", "b", "c", None]


def test_segments_that_are_stopped_leave_the_queue_and_the_others_keep_their_order():
    queue: SegmentQueue[str] = SegmentQueue()
    for name in ("a", "b", "c"):
        queue.add(name)
    queue.keep(lambda name: name != "b")
    assert list(queue) == ["a", "c"]
