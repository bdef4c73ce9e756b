"""The order between batches: turns of leased segments, and which batches a worker prefers."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.answer_work import UNKNOWN_ANSWER_WORK
from nightmill.core.batch import HIGHEST_PRIORITY, LOWEST_PRIORITY
from nightmill.core.schedule import (
    BATCH_ORDER,
    LEAST_TURN_SHARE,
    NEAR_DEADLINE_S,
    NEAR_DEADLINE_SHARE,
    PARALLEL_BATCHES,
    TURN_WORK,
    Candidates,
    FairQueue,
    OpenBatch,
    in_sending_order,
    preferred_batches,
    spread,
)
from nightmill.core.segment import IndexedLine
from nightmill.ids import BatchId, ProjectId

_FAR = 1e9


@dataclass
class Lines:
    """A leased segment without text."""

    batch: OpenBatch
    unsent: int
    line_work: float = UNKNOWN_ANSWER_WORK + 500.0


def batch(
    number: int,
    *,
    project: str = "a",
    deadline: float = _FAR,
    input_bytes: int = 1_000,
    priority: int = 0,
) -> OpenBatch:
    return OpenBatch(BatchId(f"batch_{number}"), ProjectId(project), number, deadline, input_bytes, priority)


def send(queue: FairQueue[Lines], *, turns: int = 1_000_000, now: float = 0.0) -> list[tuple[BatchId, int]]:
    """Sends turns until the queue is empty; returns the batch and the lines of each."""
    sent: list[tuple[BatchId, int]] = []
    while turns and (turn := queue.next(now)) is not None:
        segment, lines = turn
        assert 0 < lines <= segment.unsent
        segment.unsent -= lines
        queue.charge(segment, lines)
        if not segment.unsent:
            queue.remove(segment)
        sent.append((segment.batch.id, lines))
        turns -= 1
    return sent


def work_of(sent: list[tuple[BatchId, int]], segments: list[Lines]) -> Counter[BatchId]:
    line_work = {segment.batch.id: segment.line_work for segment in segments}
    work: Counter[BatchId] = Counter()
    for batch_id, lines in sent:
        work[batch_id] += math.ceil(lines * line_work[batch_id])
    return work


def test_without_a_preference_the_oldest_batch_is_leased_first():
    assert BATCH_ORDER == ("sequence",)


def test_a_batch_that_is_alone_sends_a_whole_segment_in_a_turn():
    queue: FairQueue[Lines] = FairQueue()
    queue.add(Lines(batch(1), 500))
    queue.add(Lines(batch(1), 300))
    assert send(queue) == [("batch_1", 500), ("batch_1", 300)]
    assert queue.next(0.0) is None


def test_a_new_batch_has_the_next_turn():
    queue: FairQueue[Lines] = FairQueue()
    for number in range(20):
        queue.add(Lines(batch(number), 10_000))
    send(queue, turns=55)
    queue.add(Lines(batch(99), 10))
    sent = send(queue, turns=2)
    assert ("batch_99", 10) in sent


def test_new_batches_that_keep_arriving_do_not_delay_an_old_one():
    queue: FairQueue[Lines] = FairQueue()
    old = Lines(batch(0), 10_000)
    queue.add(old)
    sent: list[tuple[BatchId, int]] = []
    for number in range(1, 200):
        queue.add(Lines(batch(2 * number), 10))
        queue.add(Lines(batch(2 * number + 1), 10))
        sent += send(queue, turns=2)
    assert sum(batch_id == "batch_0" for batch_id, _ in sent) >= len(sent) // 2 - 1


def test_leaving_and_joining_again_gains_nothing():
    queue: FairQueue[Lines] = FairQueue()
    large_line = TURN_WORK * 40.0
    queue.add(Lines(batch(0), 1_000, line_work=TURN_WORK / 8))
    queue.add(Lines(batch(1), 1, line_work=large_line))
    turns = send(queue, turns=3)
    assert ("batch_1", 1) in turns
    queue.add(Lines(batch(1), 1, line_work=large_line))
    assert {batch_id for batch_id, _ in send(queue, turns=35)} == {"batch_0"}


def test_segments_that_are_stopped_leave_the_queue_and_the_others_keep_their_order():
    queue: FairQueue[Lines] = FairQueue()
    for unsent in (1, 2, 3):
        queue.add(Lines(batch(1), unsent))
    queue.add(Lines(batch(2), 2))
    queue.keep(lambda segment: segment.unsent != 2)
    assert [segment.unsent for segment in queue] == [1, 3]
    assert queue.batches == [batch(1)]


loads = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.sampled_from([1.0, 50.0, 1_000.0, 300_000.0])),
    min_size=2,
    max_size=12,
)
weights = st.fixed_dictionaries({}, optional={name: st.sampled_from([0.25, 1.0, 3.0]) for name in "abc"})


def segments_of(load: list[tuple[str, int, float]], *, unsent: int) -> list[Lines]:
    return [
        Lines(batch(number, project=project), unsent * factor, line_work=UNKNOWN_ANSWER_WORK + size)
        for number, (project, factor, size) in enumerate(load)
    ]


@given(loads, weights, st.integers(2, 400))
def test_projects_share_by_weight_and_the_batches_of_a_project_equally(load, weights, turns):
    """Of two that wait all the time, neither gets more than a turn and a line ahead of its share."""
    queue: FairQueue[Lines] = FairQueue(weights)
    segments = segments_of(load, unsent=1_000_000)
    for segment in segments:
        queue.add(segment)
    work = work_of(send(queue, turns=turns), segments)
    longest = max(segment.line_work for segment in segments)
    by_project: dict[str, list[OpenBatch]] = {}
    for segment in segments:
        by_project.setdefault(segment.batch.project_id, []).append(segment.batch)
    bound = 3 * TURN_WORK + 2 * longest
    for batches in by_project.values():
        served = [work[it.id] for it in batches]
        assert max(served) - min(served) <= bound
    shares = {
        project: sum(work[it.id] for it in batches) / weights.get(project, 1.0)
        for project, batches in by_project.items()
    }
    least_weight = min(weights.get(project, 1.0) for project in shares)
    assert max(shares.values()) - min(shares.values()) <= bound / min(1.0, least_weight)


@given(loads, weights, st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 30)), max_size=60))
def test_no_batch_starves_whatever_arrives_and_leaves(load, weights, arrivals):
    """Each waiting batch is served again after bounded work, although others keep arriving."""
    queue: FairQueue[Lines] = FairQueue(weights)
    segments = segments_of(load, unsent=1_000_000)
    for segment in segments:
        queue.add(segment)
    sent: list[tuple[BatchId, int]] = []
    for number, (project, unsent) in enumerate(arrivals, start=1_000):
        small = Lines(batch(number, project=project), unsent)
        segments.append(small)
        queue.add(small)
        sent += send(queue, turns=2)
    longest = max(segment.line_work for segment in segments)
    rounds = 1 + longest / (TURN_WORK * min([1.0, *weights.values()]))
    waiting = len(queue.batches)
    needed = 4 * rounds * (waiting + 4) * (1 + sum(weights.values()) + 4) / min([1.0, *weights.values()])
    late = send(queue, turns=math.ceil(needed))
    assert {segment.batch.id for segment in segments[: len(load)]} <= {batch_id for batch_id, _ in late}


# --- priorities ---

priorities = st.integers(LOWEST_PRIORITY, HIGHEST_PRIORITY)


@given(st.lists(priorities, min_size=2, max_size=6), st.sampled_from([10.0, 1_500.0, 100_000.0]))
def test_each_step_of_priority_doubles_the_share_down_to_the_least(given, line_work):
    queue: FairQueue[Lines] = FairQueue()
    segments = [
        Lines(batch(number, priority=priority), 1 << 40, line_work=line_work)
        for number, priority in enumerate(given)
    ]
    for segment in segments:
        queue.add(segment)
    shares = [max(LEAST_TURN_SHARE, 2.0 ** (priority - max(given))) for priority in given]
    lines = Counter[str]()
    for batch_id, count in send(queue, turns=4_000):
        lines[batch_id] += count
    rounds = [lines[f"batch_{number}"] * line_work / TURN_WORK / share for number, share in enumerate(shares)]
    # The share is exact but for the line with which a turn ends, and the first turn.
    for mine, share in zip(rounds, shares, strict=True):
        assert abs(mine - max(rounds)) <= 3 + 2 * line_work / TURN_WORK / min(share, *shares)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), priorities), min_size=2, max_size=8),
    st.lists(st.tuples(st.sampled_from("abc"), priorities, st.integers(1, 30)), max_size=60),
    st.lists(st.tuples(st.integers(0, 7), priorities), max_size=10),
)
def test_no_batch_starves_at_any_priority(load, arrivals, changes):
    """Whatever arrives, leaves and changes its priority, each batch is sent again after bounded work."""
    queue: FairQueue[Lines] = FairQueue()
    segments = [
        Lines(batch(number, project=project, priority=priority), 1 << 40)
        for number, (project, priority) in enumerate(load)
    ]
    for segment in segments:
        queue.add(segment)
    for number, (project, priority, unsent) in enumerate(arrivals, start=1_000):
        queue.add(Lines(batch(number, project=project, priority=priority), unsent))
        send(queue, turns=2)
        for place, changed in changes[number % 3 :: 3]:
            segment = segments[place % len(segments)]
            segment.batch = replace(segment.batch, priority=changed)
            queue.update_batches()
    send(queue, turns=100 * len(queue.batches))  # what arrived is done
    late = Counter(batch_id for batch_id, _ in send(queue, turns=_turns_of_rounds(segments, rounds=40)))
    assert {segment.batch.id for segment in segments} <= set(late)


def _turns_of_rounds(segments: list[Lines], *, rounds: int) -> int:
    """Turns of some rounds; a batch with the least share sends a line in about 12 rounds."""
    projects = len({segment.batch.project_id for segment in segments})
    return rounds * projects * len(segments) * 40


@given(st.lists(priorities, min_size=1, max_size=6), priorities, st.integers(1, 400))
def test_ten_lines_begin_in_the_next_turn_behind_a_million_of_any_priority(given, mine, turns):
    queue: FairQueue[Lines] = FairQueue()
    for number, priority in enumerate(given):
        queue.add(Lines(batch(number, priority=priority), 1_000_000))
    send(queue, turns=2 * len(given) + turns)  # each had its first turn
    queue.add(Lines(batch(99, priority=mine), 10))
    begun = send(queue, turns=2)
    assert "batch_99" in {batch_id for batch_id, _ in begun}
    assert all(lines * (UNKNOWN_ANSWER_WORK + 500.0) < 2 * TURN_WORK for _, lines in begun)


def test_a_changed_priority_holds_from_the_next_turn_on():
    queue: FairQueue[Lines] = FairQueue()
    low, high = Lines(batch(1), 1_000_000), Lines(batch(2), 1_000_000)
    for segment in (low, high):
        queue.add(segment)
    work = work_of(send(queue, turns=200), [low, high])
    assert 0.9 < work["batch_1"] / work["batch_2"] < 1.1
    high.batch = replace(high.batch, priority=3)
    queue.update_batches()
    work = work_of(send(queue, turns=2_000), [low, high])
    assert 7 < work["batch_2"] / work["batch_1"] < 9
    assert queue.batches == [low.batch, high.batch]


def test_priorities_of_one_project_cost_another_project_nothing():
    queue: FairQueue[Lines] = FairQueue()
    segments = [
        Lines(batch(1, priority=10), 1_000_000),
        Lines(batch(2, project="b", priority=-10), 1_000_000),
    ]
    for segment in segments:
        queue.add(segment)
    work = work_of(send(queue, turns=400), segments)
    assert 0.9 < work["batch_1"] / work["batch_2"] < 1.1


def test_a_batch_with_a_near_deadline_keeps_its_place_at_the_lowest_priority():
    queue: FairQueue[Lines] = FairQueue()
    queue.add(Lines(batch(1, deadline=10, priority=-10), 100))
    queue.add(Lines(batch(2, priority=10), 100))
    queue.update_batches()
    assert send(queue, turns=1)[0][0] == "batch_1"


def test_a_deadline_that_moves_takes_a_batch_out_of_the_near_ones_or_among_them():
    queue: FairQueue[Lines] = FairQueue()
    first, second = Lines(batch(1, deadline=10), 1_000_000), Lines(batch(2), 1_000_000)
    for segment in (first, second):
        queue.add(segment)
    assert send(queue, turns=1)[0][0] == "batch_1"
    work = work_of(send(queue, turns=400), [first, second])
    assert work["batch_1"] / work["batch_2"] > 2
    first.batch = replace(first.batch, deadline=second.batch.deadline)
    queue.update_batches()
    work = work_of(send(queue, turns=400), [first, second])
    assert 0.8 < work["batch_1"] / work["batch_2"] < 1.2
    second.batch = replace(second.batch, deadline=10)
    queue.update_batches()
    work = work_of(send(queue, turns=400), [first, second])
    assert work["batch_2"] / work["batch_1"] > 2


def test_leaving_and_joining_at_a_lower_priority_gains_nothing():
    queue: FairQueue[Lines] = FairQueue()
    queue.add(Lines(batch(0), 1 << 30))
    small = Lines(batch(1), 20)
    queue.add(small)
    send(queue, turns=3)
    assert small.unsent == 0
    queue.add(Lines(batch(1, priority=-8), 40))
    lines = Counter[str]()
    for batch_id, count in send(queue, turns=30):
        lines[batch_id] += count
    assert 1 <= lines["batch_1"] <= 4


# --- the work of answers ---


def test_batches_share_by_work_that_is_learned_while_they_are_sent():
    queue: FairQueue[Lines] = FairQueue()
    long, short = Lines(batch(1), 1_000_000), Lines(batch(2), 1_000_000)
    for segment in (long, short):
        queue.add(segment)
    lines = Counter[str]()
    send(queue, turns=10)
    long.line_work, short.line_work = 8_000.0, 1_000.0
    for batch_id, count in send(queue, turns=1_000):
        lines[batch_id] += count
    assert 7.5 < lines["batch_2"] / lines["batch_1"] < 8.5


# --- lines of a segment ---


def indexed(*sizes: int) -> list[IndexedLine]:
    return [IndexedLine(0, size, ordinal) for ordinal, size in enumerate(sizes)]


def ordinals(lines: Sequence[IndexedLine]) -> list[int]:
    return [line.ordinal for line in lines]


def test_much_longer_lines_are_sent_first_and_the_others_in_the_order_of_the_input():
    lines = indexed(100, 120, 90, 5_000, 110, 100, 399, 9_000, *[100] * 16)
    assert ordinals(in_sending_order(lines))[:6] == [7, 3, 0, 1, 2, 4]
    assert ordinals(in_sending_order(lines))[6:] == [5, 6, *range(8, 24)]


@given(st.lists(st.integers(1, 100_000), max_size=200))
def test_each_line_is_sent_once_and_at_most_one_in_eight_out_of_order(sizes):
    lines = indexed(*sizes)
    order = ordinals(in_sending_order(lines))
    assert sorted(order) == list(range(len(sizes)))
    moved = next((place for place in range(len(order)) if order[place:] == sorted(order[place:])), 0)
    assert moved <= max(1, len(sizes) // 8)
    if sizes and max(sizes) > 4 * sorted(sizes)[len(sizes) // 2]:
        assert sizes[order[0]] == max(sizes)


@given(st.lists(st.integers(100, 400), max_size=50))
def test_lines_of_about_one_length_keep_the_order_of_the_input(sizes):
    assert ordinals(in_sending_order(indexed(*sizes))) == list(range(len(sizes)))


# --- deadlines ---


@given(st.lists(st.integers(0, int(NEAR_DEADLINE_S)), min_size=1, max_size=5), st.integers(1, 5))
def test_near_deadlines_are_first_and_leave_the_others_their_share(near, far):
    queue: FairQueue[Lines] = FairQueue()
    for number, deadline in enumerate(near):
        queue.add(Lines(batch(number, deadline=deadline), 1_000_000))
    for number in range(far):
        queue.add(Lines(batch(100 + number), 1_000_000))
    sent = send(queue, turns=200)
    nearest = f"batch_{near.index(min(near))}"
    lines = Counter[str]()
    for batch_id, count in sent:
        lines["near" if batch_id == nearest else "far" if int(batch_id[6:]) >= 100 else "other"] += count
    assert sent[0][0] == nearest
    assert lines["other"] == 0
    assert abs(lines["near"] / lines.total() - NEAR_DEADLINE_SHARE) < 0.1


def test_a_batch_is_first_once_its_deadline_is_near():
    queue: FairQueue[Lines] = FairQueue()
    queue.add(Lines(batch(1), 1_000_000))
    queue.add(Lines(batch(2, deadline=5_000), 1_000_000))
    queue.add(Lines(batch(3, deadline=4_000), 5))
    early = Counter(batch_id for batch_id, _ in send(queue, turns=100))
    late = Counter(batch_id for batch_id, _ in send(queue, turns=100, now=5_000 - NEAR_DEADLINE_S))
    assert abs(early["batch_1"] - early["batch_2"]) <= 3
    assert late["batch_2"] > 2 * late["batch_1"] > 0


def test_near_deadlines_get_everything_when_nothing_else_waits():
    queue: FairQueue[Lines] = FairQueue()
    queue.add(Lines(batch(1, deadline=20), 200))
    queue.add(Lines(batch(2, deadline=10), 100))
    sent = send(queue)
    assert [batch_id for batch_id, _ in sent] == sorted((batch_id for batch_id, _ in sent), reverse=True)


# --- which batches are leased ---


def offer(by_project: list[list[OpenBatch]], near: Sequence[OpenBatch] = ()) -> Candidates:
    return Candidates(near, by_project, ProjectId(""))


def preferred(candidates: Candidates, held: list[OpenBatch], *, room_bytes: int = 1 << 30, most: int = 8):
    return preferred_batches(candidates, held, room_bytes=room_bytes, segment_bytes=1 << 20, most=most)


def test_near_deadlines_come_first_then_the_projects_in_turn():
    near = [batch(7, project="c", deadline=20), batch(8, project="c", deadline=10)]
    of_a, of_b = [batch(1), batch(2, input_bytes=1)], [batch(3, project="b")]
    chosen = preferred(offer([of_a, of_b], near), [])
    assert [it.sequence for it in chosen] == [8, 7, 1, 3, 2]
    assert preferred(offer([of_a, of_b], near), [], most=3) == chosen[:3]


def test_a_small_batch_passes_large_ones_and_equal_ones_wait():
    held = [batch(number, input_bytes=6_000) for number in range(PARALLEL_BATCHES + 1)]
    small, equal = batch(50, input_bytes=10), batch(51, input_bytes=6_000)
    assert preferred(offer([[equal, small]]), held) == [small]
    assert preferred(offer([[equal]]), held[1:PARALLEL_BATCHES]) == [equal]


def test_the_oldest_batch_of_a_project_is_held_whatever_its_size():
    held = [batch(number, input_bytes=10) for number in range(10, 30)]
    oldest = batch(1, input_bytes=1 << 40)
    assert preferred(offer([[oldest, batch(40)]]), held) == [oldest]


def test_the_last_room_is_for_small_batches():
    large, small = batch(1, input_bytes=1 << 30), batch(2, input_bytes=100)
    assert preferred(offer([[large, small]]), [], room_bytes=(2 << 20) - 1) == [small]
    assert preferred(offer([[large, small]]), [], room_bytes=2 << 20) == [large, small]
    assert preferred(offer([[large, small]]), [], room_bytes=0) == []


@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=300))
def test_a_worker_holds_a_bounded_number_of_batches_of_a_project(sizes):
    """Although it looks again and again, and none of the held ones is finished."""
    waiting = [batch(number, input_bytes=size) for number, size in enumerate(sizes)]
    held: list[OpenBatch] = []
    while waiting:
        oldest = min(waiting, key=lambda it: it.sequence)
        smallest = min(waiting, key=lambda it: it.input_bytes)
        chosen = preferred(offer([[oldest, smallest]]), held)
        if not chosen:
            break
        held += chosen
        waiting = [it for it in waiting if it not in chosen]
    assert len(held) <= PARALLEL_BATCHES + 1 + 41
    assert len({it.id for it in held}) == len(held)


@given(st.lists(st.tuples(priorities, st.sampled_from([1_000, 1_001])), min_size=1, max_size=300))
def test_a_worker_holds_a_few_batches_of_each_priority(load):
    waiting = [
        batch(number, priority=priority, input_bytes=size) for number, (priority, size) in enumerate(load)
    ]
    held: list[OpenBatch] = []
    while waiting:
        highest = max(waiting, key=lambda it: (it.priority, -it.sequence))
        oldest = min(waiting, key=lambda it: it.sequence)
        chosen = preferred(offer([[highest, oldest]]), held)
        if not chosen:
            break
        held += chosen
        waiting = [it for it in waiting if it not in chosen]
    assert max(Counter(it.priority for it in held).values()) <= PARALLEL_BATCHES + 1
    best = max(priority for priority, _ in load)
    assert sum(it.priority == best for it in held) >= min(
        PARALLEL_BATCHES, sum(priority == best for priority, _ in load)
    )


def test_a_higher_priority_passes_held_batches_and_a_lower_one_does_not():
    held = [batch(number) for number in range(PARALLEL_BATCHES)]
    higher, lower = batch(50, priority=1), batch(51, priority=-1)
    assert preferred(offer([[higher, lower]]), held) == [higher]


def test_segments_are_spread_evenly_and_each_batch_gets_one():
    one, two, three = batch(1), batch(2), batch(3)
    assert spread(0, []) == []
    assert spread(0, [one, two]) == [(one, 1), (two, 1)]
    assert spread(8, [one, two, three]) == [(one, 3), (two, 3), (three, 2)]


def test_a_batch_with_the_nearest_deadline_joins_however_many_are_held():
    held = [batch(number, deadline=5_000.0) for number in range(PARALLEL_BATCHES + 1)]
    near, later = batch(10, deadline=100.0), batch(11, deadline=6_000.0)
    candidates = Candidates(near=[near, later], by_project=[], next_after=ProjectId(""))
    chosen = preferred_batches(candidates, held, room_bytes=1 << 20, segment_bytes=1 << 10, most=8)
    assert chosen == [near]


def test_lines_of_a_batch_that_left_the_queue_cost_no_turn():
    queue: FairQueue[Lines] = FairQueue()
    gone, stays = Lines(batch(1), 4), Lines(batch(2), 4)
    for segment in (gone, stays):
        queue.add(segment)
    queue.remove(gone)
    queue.charge(gone, 4)
    queue.charge(stays, 0)
    assert send(queue) == [(stays.batch.id, 4)]


def test_of_two_batches_that_come_near_their_deadline_the_nearer_is_done_first():
    queue: FairQueue[Lines] = FairQueue()
    first, second = Lines(batch(1, deadline=1_000.0), 40), Lines(batch(2, deadline=2_000.0), 40)
    far = Lines(batch(3), 40)
    for segment in (first, second, far):
        queue.add(segment)
    assert send(queue, turns=1, now=1_000.0 - NEAR_DEADLINE_S)[0][0] == first.batch.id
    sent = send(queue, now=2_000.0 - NEAR_DEADLINE_S)
    last_turn_of = {batch_id: turn for turn, (batch_id, _) in enumerate(sent)}
    assert last_turn_of[first.batch.id] < last_turn_of[second.batch.id]


def test_the_work_of_batches_that_left_is_forgotten_after_some_thousand_others():
    queue: FairQueue[Lines] = FairQueue()
    stays = Lines(batch(0), 1_000_000)
    queue.add(stays)
    for number in range(1, 5_000):
        segment = Lines(batch(number), 1)
        queue.add(segment)
        turn = queue.next(0.0)
        assert turn is not None
        queue.charge(turn[0], turn[1])
        queue.remove(segment)
    assert queue.batches == [stays.batch]
