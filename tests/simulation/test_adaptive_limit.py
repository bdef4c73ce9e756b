"""The adaptive limit against simulated model servers, beside the best fixed limit of a sweep."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.simulation.limit_servers import Batching, Refusing, Run, Saturating, Server, run

EVERY_WAY = pytest.mark.parametrize(
    "how",
    [
        {"with_gauges": True},
        {"with_gauges": False},
        {"with_gauges": False, "with_tokens": False},
        {"with_gauges": False, "workers": 4},
        {"with_gauges": True, "workers": 16},
    ],
    ids=["gauges", "tokens", "answers", "4 workers", "16 workers"],
)


@cache
def best_fixed_s(server: Callable[[], Server], lines: int, limits: tuple[int, ...]) -> float:
    """Seconds of the fastest run of a sweep over fixed limits."""
    return min(run(server(), lines, limit=limit).seconds for limit in limits)


@cache
def saturating(slots: int) -> Callable[[], Server]:
    return lambda: Saturating(lambda _: slots)


@cache
def refusing(slots: int) -> Callable[[], Server]:
    return lambda: Refusing(lambda _: slots)


def half_for_a_minute(now: float) -> int:
    return 32 if 60 < now < 120 else 64


def halved() -> Server:
    return Saturating(half_for_a_minute)


def halved_and_refusing() -> Server:
    return Refusing(half_for_a_minute)


def thrashing() -> Server:
    return Batching(kv_tokens=6_000)


def compared(
    server: Callable[[], Server], lines: int, limits: tuple[int, ...], how: dict[str, int]
) -> tuple[float, Run]:
    """The throughput of the adaptive limit as a part of the best fixed one, and the adaptive run."""
    adaptive = run(server(), lines, **how)  # type: ignore[arg-type]
    return best_fixed_s(server, lines, limits) / adaptive.seconds, adaptive


@EVERY_WAY
@pytest.mark.parametrize(("slots", "lines"), [(3, 300), (16, 1_500), (64, 6_000), (300, 30_000)])
def test_a_server_whose_throughput_saturates_is_used_as_well_as_by_the_best_fixed_limit(slots, lines, how):
    ratio, _ = compared(saturating(slots), lines, (slots, 2 * slots), how)
    assert ratio > 0.9


@EVERY_WAY
@pytest.mark.parametrize(
    ("slots", "lines", "most_calls"), [(4, 300, 1.1), (32, 3_000, 1.03), (200, 20_000, 1.03)]
)
def test_a_server_that_refuses_is_used_fully_with_few_refused_calls(slots, lines, most_calls, how):
    ratio, adaptive = compared(refusing(slots), lines, (slots // 2, slots), how)
    assert ratio > 0.9
    assert adaptive.calls_per_answer < most_calls


@EVERY_WAY
@pytest.mark.parametrize("server", [halved, halved_and_refusing])
def test_a_server_that_is_halved_and_comes_back_is_used_as_well_as_by_the_best_fixed_limit(server, how):
    # Beside a server with a queue, since a fixed limit calls one that refuses without end.
    best_s = best_fixed_s(halved, 10_000, (32, 48, 64, 96))
    assert best_s / run(server(), 10_000, **how).seconds > 0.9


@EVERY_WAY
def test_a_server_that_thrashes_when_its_cache_is_full_is_kept_below_that(how):
    ratio, adaptive = compared(thrashing, 8_000, (16, 32, 40, 48, 56, 64, 96, 128), how)
    assert ratio > 0.9
    assert adaptive.limits[-1][1] <= 80


def test_refusals_by_chance_do_not_starve_the_upstream():
    ratio, adaptive = compared(lambda: Saturating(lambda _: 64, refused_by_chance=0.01), 6_000, (64,), {})
    assert ratio > 0.85
    assert adaptive.limits[-1][1] > 32


def test_an_instant_server_is_found_in_well_under_a_second():
    adaptive = run(Saturating(lambda _: 2_000, line_s=0.001), 200_000)
    assert adaptive.time_to(256) < 0.5


def test_slow_lines_do_not_starve():
    adaptive = run(Saturating(lambda _: 200, line_s=20.0), 2_000)
    assert min(limit for _, limit, _ in adaptive.limits) >= 16
    assert adaptive.time_to(128) < 150


def test_the_limit_does_not_depend_on_the_number_of_workers():
    seconds = [run(Saturating(lambda _: 64), 6_000, workers=workers).seconds for workers in (1, 4, 16)]
    assert max(seconds) < 1.05 * min(seconds)
