"""The report of a fleet as a table for people and as JSON for machines."""

from collections.abc import Iterator
from typing import Any

from nightmill.torture.fleet.conduct import FleetReport
from nightmill.torture.fleet.plan import Blow


def rows(report: FleetReport) -> Iterator[tuple[str, str]]:
    plan = report.plan
    yield "blows", f"{sum(report.blows.values())}"
    for blow in Blow:
        if count := report.blows[blow]:
            yield blow, f"{count}{_played_as(report, blow)}"
    on_ray = f" on {plan.nodes} Ray nodes" if plan.engine == "ray" else ""
    crews = f"{plan.crews} crews of {plan.workers_per_crew} workers"
    yield "fleet", f"{plan.servers} API servers, {crews}{on_ray}"
    yield "batches, lines", f"{report.batches}, {report.lines:,}"
    yield "requests at the upstream", f"{report.requests:,}"
    yield "answers repeated", f"{report.repeated:,} (bound {report.bound:,}: {_bound_of(report)})"
    yield "settled answers held to", f"{report.settled_seen:,}"
    yield "longest silence for a poller", f"{report.longest_silence_s:.2f} s ({report.polls:,} polls)"
    for name, count in report.proof.breaches.items():
        yield name, f"{count:,}" if count == 0 else f"{count:,}  BREACH"
    yield "took", f"{report.took_s:.0f} s, seed {plan.seed}"


def as_json(report: FleetReport) -> dict[str, Any]:
    return {
        "kept": report.is_kept,
        "seed": report.plan.seed,
        "blows": {blow.value: report.blows[blow] for blow in Blow if report.blows[blow]},
        "engine": report.plan.engine,
        "restart_was_real": report.plan.restart_store is not None,
        "batches": report.batches,
        "lines": report.lines,
        "requests": report.requests,
        "repeated": report.repeated,
        "repeated_bound": report.bound,
        "costly_blows": report.costly_blows,
        "durable_after_s": round(report.durable_after_s, 3),
        "settled_answers": report.settled_seen,
        "longest_silence_s": round(report.longest_silence_s, 3),
        "breaches": dict(report.proof.breaches),
        "examples": report.proof.examples,
        "took_s": round(report.took_s, 1),
    }


def _played_as(report: FleetReport, blow: Blow) -> str:
    is_played = blow is Blow.STORE_RESTARTED and report.plan.restart_store is None
    return " (played: all connections cut; --restart-store COMMAND restarts it)" if is_played else ""


def _bound_of(report: FleetReport) -> str:
    return (
        f"requests that {report.costly_blows} blows met in flight or not durable yet, "
        f"{report.durable_after_s:.2f} s after their answer or since the bucket stalled"
    )
