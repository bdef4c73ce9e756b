"""The concurrency limit that finds itself, against the best fixed number of a sweep, on stub engines.

For each engine the same lines are sent with each fixed number and with `auto`; what counts is what the engine
answered. The engines take 50 to 200 ms for a line and need little CPU, so the figures hold on a loaded
machine. The package `saturate`, which has a controller of its own, is measured on the same engines if it can
be installed.
"""

import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import inputs, machine, tools
from bench.engines import EngineOptions, EngineStub, History, engine
from bench.figures import Bench, Better, Figure, median
from bench.rows.dispatch import run_batch
from bench.server import serving

ROW = "the limit that finds itself"
_PEER = "saturate==0.2.0"
_PEER_SCRIPT = Path(__file__).parents[1] / "peers" / "saturate_loop.py"
_MANY_LINES = 30_000
_REFUSED_LINES = 300
_NEAR_BEST = 0.9
_SWEEP_S = 4.0
_CHANGED_S = 3.0  # until a change of the number has reached the worker and the engine's queue


@dataclass(frozen=True, slots=True)
class _Case:
    """An engine, the fixed numbers to try, and the period in which the rates are compared (`from_s` of 1)."""

    name: str
    options: EngineOptions
    fixed: tuple[int, ...]
    steady_from: float = 0.5


def _cases(seconds: float) -> tuple[_Case, ...]:
    third = seconds / 3
    changes = ((third, 16), (2 * third, 32))
    return (
        _Case("saturates at 32", EngineOptions(slots=32), (8, 16, 32, 64, 128)),
        _Case(
            "32 slots, 16 in the middle third",
            EngineOptions(slots=32, changes=changes),
            (16, 32, 64),
            steady_from=0.0,
        ),
        _Case(
            "computes in batches, KV cache of 6,000 tokens",
            EngineOptions(kind="batching", slots=256, kv_tokens=6_000),
            (16, 32, 48, 64, 128),
        ),
    )


def measure(bench: Bench) -> list[Figure]:
    peer = _peer()
    figures: list[Figure] = []
    for case in _cases(bench.sizes.adaptive_s):
        figures += _compared(bench, case, peer)
    return figures + _refused(bench, peer)


def _peer() -> Path | str:
    """The interpreter of the peer's venv, or why it is not there."""
    try:
        return tools.venv("saturate", _PEER) / "python"
    except tools.CannotInstallError as error:
        return str(error)


# Engines that take everything: answers per second.


def _compared(bench: Bench, case: _Case, peer: Path | str) -> list[Figure]:
    seconds = bench.sizes.adaptive_s
    from_s = case.steady_from * seconds
    options = replace(case.options, gauges=False)
    if options.changes:
        sweep = {number: _ours(bench, options, number, seconds) for number in case.fixed}
        rates = {number: history.rate(from_s, seconds) for number, history in sweep.items()}
    else:
        rates = _sweep(bench, options, case.fixed)
    best = max(rates, key=lambda number: rates[number])
    best_rate = rates[best]
    listed = ", ".join(f"{number}: {rate:.0f}" for number, rate in rates.items())
    figures = [
        Figure(
            ROW,
            f"{case.name}: the best fixed number",
            best,
            "",
            note=f"answers/s by number {listed}",
            samples=[{str(number): rate for number, rate in rates.items()}],
        )
    ]
    for has_gauges in (False, True):
        options = replace(case.options, gauges=has_gauges)
        name = f"{case.name}, {'with' if has_gauges else 'no'} gauges"
        rounds = [_ours(bench, options, None, seconds) for _ in range(bench.sizes.adaptive_rounds)]
        found = median([history.rate(from_s, seconds) for history in rounds]) / best_rate
        in_flight = median([history.in_flight(from_s, seconds) for history in rounds])
        reached_s = median([history.reached_s(_NEAR_BEST * best_rate) for history in rounds])
        note = f"90% after {reached_s:.1f} s; {in_flight:.0f} in flight"
        if case.options.changes:
            again = [
                history.reached_s(_NEAR_BEST * best_rate, from_s=case.options.changes[-1][0])
                for history in rounds
            ]
            note += f"; 90% again {median(again):.1f} s after the slots are back"
        samples = [_summary(history) for history in rounds]
        figures.append(
            Figure(ROW, f"{name}: over the best fixed", found, "x", 0.9, Better.HIGH, note, samples)
        )
        theirs = _theirs(bench, options, peer, seconds)
        figures.append(_peer_figure(f"{name}: saturate", theirs, best_rate, from_s, seconds))
    return figures


def _peer_figure(name: str, theirs: History | str, best_rate: float, from_s: float, seconds: float) -> Figure:
    if isinstance(theirs, str):
        return Figure(ROW, name, math.nan, "x", note=theirs)
    reached_s = theirs.reached_s(_NEAR_BEST * best_rate)
    reached = f"90% after {reached_s:.1f} s" if reached_s < math.inf else f"90% not within {seconds:.0f} s"
    note = f"{reached}; {theirs.in_flight(from_s, seconds):.0f} in flight"
    return Figure(ROW, name, theirs.rate(from_s, seconds) / best_rate, "x", note=note)


def _summary(history: History) -> dict[str, Any]:
    seconds = range(int(history.length_s))
    return {
        "per_s": [round(history.rate(second, second + 1)) for second in seconds],
        "in_flight": [round(history.in_flight(second, second + 1)) for second in seconds],
    }


def _ours(bench: Bench, options: EngineOptions, concurrency: int | None, seconds: float) -> History:
    path = inputs.input_file(bench.folder, _MANY_LINES)
    with (
        engine(bench.folder / "engine", options) as stub,
        serving(
            bench.folder / "data", upstream=stub.url, concurrency=concurrency, source=bench.source
        ) as server,
    ):
        server.create(server.upload(path))
        return _after(stub, seconds)


def _sweep(bench: Bench, options: EngineOptions, numbers: tuple[int, ...]) -> dict[int, float]:
    """Answers per second by fixed number, one after the other on the same server."""
    path = inputs.input_file(bench.folder, _MANY_LINES)
    rates: dict[int, float] = {}
    with (
        engine(bench.folder / "engine", options) as stub,
        serving(
            bench.folder / "data", upstream=stub.url, concurrency=numbers[0], source=bench.source
        ) as server,
    ):
        server.create(server.upload(path))
        _after(stub, _CHANGED_S)
        for number in numbers:
            server.call("PATCH", "/nightmill/v1/upstreams/default", {"concurrency": number})
            time.sleep(_CHANGED_S)
            begins_s = stub.history().length_s
            time.sleep(_SWEEP_S)
            history = stub.history()
            rates[number] = history.rate(begins_s, history.length_s)
    return rates


def _theirs(bench: Bench, options: EngineOptions, peer: Path | str, seconds: float) -> History | str:
    if isinstance(peer, str):
        return peer
    path = inputs.input_file(bench.folder, _MANY_LINES)
    with engine(bench.folder / "engine", options) as stub, _pump(peer, stub, path):
        return _after(stub, seconds)


def _after(stub: EngineStub, seconds: float) -> History:
    """The history of the engine once its first request is `seconds` ago."""
    until = time.monotonic() + 60
    while (history := stub.history()).last.received == 0:
        if time.monotonic() > until:
            raise RuntimeError("the engine was sent no request")
        time.sleep(0.05)
    time.sleep(max(0.0, seconds + 0.1 - history.length_s))
    return stub.history()


@contextmanager
def _pump(python: Path, stub: EngineStub, path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    child = subprocess.Popen(
        [str(python), str(_PEER_SCRIPT), stub.url, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait(10)


# An engine that refuses: calls for each answer.


def _refused(bench: Bench, peer: Path | str) -> list[Figure]:
    options = EngineOptions(kind="refusing", slots=4, gauges=False)
    best = min((_batch_s(bench, options, number)[1], number) for number in (2, 3, 4))
    rounds = [_batch_s(bench, options, None) for _ in range(bench.sizes.adaptive_rounds)]
    calls = median([history.last.received / history.last.answered for history, _ in rounds])
    seconds = median([seconds for _, seconds in rounds])
    name = f"429 beyond 4, {_REFUSED_LINES} lines"
    samples = [{"calls": history.last.received, "s": seconds} for history, seconds in rounds]
    figures = [
        Figure(ROW, f"{name}: calls for each answer", calls, "", 1.1, samples=samples),
        Figure(
            ROW,
            f"{name}: best fixed number's time over ours",
            best[0] / seconds,
            "x",
            0.9,
            Better.HIGH,
            note=f"{seconds:.1f} s; fixed at {best[1]}: {best[0]:.1f} s",
        ),
    ]
    name = f"{name}: saturate's calls for each answer"
    if isinstance(peer, str):
        return [*figures, Figure(ROW, name, math.nan, "", note=peer)]
    path = inputs.input_file(bench.folder, _REFUSED_LINES)
    began = time.monotonic()
    with engine(bench.folder / "engine", options) as stub, _pump(peer, stub, path) as child:
        with suppress(subprocess.TimeoutExpired):
            child.wait(120)
        took_s, last = time.monotonic() - began, stub.history().last
    note = f"{last.answered} answered in {took_s:.0f} s"
    return [*figures, Figure(ROW, name, last.received / max(1, last.answered), "", note=note)]


def _batch_s(bench: Bench, options: EngineOptions, concurrency: int | None) -> tuple[History, float]:
    """What the engine saw of a batch, and the seconds from `create` until the batch was completed."""
    path = inputs.input_file(bench.folder, _REFUSED_LINES)
    with (
        engine(bench.folder / "engine", options) as stub,
        serving(
            bench.folder / "data", upstream=stub.url, concurrency=concurrency, source=bench.source
        ) as server,
    ):
        file_id = server.upload(path)
        with machine.watched(server.pids) as used:
            run_batch(server, file_id, lines=_REFUSED_LINES)
        return stub.history(), used.wall_s
