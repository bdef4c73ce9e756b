"""Use of a slow upstream: fixed latency compared with wrk, long-tailed latency compared with the ideal.

The upstream records the number of requests in flight at each moment. With a fixed latency the rate is
compared with that of wrk on the same upstream: no client reaches connections / latency, because transfer
takes time.
"""

import json
import urllib.request
from typing import Any

from bench import inputs, machine, stubs
from bench.figures import Bench, Better, Figure, median, quiet_first
from bench.rows.dispatch import run_batch
from bench.server import serving

ROW = "an upstream that takes its time"
LATENCY_S = 0.05
_TARGETS = {64: None, 256: 0.985, 1024: 0.97}
_SIGMA = 1.21
"""A log-normal whose 99th percentile is 8 times its mean."""
_TAIL_WINDOW = 256
_TAIL_MEAN_S = 0.1


def measure(bench: Bench) -> list[Figure]:
    figures: list[Figure] = []
    for window, target in _TARGETS.items():
        samples = [_fixed(bench, window) for _ in range(bench.sizes.rounds)]
        kept = quiet_first(samples)
        share = median([sample["rate"] * LATENCY_S / window for sample in kept])
        figures.append(
            Figure(
                ROW,
                f"50 ms, {window} in flight: rate over wrk's",
                median([sample["rate"] / sample["wrk_rate"] for sample in kept]),
                "x",
                target,
                Better.HIGH,
                note=f"{share:.3f} of window / latency",
                samples=samples,
            )
        )
    samples = [_tail(bench, seed) for seed in range(bench.sizes.rounds)]
    busy = median([sample["busy"] for sample in quiet_first(samples)])
    name = f"log-normal latency, {_TAIL_WINDOW} in flight: steady part busy"
    return [*figures, Figure(ROW, name, busy, "x", 0.99, Better.HIGH, samples=samples)]


def _fixed(bench: Bench, window: int) -> dict[str, Any]:
    lines = _lines(bench, window, LATENCY_S)
    with (
        stubs.slow(mean_s=LATENCY_S) as stub,
        serving(bench.folder / "data", upstream=stub.url, concurrency=window, source=bench.source) as server,
    ):
        machine.wait_for_quiet()
        seconds = min(4.0, bench.sizes.busy_s)
        before = stubs.wrk(
            bench.folder, stub, connections=window, seconds=seconds, line_bytes=inputs.LINE_BYTES
        )
        file_id = server.upload(inputs.input_file(bench.folder, lines))
        history(stub)
        with machine.watched({**server.pids, "stub": stub.pid}) as used:
            run_batch(server, file_id, lines=lines)
        seen = history(stub)
        after = stubs.wrk(
            bench.folder, stub, connections=window, seconds=seconds, line_bytes=inputs.LINE_BYTES
        )
    (began, first), (ended, last) = steady(seen, lines)
    return {
        "window": window,
        "rate": (last - first) / (ended - began),
        "wrk_rate": (before.requests + after.requests) / (before.wall_s + after.wall_s),
        "us": {name: used.cpu_s[name] / lines * 1e6 for name in server.pids},
        "foreign_share": used.foreign_share,
    }


def _tail(bench: Bench, seed: int) -> dict[str, Any]:
    lines = _lines(bench, _TAIL_WINDOW, _TAIL_MEAN_S)
    with (
        stubs.slow(mean_s=_TAIL_MEAN_S, tail=_SIGMA, seed=seed) as stub,
        serving(
            bench.folder / "data", upstream=stub.url, concurrency=_TAIL_WINDOW, source=bench.source
        ) as server,
    ):
        machine.wait_for_quiet()
        file_id = server.upload(inputs.input_file(bench.folder, lines))
        history(stub)
        with machine.watched({**server.pids, "stub": stub.pid}) as used:
            run_batch(server, file_id, lines=lines)
        seen = history(stub)
    (began, _), (ended, _) = steady(seen, lines)
    owed = [row[2] for row in seen if began <= row[0] <= ended]
    return {
        "busy": sum(owed) / len(owed) / _TAIL_WINDOW,
        "whole": lines * _TAIL_MEAN_S / _TAIL_WINDOW / used.wall_s,
        "foreign_share": used.foreign_share,
    }


def _lines(bench: Bench, window: int, latency_s: float) -> int:
    return round(bench.sizes.busy_s * window / latency_s / 1_000) * 1_000


def history(stub: stubs.Stub) -> list[tuple[float, int, int]]:
    """(moment, answers so far, requests in flight), every few milliseconds since the last call."""
    with urllib.request.urlopen(f"http://127.0.0.1:{stub.port}/history", timeout=30) as response:
        return [tuple(row) for row in json.load(response)]


def steady(seen: list[tuple[float, int, int]], lines: int) -> tuple[tuple[float, int], tuple[float, int]]:
    """The moments at which a tenth and nine tenths had been answered."""
    base = seen[0][1]
    begin = next(row for row in seen if row[1] - base >= lines * 0.1)
    end = next(row for row in seen if row[1] - base >= lines * 0.9)
    return (begin[0], begin[1]), (end[0], end[1])
