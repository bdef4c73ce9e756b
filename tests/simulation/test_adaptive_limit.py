"""The adaptive limit against simulated model servers, beside the best fixed limit of a sweep."""

from collections.abc import Callable

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


def compared(
    server: Callable[[], Server], lines: int, limits: list[int], how: dict[str, int]
) -> tuple[float, Run]:
    """The throughput of the adaptive limit as a part of the best fixed one, and the adaptive run."""
    best_s = min(run(server(), lines, limit=limit).seconds for limit in limits)
    adaptive = run(server(), lines, **how)  # type: ignore[arg-type]
    return best_s / adaptive.seconds, adaptive


@EVERY_WAY
@pytest.mark.parametrize(("slots", "lines"), [(3, 300), (16, 1_500), (64, 6_000), (300, 30_000)])
def test_a_server_whose_throughput_saturates_is_used_as_well_as_by_the_best_fixed_limit(slots, lines, how):
    ratio, _ = compared(lambda: Saturating(lambda _: slots), lines, [slots, 2 * slots], how)
    assert ratio > 0.9


@EVERY_WAY
@pytest.mark.parametrize(
    ("slots", "lines", "most_calls"), [(4, 300, 1.1), (32, 3_000, 1.03), (200, 20_000, 1.02)]
)
def test_a_server_that_refuses_is_used_fully_with_few_refused_calls(slots, lines, most_calls, how):
    ratio, adaptive = compared(lambda: Refusing(lambda _: slots), lines, [slots // 2, slots], how)
    assert ratio > 0.9
    assert adaptive.calls_per_answer < most_calls


@EVERY_WAY
@pytest.mark.parametrize("kind", [Saturating, Refusing])
def test_a_server_that_is_halved_and_comes_back_is_used_as_well_as_by_the_best_fixed_limit(kind, how):
    def slots(now: float) -> int:
        return 32 if 60 < now < 120 else 64

    ratio, _ = compared(lambda: kind(slots), 10_000, [32, 48, 64, 96], how)
    assert ratio > 0.9


@EVERY_WAY
def test_a_server_that_thrashes_when_its_cache_is_full_is_kept_below_that(how):
    ratio, adaptive = compared(
        lambda: Batching(kv_tokens=6_000), 6_000, [16, 32, 40, 48, 56, 64, 96, 128], how
    )
    assert ratio > 0.9
    assert 30 <= adaptive.limits[-1][1] <= 80


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
