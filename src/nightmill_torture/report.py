"""Report of a run: its figures, as a table for people and as JSON for machines."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from nightmill.failpoints import FAILPOINTS, Failpoint
from nightmill_torture.plan import Fault, Plan
from nightmill_torture.proof import Proof


@dataclass(slots=True)
class Report:
    """Filled in during the run. Times are in seconds."""

    plan: Plan
    proof: Proof = field(default_factory=Proof)
    faults: Counter[Fault] = field(default_factory=Counter[Fault])
    points: set[Failpoint] = field(default_factory=set[Failpoint])
    """Failpoints that were reached."""
    batches: int = 0
    lines: int = 0
    requests: int = 0
    repeated: int = 0
    bound: int = 0
    """On one machine the attempts in flight and the answers of one commit, summed over the kills. In a fleet
    the requests that were in flight, or whose answer was not durable, at a fault."""
    durable_after_s: float = 0.0
    """An answer is durable so long after it arrived, at the latest."""
    most_undone: int = 0
    """On one machine: the most lines without a durable answer at a kill of all processes."""
    settled_seen: int = 0
    polls: int = 0
    longest_silence_s: float = 0.0
    answers_after_s: list[float] = field(default_factory=list[float])
    """From the start of a server to its first answer to a poll."""
    requests_after_s: list[float] = field(default_factory=list[float])
    """From the start of a server that found unanswered lines to its first request to the upstream."""
    delays_s: list[float] = field(default_factory=list[float])
    """Of the same starts: how much later than the first answer (0 when it was earlier)."""
    took_s: float = 0.0

    @property
    def is_kept(self) -> bool:
        return self.proof.is_kept

    @property
    def costly_faults(self) -> int:
        """Faults after which lines may be sent again."""
        return sum(count for fault, count in self.faults.items() if self.plan.may_repeat(fault))


def rows(report: Report) -> Iterator[tuple[str, str]]:
    plan = report.plan
    yield "faults", f"{report.faults.total()}"
    for fault in Fault:
        if count := report.faults[fault]:
            yield fault.title, f"{count}{_simulated(report, fault)}"
    if plan.is_fleet:
        nodes = f" on {plan.nodes} Ray nodes" if plan.engine == "ray" else ""
        hosts = f"{plan.worker_hosts} worker hosts with {plan.workers_per_member} workers each"
        yield "fleet", f"{plan.servers} API servers, {hosts}{nodes}"
    else:
        yield "failpoints reached", f"{len(report.points)} of {len(FAILPOINTS)}"
    yield "batches, lines", f"{report.batches}, {report.lines:,}"
    yield "requests at the upstream", f"{report.requests:,}"
    yield "answers repeated", f"{report.repeated:,} (bound {report.bound:,}: {_bound(report)})"
    if not plan.is_fleet:
        yield "most undone at one kill", f"{report.most_undone}"
    yield "settled answers compared", f"{report.settled_seen:,}"
    if not plan.is_fleet:
        yield "start to first answer", _times(report.answers_after_s)
        yield "start to first request", _times(report.requests_after_s)
        yield "first answer to first request", _times(report.delays_s)
    yield "longest silence for a poller", f"{report.longest_silence_s:.2f} s ({report.polls:,} polls)"
    for name, count in report.proof.breaches.items():
        yield name, f"{count:,}" if count == 0 else f"{count:,}  BREACH"
    yield "took", f"{report.took_s:.0f} s, seed {plan.seed}"


def as_json(report: Report) -> dict[str, Any]:
    return {
        "kept": report.is_kept,
        "seed": report.plan.seed,
        "faults": {fault.title: report.faults[fault] for fault in Fault if report.faults[fault]},
        "points": sorted(report.points),
        "engine": report.plan.engine,
        "restart_was_real": report.plan.restart_store is not None,
        "batches": report.batches,
        "lines": report.lines,
        "requests": report.requests,
        "repeated": report.repeated,
        "repeated_bound": report.bound,
        "costly_faults": report.costly_faults,
        "durable_after_s": round(report.durable_after_s, 3),
        "most_undone": report.most_undone,
        "settled_answers": report.settled_seen,
        "start_to_first_answer_s": _summary(report.answers_after_s),
        "start_to_first_request_s": _summary(report.requests_after_s),
        "first_answer_to_first_request_s": _summary(report.delays_s),
        "longest_silence_s": round(report.longest_silence_s, 3),
        "breaches": dict(report.proof.breaches),
        "examples": report.proof.examples,
        "took_s": round(report.took_s, 1),
    }


def _simulated(report: Report, fault: Fault) -> str:
    is_simulated = fault is Fault.STORE_RESTARTED and report.plan.restart_store is None
    return " (all connections cut instead; --restart-store COMMAND restarts it)" if is_simulated else ""


def _bound(report: Report) -> str:
    if not report.plan.is_fleet:
        return "in flight and one commit, each kill"
    return (
        f"requests in flight or not durable yet at {report.costly_faults} faults, "
        f"{report.durable_after_s:.2f} s after their answer or since the bucket stalled"
    )


def _times(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    return f"median {median(values):.2f} s, most {max(values):.2f} s ({len(values)} starts)"


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": round(median(values), 3), "most": round(max(values), 3), "starts": len(values)}
