"""A batch beside online traffic on one engine: its requests hardly wait, and the batch uses the gaps."""

import pytest

from tests.simulation.limit_servers import Online, Run, Saturating, run

MOST_RUNNING = 64
ONLINE_PER_S = 24.0  # each is computed for a second, so 40 places of the engine are free
BUSY, GAP = (60.0, 150.0), (160.0, 240.0)


def online_traffic() -> Online:
    return Online(lambda now: 0.0 if BUSY[1] <= now < GAP[1] + 10 else ONLINE_PER_S)


def answered_per_s(went: Run, begin: float, end: float) -> float:
    return sum(begin <= at < end for at in went.answered_at) / (end - begin)


def test_online_requests_do_not_wait_without_the_batch_and_wait_long_beside_a_fixed_limit():
    alone, beside = online_traffic(), online_traffic()
    run(Saturating(lambda _: MOST_RUNNING), 200, limit=1, online=alone)
    assert alone.p99(*BUSY) == pytest.approx(0.0, abs=1e-9)
    run(Saturating(lambda _: MOST_RUNNING), 8_000, limit=MOST_RUNNING, online=beside)
    assert beside.p99(*BUSY) > 0.4


@pytest.mark.parametrize("gauges_every_s", [0.0, 1.0])
@pytest.mark.parametrize("workers", [1, 4])
def test_beside_a_batch_with_gauges_online_requests_hardly_wait_and_the_batch_uses_the_gaps(
    workers, gauges_every_s
):
    online = online_traffic()
    went = run(
        Saturating(lambda _: MOST_RUNNING),
        9_000,
        workers=workers,
        with_gauges=True,
        gauges_every_s=gauges_every_s,
        online=online,
    )
    assert online.p99(*BUSY) < 0.4
    assert answered_per_s(went, *BUSY) > 0.6 * (MOST_RUNNING - ONLINE_PER_S)
    assert answered_per_s(went, *GAP) > 0.65 * MOST_RUNNING
    assert "yield: online traffic" in {rule for _, _, rule in went.limits}
