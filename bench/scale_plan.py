"""What a billion requests a day need, computed from what was measured: the tables of docs/scale.md.

    python -m bench.scale_plan --take .run/bench/results.json   # the figures of a run of `leases` and `fleet`
    python -m bench.scale_plan --simulate                       # ask the simulation anew (minutes), draw
    python -m bench.scale_plan                                  # print the tables into docs/scale.md

Measured figures lie in docs/scale/measured.json, answers of the simulation in docs/scale/simulated.json.
Everything else that a number rests on is an assumption and stands in `Load`.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.simulation import Costs

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/scale.md"
FOLDER = ROOT / "docs/scale"
MEASURED = FOLDER / "measured.json"
SIMULATED = FOLDER / "simulated.json"
_PLOTS = Path(__file__).with_name("scale_plots.py")
_PRINTED = re.compile(
    r"(<!-- printed by bench/scale_plan.py: (?P<part>\w+) -->\n).*?(<!-- end -->)", re.DOTALL
)
_DAY_S = 86_400
_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is assumed. Prices are list prices in USD."""

    lines_a_day: float = 1e9
    peak: float = 3.0
    latency_s: float = 10.0
    request_bytes: float = 4_000
    answer_bytes: float = 3_000
    lines_per_segment: int = 500
    lines_per_batch: int = 50_000
    slots_per_worker: int = 2_000
    open_segments: float = 3.0
    """For each `lines_per_segment` attempts in flight: slow lines keep a segment open."""
    part_interval_s: float = 1.0
    beat_s: float = 1.0
    connections_per_process: int = 4
    real_over_measured: float = 5.0
    """A real line has TLS, 7 KB and retries; the measured one has neither."""
    put_price: float = 0.005 / 1_000
    get_price: float = 0.0004 / 1_000
    core_hour_price: float = 0.05


# --- measured --------------------------------------------------------------------------------------------


def taken(results: dict[str, Any]) -> dict[str, Any]:
    """The few figures that the plan rests on, out of a whole run."""
    leases = [sample for figure in results["rows"]["leases"] for sample in figure["samples"]]
    figures = {figure["name"]: figure["value"] for figure in results["rows"]["leases"]}
    fleet = [sample for figure in results["rows"]["fleet"] for sample in figure["samples"]]

    def lease(*, server: bool, amount: int) -> dict[str, Any]:
        return max(
            (
                sample
                for sample in leases
                if sample["what"] == "lease"
                and bool(sample["server_us"]) is server
                and sample["amount"] == amount
            ),
            key=lambda sample: sample["per_s"],
        )

    def line(place: str, workers: int) -> dict[str, float]:
        rounds = [
            s["us"] for s in fleet if s.get("place", "").startswith(place) and s.get("workers") == workers
        ]
        return {part: sum(us[part] for us in rounds) / len(rounds) for part in rounds[0]}

    def of(what: str, amount: int) -> dict[str, Any]:
        return next(sample for sample in leases if sample["what"] == what and sample["amount"] == amount)

    one, some, beat = lease(server=True, amount=1), lease(server=True, amount=8), of("beat", 10)
    counted = {s["place"]: s for s in fleet if "statements" in s}
    s3 = next(sample for place, sample in counted.items() if place.startswith("S3"))
    return {
        "when": results["when"],
        "machine": results["machine"]["processor"],
        "leases_per_s": one["per_s"],
        "lease_postgres_us": one["server_us"],
        "lease_worker_us": one["client_us"],
        "lease_log_bytes": one["written_bytes"],
        "leases_at_once_per_s": some["per_s"],
        "lease_at_once_postgres_us": some["server_us"],
        "sqlite_leases_per_s": lease(server=False, amount=1)["per_s"],
        "beat_postgres_us": beat["server_us"],
        "segment_bytes": next(v for name, v in figures.items() if name.endswith("indexes included")),
        "segments_made_per_s": next(
            value for name, value in figures.items() if name.startswith("Postgres") and name.endswith("made")
        ),
        "backlog_ms": next(
            value
            for name, value in figures.items()
            if name.startswith("Postgres") and name.endswith("counted")
        ),
        "slot_requests_per_s": {str(sharers): of("grant", sharers)["per_s"] for sharers in (10, 100, 1_000)},
        "slot_request_postgres_us": {str(n): of("grant", n)["server_us"] for n in (10, 100, 1_000)},
        "line_us": {
            "SQLite and folder": line("SQLite", 1),
            "Postgres and folder": line("folder", 1),
            "Postgres and S3": line("S3", 1),
        },
        "place": s3["place"],
        "part_puts_per_segment": s3["part_puts"] / (s3["lines"] / 500),
    }


def costs(measured: dict[str, Any]) -> Costs:
    """For the simulation. A slot request locks the row for the reciprocal of the requests a second."""
    few, many = (1 / measured["slot_requests_per_s"][sharers] for sharers in ("10", "1000"))
    per_sharer = (many - few) / 990
    half = measured["lease_postgres_us"] / 2e6
    return Costs(
        lease_s=half,
        complete_s=half,
        beat_s=measured["beat_postgres_us"] / 1e6,
        slot_request_s=few - 10 * per_sharer,
        slot_request_per_grant_s=per_sharer,
    )


# --- the tables ------------------------------------------------------------------------------------------


def plan(measured: dict[str, Any], load: Load) -> Iterator[tuple[str, str, str, str]]:
    """(quantity, on the average, at the peak, where it comes from)."""
    mean = load.lines_a_day / _DAY_S
    rates = (mean, mean * load.peak)

    def row(name: str, of: Callable[[float], str], source: str) -> tuple[str, str, str, str]:
        return name, of(rates[0]), of(rates[1]), source

    line = measured["line_us"]["Postgres and S3"]
    ours = sum(us for part, us in line.items() if part not in {"postgres", "s3"})

    def flying(rate: float) -> float:
        return rate * load.latency_s

    def workers(rate: float) -> float:
        return max(1.0, flying(rate) / load.slots_per_worker)

    def segments(rate: float) -> float:
        return rate / load.lines_per_segment

    def opened(rate: float) -> float:
        return flying(rate) / load.lines_per_segment * load.open_segments

    def puts(rate: float) -> float:
        return opened(rate) / load.part_interval_s

    def postgres(rate: float) -> float:
        beats = workers(rate) / load.beat_s * measured["beat_postgres_us"]
        asks = min(workers(rate), 100) * measured["slot_request_postgres_us"]["1000"]
        return (segments(rate) * measured["lease_postgres_us"] + beats + asks) / 1e6

    def cores(rate: float) -> float:
        return rate * ours * load.real_over_measured / 1e6

    def stored(rate: float) -> float:
        return rate * (load.request_bytes + 2 * load.answer_bytes)

    yield row("lines a second", lambda r: f"{r:,.0f}", "assumed")
    yield row("attempts in flight", lambda r: f"{flying(r):,.0f}", f"{load.latency_s:.0f} s for an answer")
    yield row(
        "worker processes", lambda r: f"{workers(r):,.0f}", f"{load.slots_per_worker:,} attempts in each"
    )
    yield row(
        "cores of API, workers and keepers",
        lambda r: f"{cores(r):,.1f}",
        f"measured {ours:.0f} us a line, times {load.real_over_measured:.0f} for TLS, size and retries",
    )
    yield row(
        "segments leased a second", lambda r: f"{segments(r):,.1f}", f"{load.lines_per_segment} lines each"
    )
    yield row(
        "of what two cores do, Postgres and workers on them",
        lambda r: f"{segments(r) / measured['leases_per_s']:.0%}",
        f"measured {measured['leases_per_s']:,.0f} leased and completed a second",
    )
    yield row(
        "cores of Postgres",
        lambda r: f"{postgres(r):,.2f}",
        f"measured {measured['lease_postgres_us'] / 1e3:.1f} ms a segment,"
        f" {measured['beat_postgres_us'] / 1e3:.1f} ms a heartbeat",
    )
    yield (
        "rows of a day's segments, GB",
        f"{segments(mean) * _DAY_S * measured['segment_bytes'] / _GB:.2f}",
        "",
        f"measured {measured['segment_bytes']:,.0f} bytes a row with its indexes; gone when their batch ends",
    )
    yield row(
        "log of Postgres, MB/s",
        lambda r: f"{segments(r) * measured['lease_log_bytes'] / 1e6:.2f}",
        f"measured {measured['lease_log_bytes']:,.0f} bytes a segment, heartbeats not counted",
    )
    yield row(
        "connections",
        lambda r: f"{(workers(r) + 8) * load.connections_per_process:,.0f}",
        f"at most {load.connections_per_process} for each worker, and for eight others",
    )
    batches = f"{mean * _DAY_S / load.lines_per_batch:,.0f}"
    yield "batches a day", batches, "", f"{load.lines_per_batch:,} lines each"
    yield row(
        "object store, MB/s in and out",
        lambda r: f"{stored(r) / 1e6:,.0f}",
        "requests, answers, and answers once more as parts",
    )
    yield row(
        "puts of answers a second",
        lambda r: f"{puts(r):,.0f}",
        f"{load.open_segments:.0f} segments open for {load.lines_per_segment} attempts,"
        f" one put each {load.part_interval_s:.0f} s",
    )
    yield row(
        "gets a second",
        lambda r: f"{puts(r) + 2 * segments(r):,.0f}",
        "each of them once more, and two for a segment",
    )


def bills(measured: dict[str, Any], load: Load) -> Iterator[tuple[str, str, str]]:
    """(what, USD a day, how)."""
    mean = load.lines_a_day / _DAY_S
    opened = mean * load.latency_s / load.lines_per_segment * load.open_segments
    line = measured["line_us"]["Postgres and S3"]
    ours = sum(us for part, us in line.items() if part not in {"postgres", "s3"})
    for interval_s in (1.0, 5.0):
        count = opened / interval_s * _DAY_S
        yield (
            f"puts of answers, one each {interval_s:.0f} s",
            f"{count * load.put_price:,.0f}",
            f"{count / 1e6:,.0f} million; `blobs.part_interval_s`",
        )
    gets = (opened + 2 * mean / load.lines_per_segment) * _DAY_S
    yield "gets", f"{gets * load.get_price:,.0f}", f"{gets / 1e6:,.0f} million"
    cores = mean * load.peak * ours * load.real_over_measured / 1e6
    price = cores * 24 * load.core_hour_price
    yield (
        "cores of ours, for the peak all day",
        f"{price:,.0f}",
        f"{cores:,.0f} at {load.core_hour_price} USD an hour",
    )
    yield (
        "Postgres, eight cores and a replica",
        f"{16 * 24 * 2 * load.core_hour_price:,.0f}",
        "twice the price of a core",
    )


def limits(measured: dict[str, Any], load: Load) -> Iterator[tuple[str, str, str]]:
    """(what becomes a bottleneck, at which number, what helps), the earliest first."""
    slot_requests = measured["slot_requests_per_s"]["1000"]
    beat_s = measured["beat_postgres_us"] / 1e6
    per_segment = measured["lease_postgres_us"] / 1e6
    yield (
        "connections to Postgres without a pooler",
        f"{500 // load.connections_per_process} processes at 500 connections",
        "a pooler in transaction mode: no session state is kept",
    )
    yield (
        "slot requests on one upstream's row",
        (
            f"{slot_requests:,.0f} a second among 1,000 workers: at one per heartbeat,"
            f" {slot_requests * 0.75 * load.beat_s:,.0f} workers"
        ),
        "many workers take turns, at most 100 requests a second; several upstreams have a row each",
    )
    yield (
        "heartbeats",
        f"{4 / beat_s * load.beat_s:,.0f} workers on four cores of Postgres",
        "`worker.beat_s`: at 5 s, five times as many; counts then change every 5 s",
    )
    yield (
        "leases",
        (
            f"{4 / per_segment:,.0f} segments a second on four cores,"
            f" {4 / per_segment * load.lines_per_segment:,.0f} lines"
        ),
        "`worker.lines_per_segment`, then cells",
    )
    yield (
        "puts below one prefix of S3",
        f"3,500 a second: {3_500 * load.part_interval_s:,.0f} open segments",
        "`blobs.part_interval_s`; S3 splits prefixes under load, and a cell has a bucket of its own",
    )


def request_rows(simulated: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in simulated["slot_requests"]:
        yield (
            f"{row['workers']:,}",
            "take turns" if row["spreads"] else "every heartbeat",
            f"{row['slot_requests_per_s']:,.0f}",
            f"{row['row_busy']:.0%}",
            f"{row['slot_request_wait_p99_s']:.2f}",
            f"{row['settled_s']:.0f}" if _has_settled(row) else "never",
            f"{row['transactions_per_s']:,.0f}",
        )


def _has_settled(row: dict[str, Any]) -> bool:
    return min(share for _, share in row["flying"][-5:]) >= 0.9


def answer_rows(simulated: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    oldest, fair = simulated["small_behind_huge"]
    yield (
        "one segment behind seven minutes of work: first lease after",
        f"{oldest['first_lease_s']:.0f} s",
        f"{fair['first_lease_s']:.1f} s",
    )
    yield (
        "the same: done after",
        f"{oldest['ended_s']:.0f} s",
        f"{fair['ended_s']:.0f} s",
    )
    oldest, fair = simulated["tenants"]
    yield (
        "five projects: furthest from a fifth of the answers",
        f"{oldest['error'] * 100:.0f} points",
        f"{fair['error'] * 100:.1f} points",
    )


def trouble_rows(simulated: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in simulated["deaths"]:
        what = "freeze for a minute" if row["frozen"] else "die"
        yield (
            f"a tenth of 200 workers {what}",
            f"{row['back_s']:.0f} s" if row["back_s"] is not None else "not within two minutes",
            f"{row['unused']:.1f} s of all slots",
            f"{row['lost_leases']:,}",
        )
    for row in simulated["outages"]:
        yield (
            f"Postgres away for {row['outage_s']:.0f} s, 1,000 workers",
            f"{row['back_s']:.0f} s after it is back",
            (
                f"{row['first_s_per_s']:,.0f} a second at first, {row['before_per_s']:,.0f} before;"
                f" p99 {row['wait_p99_s'] * 1e3:.0f} ms,"
                f" of slot requests {row['slot_request_wait_p99_s']:.1f} s"
            ),
            f"{row['lost_leases']:,}",
        )


def page(text: str, measured: dict[str, Any], simulated: dict[str, Any], load: Load | None = None) -> str:
    """The page with its tables printed anew."""
    load = load or Load()
    parts: dict[str, str] = {
        "plan": _table(("", "average", "peak", "from"), list(plan(measured, load))),
        "bills": _table(("", "USD a day", ""), list(bills(measured, load))),
        "limits": _table(("bottleneck", "at", "what helps"), list(limits(measured, load))),
        "requests": _table(
            (
                "workers",
                "requests",
                "requests/s",
                "row busy",
                "wait p99, s",
                "90% of the slots used after, s",
                "transactions/s",
            ),
            list(request_rows(simulated)),
        ),
        "order": _table(("", "oldest batch first", "fair"), list(answer_rows(simulated))),
        "trouble": _table(
            ("", "99% of the slots used again", "meanwhile", "leases lost"), list(trouble_rows(simulated))
        ),
        "measured": f"{measured['when']}: {measured['machine']}, everything on it; {measured['place']}.",
    }
    return _PRINTED.sub(lambda found: f"{found[1]}{parts[found['part']]}\n{found[3]}", text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale_plan", description=__doc__)
    parser.add_argument("--take", type=Path, metavar="RESULTS.json")
    parser.add_argument("--simulate", action="store_true")
    asked = parser.parse_args()
    if asked.take is not None:
        _write(MEASURED, taken(json.loads(asked.take.read_text())))
    measured = json.loads(MEASURED.read_text())
    if asked.simulate:
        from bench.scale_questions import answers  # noqa: PLC0415 - only then

        _write(SIMULATED, answers(costs(measured)))
        _draw()
    PAGE.write_text(page(PAGE.read_text(), measured, json.loads(SIMULATED.read_text())))


def _draw() -> None:
    from bench import tools  # noqa: PLC0415 - only then

    try:
        programs = tools.venv("plots", "matplotlib")
    except tools.CannotInstallError as error:
        print(f"SKIPPED the plots: {error}")
        return
    subprocess.run([str(programs / "python"), str(_PLOTS), str(SIMULATED), str(FOLDER)], check=True)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(_rounded(value), separators=(",", ":")) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


if __name__ == "__main__":
    main()
