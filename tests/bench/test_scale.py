"""docs/scale.md agrees with its figures, and the simulated fleet follows the rules of the real fleet."""

import json

import pytest

from bench import scale_plan
from bench.scale_questions import slot_requests
from bench.simulation import Costs, Fleet, Simulation

COSTS = Costs()


def test_the_tables_of_the_plan_agree_with_its_figures():
    measured = json.loads(scale_plan.MEASURED.read_text())
    simulated = json.loads(scale_plan.SIMULATED.read_text())
    text = scale_plan.PAGE.read_text()
    assert scale_plan.page(text, measured, simulated) == text, "run: python -m bench.scale_plan"


def test_twice_the_lines_need_twice_the_leases():
    measured = json.loads(scale_plan.MEASURED.read_text())

    def leased(lines: float) -> float:
        rows = {row[0]: row for row in scale_plan.plan(measured, scale_plan.Load(lines_a_day=lines))}
        return float(rows["segments leased a second"][1])

    assert leased(2e9) == pytest.approx(2 * leased(1e9), rel=0.01)


@pytest.mark.parametrize("fair", [False, True])
def test_no_slot_and_no_segment_is_granted_twice_when_workers_die_freeze_or_are_cut_off(fair):
    """`Simulation` itself raises on a grant above the limit and on a lease of a leased segment."""
    fleet = Fleet(
        workers=40, concurrency_limit=160, latency_s=0.5, lines_per_segment=50, lease_ttl_s=3.0, fair=fair
    )
    simulation = Simulation(fleet)
    made = [simulation.add(f"project {number % 3}", 60) for number in range(6)]
    simulation.at(4.0, lambda: simulation.kill(range(5)))
    simulation.at(6.0, lambda: simulation.freeze(range(5, 12), seconds=5.0))
    simulation.at(13.0, simulation.start_outage)
    simulation.at(17.0, simulation.end_outage)
    seen = simulation.run(120.0)
    assert 0 < seen.most_granted <= fleet.concurrency_limit
    assert max(flying for _, flying, _ in seen.flying) <= fleet.concurrency_limit
    assert seen.lost > 0  # the frozen workers had lost their leases
    assert [(batch.done, batch.waiting) for batch in made] == [(60, 0)] * 6


def test_runs_with_the_same_seed_are_equal():
    assert slot_requests(COSTS, workers=30, spreads=True, seconds=10) == slot_requests(
        COSTS, workers=30, spreads=True, seconds=10
    )


def test_a_fleet_that_starts_at_once_reaches_its_whole_concurrency_limit():
    row = slot_requests(COSTS, workers=60, spreads=True, seconds=20)
    assert row["is_settled"]
    assert row["share_used"] > 0.98
    assert row["most_granted"] == row["window"]
