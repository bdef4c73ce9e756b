"""CPU per line against an earlier version, in turns on the same upstream, with wrk in the same rounds.

The servers run side by side, one at work at a time. The load of a shared machine changes within minutes, so
only batches that follow each other are compared. The new version runs in three forms: as the earlier one,
with the limit that finds itself, and with that limit and two upstreams. Needs `--before` with a `src` folder
of the earlier version, which the interpreter of this environment must be able to run.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import inputs, machine, stubs
from bench.figures import Bench, Figure, median
from bench.rows.dispatch import WINDOW, run_batch
from bench.server import Server, serving

ROW = "a chat batch against the version before"
_BEFORE, _FIXED = "before", "256 in flight"
_FORMS = (_BEFORE, _FIXED, "limit found, at most 256", "two upstreams, limits found")
_WARM_UP_LINES = 20_000
_WRK_S = 1.0
_KEPT = 3
_ROUNDS_TIMES = 2


def measure(bench: Bench) -> list[Figure]:
    if bench.before is None:
        print("SKIPPED: before needs --before SRC of an earlier version")
        return []
    lines = bench.sizes.batch_lines
    samples = _rounds(bench, bench.before, lines)
    figures: list[Figure] = []
    for place in ("in all", "in the dispatcher"):
        best = {form: _best(samples, form, place) for form in _FORMS}
        figures.append(Figure(ROW, f"{_BEFORE}: CPU per line {place}", best[_BEFORE], "us", samples=samples))
        for form in _FORMS[1:]:
            ratios = [_us(sample, form, place) / _us(sample, _BEFORE, place) for sample in samples]
            note = f"{best[form]:.1f} us; median of the rounds {median(ratios):.3f}"
            name = f"{form}: CPU per line {place}, over before"
            figures.append(Figure(ROW, name, best[form] / best[_BEFORE], "x", 1.05, note=note))
    wrk = min(sample["wrk_us"] for sample in samples)
    return [*figures, Figure(ROW, "wrk, CPU per request, best of the rounds", wrk, "us")]


def _us(sample: dict[str, Any], form: str, place: str) -> float:
    us = sample["forms"][form]["us"]
    return float(us["worker 0"] if place == "in the dispatcher" else sum(us.values()))


def _best(samples: list[dict[str, Any]], form: str, place: str) -> float:
    """The median of the rounds with the lowest figures: other programs only ever add to the cost."""
    return median(sorted(_us(sample, form, place) for sample in samples)[:_KEPT])


def _rounds(bench: Bench, before: Path, lines: int) -> list[dict[str, Any]]:
    path = inputs.input_file(bench.folder, lines)
    warm_up = inputs.input_file(bench.folder, _WARM_UP_LINES)
    samples: list[dict[str, Any]] = []
    most = {"NIGHTMILL_UPSTREAM__MAX_CONCURRENCY": str(WINDOW)}
    with ExitStack() as stack:
        stub = stack.enter_context(stubs.instant(bench.folder / "nginx"))
        two = [f"a={stub.url}", f"b={stub.url}"]
        half = {"NIGHTMILL_UPSTREAM__MAX_CONCURRENCY": str(WINDOW // 2)}
        opened = (
            serving(bench.folder / "0", upstream=stub.url, concurrency=WINDOW, source=before),
            serving(bench.folder / "1", upstream=stub.url, concurrency=WINDOW, source=bench.source),
            serving(
                bench.folder / "2",
                upstream=stub.url,
                concurrency=None,
                source=bench.source,
                environment=most,
            ),
            serving(
                bench.folder / "3", upstream=two, concurrency=None, source=bench.source, environment=half
            ),
        )
        servers = dict(zip(_FORMS, map(stack.enter_context, opened), strict=True))
        for server in servers.values():
            run_batch(server, server.upload(warm_up), lines=_WARM_UP_LINES)
        files = {form: server.upload(path) for form, server in servers.items()}
        for number in range(_ROUNDS_TIMES * bench.sizes.rounds):
            machine.wait_for_quiet()
            wrk = stubs.wrk(
                bench.folder, stub, connections=WINDOW, seconds=_WRK_S, line_bytes=inputs.LINE_BYTES
            )
            turns = _FORMS if number % 2 else tuple(reversed(_FORMS))
            forms = {form: _batch(servers[form], files[form], stub, lines) for form in turns}
            samples.append({"forms": forms, "wrk_us": wrk.cpu_s / wrk.requests * 1e6})
    return samples


def _batch(server: Server, file_id: str, stub: stubs.Stub, lines: int) -> dict[str, Any]:
    with machine.watched({**server.pids, "stub": stub.pid}) as used:
        run_batch(server, file_id, lines=lines)
    return {
        "us": {name: used.cpu_s[name] / lines * 1e6 for name in server.pids},
        "lines_per_s": lines / used.wall_s,
        "foreign_share": used.foreign_share,
    }
