"""The questions for the simulation, each a function from the costs to a row of numbers."""

from collections.abc import Sequence
from typing import Any

from bench.simulation import Costs, Fleet, Simulation

WORKERS = (10, 100, 300, 1_000)
_SLOTS = 16
_LATENCY_S = 2.0
_LINES = 500
_MANY = 1_000
_AWAY_AT = 40.0


def _fleet(costs: Costs, workers: int, **changes: Any) -> Fleet:
    return Fleet(
        workers=workers, concurrency_limit=_SLOTS * workers, latency_s=_LATENCY_S, costs=costs, **changes
    )


def _at(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def slot_requests(costs: Costs, *, workers: int, spreads: bool, seconds: float = 40.0) -> dict[str, Any]:
    """A fleet that starts at once: slot requests, and the time until all workers have their share."""
    simulation = Simulation(_fleet(costs, workers, spreads=spreads))
    simulation.add("a", 1_000_000)
    seen = simulation.run(seconds)
    limit = simulation.fleet.concurrency_limit
    reached = [moment for moment, flying, _ in seen.flying if flying >= 0.9 * limit]
    steady = [flying for moment, flying, _ in seen.flying if moment >= seconds / 2]
    below = [moment for moment, flying, _ in seen.flying if flying < 0.9 * limit]
    return {
        "workers": workers,
        "spreads": spreads,
        "slot_requests_per_s": seen.slot_requests / seconds,
        "row_busy": min(1.0, seen.row_s / seconds),
        "slot_request_wait_p99_s": _at(seen.slot_request_waits, 0.99),
        "transactions_per_s": seen.transactions / seconds,
        "share_used": sum(steady) / len(steady) / limit,
        "settled_s": (max(below) + 1) if below and reached else 0.0,
        "is_settled": bool(steady) and min(steady) >= 0.9 * limit,
        "flying": [(moment, flying / limit) for moment, flying, _ in seen.flying],
        "most_granted": seen.most_granted,
        "window": limit,
    }


def small_behind_huge(costs: Costs, *, fair: bool) -> dict[str, Any]:
    """A batch of one segment is created two minutes after a batch that keeps the fleet busy for seven."""
    workers = 100
    simulation = Simulation(_fleet(costs, workers, fair=fair))
    per_s = workers * _SLOTS / _LATENCY_S / _LINES
    huge = simulation.add("huge", int(per_s * 420))
    made: list[Any] = []
    simulation.at(120.0, lambda: made.append(simulation.add("small", 1)))
    simulation.run(600.0)
    small = made[0]
    return {
        "fair": fair,
        "first_lease_s": _since(small.first_lease, 120.0),
        "ended_s": _since(small.ended, 120.0),
        "huge_ended_s": _since(huge.ended, 0.0),
    }


def _since(moment: float | None, begin: float) -> float | None:
    return None if moment is None else moment - begin


def tenants(costs: Costs, *, fair: bool) -> dict[str, Any]:
    """Five projects with batches of very different sizes: the distance of each from a fifth of the leases."""
    workers, seconds = 100, 300.0
    simulation = Simulation(_fleet(costs, workers, fair=fair))
    for size in (10_000, 3_000, 3_000, 1_000, 500):
        simulation.add(f"project {len(simulation.batches)}", size)
    seen = simulation.run(seconds)
    shares = {name: sum(lines for _, lines in rows) / seen.lines for name, rows in seen.by_project.items()}
    shares |= {batch.project: 0.0 for batch in simulation.batches if batch.project not in shares}
    return {"fair": fair, "shares": shares, "error": max(abs(share - 0.2) for share in shares.values())}


def deaths(costs: Costs, *, frozen: bool) -> dict[str, Any]:
    """A tenth of the workers die, or freeze for a minute, half a minute before leases expire."""
    workers, moment = 200, 60.0
    simulation = Simulation(_fleet(costs, workers))
    simulation.add("a", 1_000_000)
    victims = range(0, workers, 10)
    action = (
        (lambda: simulation.freeze(victims, seconds=60.0)) if frozen else (lambda: simulation.kill(victims))
    )
    simulation.at(moment, action)
    seen = simulation.run(180.0)
    limit = simulation.fleet.concurrency_limit
    after = [(at, flying) for at, flying, _ in seen.flying if at > moment]
    unused_s = sum(1 - flying / limit for at, flying in after if at <= moment + 60)
    back = next((at - moment for at, flying in after if at > moment + 1 and flying >= 0.99 * limit), None)
    return {
        "frozen": frozen,
        "back_s": back,
        "unused": unused_s,
        "lost_leases": seen.lost,
        "flying": [(at - moment, flying / limit) for at, flying, _ in seen.flying if at >= moment - 10],
    }


def outage(costs: Costs, *, seconds: float) -> dict[str, Any]:
    """An outage of the database, after which a thousand workers send their requests at once."""
    simulation = Simulation(_fleet(costs, _MANY))
    simulation.add("a", 1_000_000)
    simulation.at(_AWAY_AT, simulation.start_outage)
    simulation.at(_AWAY_AT + seconds, simulation.end_outage)
    seen = simulation.run(_AWAY_AT - 1)
    before = seen.transactions
    simulation.run(_AWAY_AT + seconds)
    waits, slot_request_waits = len(seen.waits), len(seen.slot_request_waits)
    simulation.run(_AWAY_AT + seconds + 5.0)
    limit = simulation.fleet.concurrency_limit
    herd = {
        "outage_s": seconds,
        "before_per_s": before / (_AWAY_AT - 1),
        "first_s_per_s": (len(seen.waits) - waits + len(seen.slot_request_waits) - slot_request_waits) / 5.0,
        "wait_p99_s": _at(seen.waits[waits:], 0.99),
        "slot_request_wait_p99_s": _at(seen.slot_request_waits[slot_request_waits:], 0.99),
    }
    simulation.run(_AWAY_AT + seconds + 40.0)
    after = [(at - _AWAY_AT, flying / limit) for at, flying, _ in seen.flying if at >= _AWAY_AT - 10]
    back = [at - seconds for at, share in after if at > seconds and share < 0.9]
    return {**herd, "back_s": (max(back) + 1) if back else 0.0, "lost_leases": seen.lost, "flying": after}


def answers(costs: Costs) -> dict[str, Any]:
    """All rows; takes some minutes of one core."""
    rows = [
        slot_requests(costs, workers=workers, spreads=spreads)
        for workers in WORKERS
        for spreads in (False, True)
    ]
    return {
        "slot_requests": rows,
        "small_behind_huge": [small_behind_huge(costs, fair=fair) for fair in (False, True)],
        "tenants": [tenants(costs, fair=fair) for fair in (False, True)],
        "deaths": [deaths(costs, frozen=frozen) for frozen in (False, True)],
        "outages": [outage(costs, seconds=seconds) for seconds in (10.0, 60.0)],
    }
