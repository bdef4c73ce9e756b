"""Fair shares of slots, with requests in any order."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.core.concurrency import Grant, OtherGrant, SlotRequest, Slots, decide, fair_shares
from nightmill.core.limit_rules import LimitRule
from nightmill.core.limit_state import Bounds
from nightmill.ids import WorkerId
from tests.slow import examples

TTL_S = 3.0
BEAT_S = 1.0


def names(count: int) -> list[WorkerId]:
    return [WorkerId(f"w{number}") for number in range(count)]


@given(concurrency_limit=st.integers(1, 200), wanted=st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_shares_use_all_slots_and_never_more(concurrency_limit, wanted):
    workers = names(len(wanted))
    shares = fair_shares(concurrency_limit, dict(zip(workers, wanted, strict=True)))
    assert sum(shares.values()) == concurrency_limit
    served = [min(shares[worker], want) for worker, want in zip(workers, wanted, strict=True)]
    short = [share for share, want in zip(served, wanted, strict=True) if share < want]
    # A worker that gets less than it wants gets at most one slot less than any other.
    assert all(share >= max(served) - 1 for share in short)


def test_a_worker_alone_gets_all_slots():
    request = SlotRequest(upstream="u", worker_id=WorkerId("w"), concurrency_limit=64, held=0, wanted=1)
    assert decide(request, [], turn=0) == Grant(64, 64)


def test_an_idle_worker_gets_nothing_and_leaves_all_to_the_others():
    idle = SlotRequest(upstream="u", worker_id=WorkerId("idle"), concurrency_limit=64, held=0, wanted=0)
    assert decide(idle, [OtherGrant(WorkerId("busy"), 10, 500)], turn=0) == Grant(0, 0)
    busy = SlotRequest(upstream="u", worker_id=WorkerId("busy"), concurrency_limit=64, held=10, wanted=64)
    assert decide(busy, [OtherGrant(WorkerId("idle"), 0, 0)], turn=0) == Grant(64, 64)


def test_a_worker_that_must_shrink_keeps_its_attempts_in_flight_and_the_other_waits():
    first, second = names(2)
    grown = SlotRequest(upstream="u", worker_id=second, concurrency_limit=10, held=0, wanted=10)
    assert decide(grown, [OtherGrant(first, 10, 10)], turn=0) == Grant(0, 5)
    shrinking = SlotRequest(upstream="u", worker_id=first, concurrency_limit=10, held=8, wanted=10)
    assert decide(shrinking, [OtherGrant(second, 0, 10)], turn=0) == Grant(8, 5)
    assert decide(grown, [OtherGrant(first, 8, 10)], turn=0) == Grant(2, 5)


@pytest.mark.parametrize(("worker_count", "every_s"), [(1, 0.75), (75, 0.75), (400, 4.0), (5_000, 10.0)])
def test_many_workers_request_so_seldom_that_the_row_keeps_up_and_no_grant_expires(worker_count, every_s):
    slots = Slots("u", concurrency_limit=10_000, ttl_s=30.0, ask_every_s=0.75)
    slots.take(Grant(2, 2, worker_count), asked_at=100.0)
    assert not slots.is_due(100.0 + every_s - 0.001, wanted=5)
    assert slots.is_due(100.0 + every_s, wanted=5)
    assert slots.limit(100.0 + every_s) == 2
    slots.take(Grant(0, 2, worker_count), asked_at=100.0)  # it lacks what it is to have
    assert slots.rebalance_in_s(100.0) == pytest.approx(max(0.25, min(0.01 * worker_count, 10.0)))


def test_a_grant_says_how_many_share():
    request = SlotRequest(upstream="u", worker_id=WorkerId("w"), concurrency_limit=64, held=0, wanted=1)
    others = [OtherGrant(WorkerId("busy"), 10, 500), OtherGrant(WorkerId("idle"), 0, 0)]
    assert decide(request, others, turn=0).worker_count == 2


@dataclass
class Mill:
    """Workers as `roles.worker` uses their windows, and a store that keeps grants as `store.grants` does."""

    concurrency_limit: int
    count: int
    now: float = 100.0
    grants: dict[WorkerId, tuple[int, int, float]] = field(default_factory=dict)
    windows: dict[WorkerId, Slots] = field(default_factory=dict)
    flying: dict[WorkerId, int] = field(default_factory=dict)
    asked: dict[WorkerId, tuple[SlotRequest, float]] = field(default_factory=dict)
    granted: dict[WorkerId, tuple[Grant, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for worker in names(self.count):
            self.start(worker)

    def start(self, worker: WorkerId) -> None:
        self.windows[worker] = Slots(
            "u", concurrency_limit=self.concurrency_limit, ttl_s=TTL_S, ask_every_s=BEAT_S
        )
        self.flying[worker] = 0
        self.asked.pop(worker, None)
        self.granted.pop(worker, None)

    def ask(self, worker: WorkerId, wanted: int) -> None:
        if worker in self.asked or worker in self.granted:
            return
        flying = self.flying[worker]
        wanted = max(wanted, flying)
        self.asked[worker] = (self.windows[worker].request(worker, in_flight=flying, wanted=wanted), self.now)

    def decide(self, worker: WorkerId) -> None:
        if worker not in self.asked:
            return
        request, asked_at = self.asked.pop(worker)
        live = {name: row for name, row in self.grants.items() if row[2] > self.now}
        others = [OtherGrant(name, row[0], row[1]) for name, row in sorted(live.items()) if name != worker]
        made = decide(request, others, turn=int(self.now / TTL_S))
        self.grants = live | {worker: (made.slots, request.wanted, self.now + TTL_S)}
        self.granted[worker] = (made, asked_at)

    def take(self, worker: WorkerId) -> None:
        if worker in self.granted:
            made, asked_at = self.granted.pop(worker)
            self.windows[worker].take(made, asked_at=asked_at)

    def send(self, worker: WorkerId, many: int) -> None:
        for _ in range(many):
            if self.flying[worker] < self.windows[worker].limit(self.now):
                self.flying[worker] += 1

    def answer(self, worker: WorkerId, many: int) -> None:
        self.flying[worker] = max(0, self.flying[worker] - many)


BOUNDS = Bounds(start=16, most=64)


def adaptive_slots(*, limit: int = 16, slots: int = 16, rule: str = LimitRule.START) -> Slots:
    """A worker's side of an adaptive limit, with a grant that was asked for at 10.0, and waiting lines."""
    made = Slots("u", concurrency_limit=0, ttl_s=TTL_S, ask_every_s=0.75, bounds=BOUNDS)
    made.request(WorkerId("w"), in_flight=0, wanted=64, now=10.0)
    made.take(Grant(slots, slots, 1, limit, rule, "raise it"), asked_at=10.0)
    return made


def test_an_adaptive_limit_is_the_one_of_the_last_grant():
    assert Slots("u", concurrency_limit=0, ttl_s=1.0, ask_every_s=1.0, bounds=BOUNDS).concurrency_limit == 16
    slots = adaptive_slots(limit=32, slots=20, rule=LimitRule.GROW)
    assert (slots.concurrency_limit, slots.rule, slots.advice) == (32, "grow", "raise it")
    assert slots.share == 20 / 32


def test_a_worker_reports_what_it_has_seen_once():
    slots = adaptive_slots()
    slots.note_answers(3, tokens=90, busy_s=4.5)
    slots.note_timed_out(10.5)
    request = slots.request(WorkerId("w"), in_flight=5, wanted=99, now=12.0)
    assert request.observed is not None
    assert (request.wanted, request.in_flight, request.bounds) == (64, 5, BOUNDS)
    seen = request.observed
    assert (seen.answered, seen.tokens, seen.busy_s, seen.timed_out) == (3, 90, 4.5, 1)
    assert (seen.lacking, seen.over_s) == (True, 2.0)
    again = slots.request(WorkerId("w"), in_flight=5, wanted=5, now=13.0).observed
    assert again is not None
    assert (again.answered, again.timed_out, again.lacking, again.over_s) == (0, 0, False, 1.0)


def test_the_time_without_work_is_in_no_report():
    slots = adaptive_slots()
    slots.request(WorkerId("w"), in_flight=0, wanted=0, now=12.0)
    slots.take(Grant(0, 0), asked_at=12.0)
    assert slots.is_due(12.0, wanted=9)
    observed = slots.request(WorkerId("w"), in_flight=0, wanted=9, now=500.0).observed
    assert observed is not None
    assert observed.over_s == 0.0


def test_a_refused_slot_is_not_used_again_before_the_next_grant():
    slots = adaptive_slots(rule=LimitRule.PLATEAU)
    for _ in range(12):
        slots.note_refused(10.1)
    assert slots.limit(10.2) == 4
    assert not slots.is_due(10.04, wanted=64)
    assert slots.rebalance_in_s(10.01) == pytest.approx(0.04)
    assert slots.is_due(10.06, wanted=64)
    request = slots.request(WorkerId("w"), in_flight=3, wanted=64, now=10.06)
    assert request.held == 4
    assert request.observed is not None
    assert request.observed.refused == 12


def test_attempts_from_before_a_cut_are_no_evidence_for_another():
    slots = adaptive_slots()
    slots.request(WorkerId("w"), in_flight=4, wanted=64, now=20.0)
    slots.take(Grant(4, 4, 1, 4, LimitRule.REFUSED), asked_at=20.0)
    slots.note_refused(19.0)
    slots.note_timed_out(19.0)
    slots.note_refused(20.5)
    observed = slots.request(WorkerId("w"), in_flight=2, wanted=64, now=21.0).observed
    assert observed is not None
    assert (observed.refused, observed.timed_out) == (1, 0)


def test_a_fixed_limit_ignores_refusals():
    slots = Slots("u", concurrency_limit=8, ttl_s=TTL_S, ask_every_s=BEAT_S)
    slots.take(Grant(8, 8), asked_at=10.0)
    slots.note_refused(10.0)
    slots.note_answers(100, tokens=0, busy_s=1.0)
    assert slots.limit(10.1) == 8
    assert not slots.is_due(10.5, wanted=20)
    assert slots.rebalance_in_s(10.5) == float("inf")
    assert slots.request(WorkerId("w"), in_flight=0, wanted=20).observed is None


def test_a_worker_requests_early_while_the_limit_is_searched_for_and_answers_have_arrived():
    slots = adaptive_slots(rule=LimitRule.GROW)
    assert not slots.is_due(10.1, wanted=64)
    assert slots.rebalance_in_s(10.1) == pytest.approx(0.05)
    slots.note_answers(8, tokens=0, busy_s=8.0)
    assert not slots.is_due(10.04, wanted=64)
    assert slots.is_due(10.06, wanted=64)
    assert slots.rebalance_in_s(10.1) == 0.0


@pytest.mark.parametrize("rule", [LimitRule.PLATEAU, LimitRule.INPUT_BOUND, LimitRule.CEILING])
def test_a_worker_requests_as_with_a_fixed_limit_while_the_limit_is_steady(rule):
    slots = adaptive_slots(rule=rule)
    slots.note_answers(500, tokens=0, busy_s=8.0)
    assert not slots.is_due(10.7, wanted=64)
    assert slots.is_due(10.75, wanted=64)
    assert slots.rebalance_in_s(10.1) == float("inf")


def test_after_a_cut_attempts_in_flight_keep_their_slots_and_none_is_used_again():
    request = SlotRequest(
        upstream="u",
        worker_id=WorkerId("w"),
        concurrency_limit=8,
        held=6,
        wanted=9,
        in_flight=5,
        bounds=BOUNDS,
    )
    assert decide(request, [OtherGrant(WorkerId("other"), 7, 9)], turn=0) == Grant(5, 1)
    assert decide(request, [OtherGrant(WorkerId("other"), 9, 9)], turn=0) == Grant(5, 0)
    assert decide(request, [OtherGrant(WorkerId("other"), 2, 9)], turn=0) == Grant(6, 4)


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_no_grant_adds_to_a_limit_that_is_already_used_while_it_shrinks_and_grows(data):
    workers = names(data.draw(st.integers(1, 4), label="workers"))
    rows: dict[WorkerId, tuple[Grant, int]] = {}
    flying = dict.fromkeys(workers, 0)
    for _ in range(data.draw(st.integers(1, 60), label="steps")):
        worker = data.draw(st.sampled_from(workers))
        match data.draw(st.sampled_from(["ask", "send", "answer"])):
            case "ask":
                limit, wanted = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 15))
                mine = rows.get(worker, (Grant(0, 0), 0))[0]
                request = SlotRequest(
                    upstream="u",
                    worker_id=worker,
                    concurrency_limit=limit,
                    held=max(flying[worker], min(mine.slots, mine.target)),
                    wanted=wanted,
                    in_flight=flying[worker],
                    bounds=Bounds(most=12),
                )
                others = [
                    OtherGrant(name, row[0].slots, row[1]) for name, row in rows.items() if name != worker
                ]
                grant = decide(request, others, turn=0)
                taken = sum(other.slots for other in others)
                assert min(grant.slots, grant.target) <= max(0, limit - taken)
                assert grant.slots >= flying[worker]
                assert grant.slots + taken <= limit or grant.slots == flying[worker]
                rows[worker] = (grant, wanted)
            case "send":
                grant = rows.get(worker, (Grant(0, 0), 0))[0]
                flying[worker] = max(flying[worker], min(grant.slots, grant.target))
            case _:
                flying[worker] = max(0, flying[worker] - data.draw(st.integers(1, 12)))
        # The rows cover all attempts in flight, so a limit that has been granted is never exceeded.
        assert all(flying[name] <= row[0].slots for name, row in rows.items())


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_attempts_in_flight_never_exceed_the_limit_in_any_order_of_requests(data):
    mill = Mill(data.draw(st.integers(1, 12), label="limit"), data.draw(st.integers(1, 4), label="workers"))
    workers = st.sampled_from(names(mill.count))
    for _ in range(data.draw(st.integers(1, 60), label="steps")):
        worker = data.draw(workers)
        match data.draw(st.sampled_from(["ask", "decide", "take", "send", "answer", "wait", "lose", "die"])):
            case "ask":
                mill.ask(worker, data.draw(st.integers(0, 15)))
            case "decide":
                mill.decide(worker)
            case "take":
                mill.take(worker)
            case "send":
                mill.send(worker, data.draw(st.integers(1, 12)))
            case "answer":
                mill.answer(worker, data.draw(st.integers(1, 12)))
            case "wait":
                # What is in flight when a grant lapses is beyond anybody's reach; here it is answered first.
                seconds = data.draw(st.sampled_from([0.1, 1.0, 2.9]))
                for name, (_, _, until) in mill.grants.items():
                    if until <= mill.now + seconds:
                        mill.flying[name] = 0
                mill.now += seconds
            case "lose":  # the store did it, or did not; the worker never gets the answer
                mill.asked.pop(worker, None)
                mill.granted.pop(worker, None)
            case _:
                mill.start(worker)
        assert sum(mill.flying.values()) <= mill.concurrency_limit
        live = [slots for slots, _, until in mill.grants.values() if until > mill.now]
        assert sum(live) <= mill.concurrency_limit


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_workers_that_all_have_work_reach_equal_shares_and_use_all_slots(count):
    mill = Mill(64, count)
    for _ in range(6):
        for worker in names(count):
            mill.ask(worker, 500)
            mill.decide(worker)
            mill.take(worker)
            mill.send(worker, 64)
            mill.answer(worker, 64)
        mill.now += 0.25
    shares = [mill.windows[worker].limit(mill.now) for worker in names(count)]
    assert sum(shares) == 64
    assert max(shares) - min(shares) <= 1


def test_with_more_workers_than_slots_each_gets_its_turn():
    mill = Mill(1, 3)
    had = set()
    for _ in range(60):
        for worker in names(3):
            mill.answer(worker, 1)
            mill.ask(worker, 5)
            mill.decide(worker)
            mill.take(worker)
            mill.send(worker, 1)
            had |= {name for name, flying in mill.flying.items() if flying}
        mill.now += 0.25
    assert had == set(names(3))


def test_a_grant_expires_by_the_clock_of_the_worker():
    slots = Slots("u", concurrency_limit=8, ttl_s=TTL_S, ask_every_s=BEAT_S)
    slots.request(WorkerId("w"), in_flight=0, wanted=8)
    slots.take(Grant(8, 8), asked_at=10.0)
    assert slots.limit(10.0 + TTL_S - 0.001) == 8
    assert slots.limit(10.0 + TTL_S) == 0
    assert slots.is_due(10.0 + TTL_S, wanted=8)


def test_a_worker_that_wants_and_has_nothing_never_requests():
    slots = Slots("u", concurrency_limit=8, ttl_s=TTL_S, ask_every_s=BEAT_S)
    assert not slots.is_due(1e9, wanted=0)
    assert slots.is_due(0.0, wanted=1)


def test_a_worker_gets_the_rates_in_the_proportion_of_its_slots():
    slots = Slots("upstream", concurrency_limit=8, ttl_s=TTL_S, ask_every_s=BEAT_S)
    assert (slots.concurrency_limit, slots.share) == (8, 0.0)
    slots.take(Grant(slots=4, target=2, worker_count=3), asked_at=0.0)
    assert slots.share == 2 / 8


def test_a_worker_that_gives_back_its_grant_keeps_the_slots_of_attempts_in_flight():
    leaving = SlotRequest(upstream="u", worker_id=WorkerId("w"), concurrency_limit=8, held=3, wanted=0)
    assert decide(leaving, [], turn=0) == Grant(3, 0)


def test_slots_that_no_worker_wants_are_shared_among_none():
    assert fair_shares(8, {}) == {}
