"""A report as a table for people and as JSON for machines."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from nightmill.failpoints import FAILPOINTS
from nightmill.torture.conduct import Report


def rows(report: Report) -> Iterator[tuple[str, str]]:
    kills = ", ".join(f"{count} {name}" for name, count in sorted(report.kills.items()))
    yield "kills", f"{sum(report.kills.values())} ({kills})"
    yield "crash points struck", f"{len(report.points)} of {len(FAILPOINTS)}"
    yield "batches, lines", f"{report.batches}, {report.lines:,}"
    yield "requests at the upstream", f"{report.requests:,}"
    yield (
        "answers repeated",
        f"{report.repeated:,} (bound {report.bound:,}: in flight and one commit, each kill)",
    )
    yield "most undone at one kill", f"{report.most_undone}"
    yield "settled answers held to", f"{report.settled_seen:,}"
    yield "start to first answer", _times(report.answers_after_s)
    yield "start to first request", _times(report.requests_after_s)
    yield "first answer to first request", _times(report.delays_s)
    yield "longest silence for a poller", f"{report.longest_silence_s:.2f} s ({report.polls:,} polls)"
    for name, count in report.proof.breaches.items():
        yield name, f"{count:,}" if count == 0 else f"{count:,}  BREACH"
    yield "took", f"{report.took_s:.0f} s, seed {report.plan.seed}"


def as_json(report: Report) -> dict[str, Any]:
    return {
        "kept": report.is_kept,
        "seed": report.plan.seed,
        "kills": dict(sorted(report.kills.items())),
        "points": sorted(report.points),
        "batches": report.batches,
        "lines": report.lines,
        "requests": report.requests,
        "repeated": report.repeated,
        "repeated_bound": report.bound,
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


def _times(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    return f"median {median(values):.2f} s, most {max(values):.2f} s ({len(values)} starts)"


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": round(median(values), 3), "most": round(max(values), 3), "starts": len(values)}
