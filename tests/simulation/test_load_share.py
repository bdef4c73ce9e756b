"""The share of an upstream: fixed and adaptive limits, over several workers, with and without quiet hours."""

from collections.abc import Callable

import pytest

from nightmill.core.load_share import LoadShare
from tests.simulation.limit_servers import Refusing, Saturating, run

WORKERS = pytest.mark.parametrize("workers", [1, 4])
BORDER_S = 3.0  # until every worker has renewed its grant and answers of before have come
DAY, NIGHT = LoadShare(0.5), LoadShare(1.0)


def quiet_until(end: float) -> Callable[[float], LoadShare]:
    return lambda now: NIGHT if now < end else DAY


def test_the_limit_is_rounded_down_and_at_least_one():
    assert [LoadShare(0.3).of(limit) for limit in (1, 3, 7, 10, 1_024)] == [1, 1, 2, 3, 307]
    assert LoadShare(0.7).of(10) == 7


@WORKERS
def test_a_fixed_concurrency_is_shared_over_all_workers_and_whole_in_quiet_hours(workers):
    def share(now: float) -> LoadShare:
        return NIGHT if 40 <= now < 80 else DAY

    went = run(Saturating(lambda _: 100), 2_400, limit=21, workers=workers, share=share)
    assert went.most_in_flight(0, 40) == 10
    assert went.most_in_flight(40 + BORDER_S, 80) == 21
    assert went.most_in_flight(80 + BORDER_S, 110) == 10


@WORKERS
def test_a_share_of_a_small_concurrency_lets_one_attempt_through(workers):
    went = run(Saturating(lambda _: 100), 30, limit=2, workers=workers, share=lambda _: LoadShare(0.1))
    assert went.most_in_flight(0, 1e9) == 1


@WORKERS
def test_a_limit_that_was_found_in_quiet_hours_is_shared_afterwards_and_comes_back(workers):
    def share(now: float) -> LoadShare:
        return DAY if 120 <= now < 240 else NIGHT

    went = run(Saturating(lambda _: 64), 19_000, workers=workers, share=share, with_gauges=True)
    by_night = [limit for at, limit, _ in went.limits if 60 < at < 120]
    assert min(by_night) >= 56
    by_day = {(limit, rule) for at, limit, rule in went.limits if 120 + BORDER_S < at < 240}
    assert len(by_day) == 1
    ((limit, rule),) = by_day
    assert rule == "hold: share"
    assert 28 <= limit <= 40
    assert went.most_in_flight(120 + BORDER_S, 240) <= limit
    assert min(limit for at, limit, _ in went.limits if at > 240 + BORDER_S) >= 56


def test_refusals_cut_while_the_share_applies_and_the_limit_grows_back_to_the_share():
    server = Refusing(lambda now: 8 if 120 <= now < 150 else 64)
    went = run(server, 9_000, share=quiet_until(60.0))
    shared = [limit for at, limit, _ in went.limits if 60 + BORDER_S < at < 120]
    assert 24 <= min(shared) == max(shared) <= 32
    assert min(limit for at, limit, rule in went.limits if 120 < at < 150) <= 12
    assert {limit for at, limit, _ in went.limits if at > 220} == {shared[0]}


def test_without_quiet_hours_the_limit_is_found_first_and_again_each_hour():
    went = run(
        Saturating(lambda now: 64 if now < 1_000 else 128, line_s=4.0),
        50_000,
        share=lambda _: LoadShare(0.5, may_search=True),
        with_gauges=True,
    )
    ended = next(at for at, _, rule in went.limits if rule == "hold: share")
    assert ended < 300
    first = {limit for at, limit, _ in went.limits if ended < at < 3_600}
    assert len(first) == 1
    assert 28 <= first.pop() <= 40
    searches = [at for at, _, rule in went.limits if at > ended and rule != "hold: share"]
    assert 3_600 <= min(searches) < 3_610 + ended
    assert max(searches) - min(searches) < 600
    assert {rule for at, _, rule in went.limits if at > max(searches)} == {"hold: share"}
    assert went.limits[-1][1] >= 50


def test_with_quiet_hours_no_search_loads_the_server_by_day():
    went = run(Saturating(lambda _: 64), 2_000, share=lambda _: DAY)
    assert {rule for _, _, rule in went.limits} == {"hold: share"}
    assert went.most_in_flight(0, 1e9) == 8
