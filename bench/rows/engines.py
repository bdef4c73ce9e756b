"""The adaptive limit on real engines, beside fixed limits: vLLM and llama.cpp on the CPU with a small model.

All runs of an engine send lines of the same kind through one server, whose `concurrency` is changed between
runs. The limits take turns, because other work on the machine slows single runs down. `make test-engines`
installs the engines and the model.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.figures import Bench, Better, Figure, median
from bench.server import Server, serving
from tests.engines.install import GGUF, PYTHON, WEIGHTS
from tests.engines.servers import MODEL, Llama, ModelServer, Vllm, running

ROW = "the adaptive limit on real engines"
LIMITS = (1, 2, 4, 8, 16, 32)
AUTO = "auto"
NAME = "default"
_TOKENS = 8
_TARGET = 0.9
APPLIED_S = 2.5  # a worker takes a changed setting over within a second or two
_POLL_S = 0.2
SOON = {"NIGHTMILL_WORKER__BEAT_S": "0.1", "NIGHTMILL_UPSTREAM__TIMEOUT_S": "1800"}
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Run:
    """One batch: lines a second, and for the adaptive limit what was found.

    The lines for each second of CPU that the engine used hardly depend on other work on the machine.
    """

    limit: int | str
    lines_per_s: float
    lines_per_cpu_s: float
    load: float
    found: int | None = None
    rule: str | None = None
    advice: str | None = None
    engine: str | None = None


def measure(bench: Bench) -> list[Figure]:
    if not (PYTHON.exists() and (WEIGHTS / "config.json").exists() and GGUF.exists()):
        print("SKIPPED: the row `engines` needs what `make test-engines` installs")
        return []
    model = bench.folder / f"{MODEL}.gguf"
    model.unlink(missing_ok=True)
    model.symlink_to(GGUF)
    engines: dict[str, ModelServer] = {
        "llama.cpp, 4 slots": Llama(bench.folder / "llama.log", model),
        "vLLM, --max-num-seqs 4": Vllm(bench.folder / "vllm-4.log", sequences=4, threads=1),
        "vLLM, defaults": Vllm(bench.folder / "vllm.log", sequences=None, threads=1),
    }
    figures: list[Figure] = []
    for name, engine in engines.items():
        with running(engine):
            figures += compare(bench, name, engine)
    return figures


def compare(bench: Bench, name: str, engine: ModelServer) -> list[Figure]:
    """The adaptive limit and the fixed ones on one engine."""
    lines = bench.sizes.engine_lines
    runs: list[Run] = []
    with serving(bench.folder / "data", upstream=engine.url, environment=SOON, pinned=False) as server:
        set_limit(server, AUTO)
        first = run(bench.folder, server, engine, AUTO, lines=lines)
        print(f"  {name}: {first}", flush=True)
        for _ in range(bench.sizes.engine_rounds):
            for limit in (*LIMITS[:3], AUTO, *LIMITS[3:], AUTO):
                set_limit(server, limit)
                runs.append(run(bench.folder, server, engine, limit, lines=_lines_for(limit, lines)))
                print(f"  {name}: {runs[-1]}", flush=True)
    return figures_of(name, first, runs)


def figures_of(engine: str, first: Run, runs: list[Run]) -> list[Figure]:
    rates = {limit: _median(runs, limit, "lines_per_s") for limit in (*LIMITS, AUTO)}
    efficiencies = {limit: _median(runs, limit, "lines_per_cpu_s") for limit in (*LIMITS, AUTO)}
    best = max(LIMITS, key=rates.__getitem__)
    most_efficient = max(LIMITS, key=efficiencies.__getitem__)
    last = [each for each in runs if each.limit == AUTO][-1]
    loads = [each.load for each in runs]
    return [
        Figure(ROW, f"{engine}: best fixed limit, {best}", rates[best], "/s", note=_swept(rates)),
        Figure(
            ROW,
            f"{engine}: the adaptive limit over the best fixed one",
            rates[AUTO] / rates[best],
            "x",
            _TARGET,
            Better.HIGH,
            note=f"{last.found} by `{last.rule}`" + (f"; {last.advice}" if last.advice else ""),
            samples=[asdict(each) for each in (first, *runs)],
        ),
        Figure(
            ROW,
            f"{engine}: the same in lines for each CPU second of the engine",
            efficiencies[AUTO] / efficiencies[most_efficient],
            "x",
            _TARGET,
            Better.HIGH,
            note=_swept(efficiencies),
        ),
        Figure(
            ROW,
            f"{engine}: the first batch, from an unknown limit, over the best",
            first.lines_per_s / rates[best],
            "x",
            note=f"load of the machine {min(loads):.1f} to {max(loads):.1f}",
        ),
    ]


def _median(runs: list[Run], limit: int | str, name: str) -> float:
    return median([getattr(each, name) for each in runs if each.limit == limit])


def _swept(rates: dict[int | str, float]) -> str:
    return "by limit: " + ", ".join(f"{limit}: {rate:.2f}" for limit, rate in rates.items())


def set_limit(server: Server, limit: int | str) -> None:
    server.call("PATCH", f"/nightmill/v1/upstreams/{NAME}", {"concurrency": limit})
    time.sleep(APPLIED_S)


def run(folder: Path, server: Server, engine: ModelServer, limit: int | str, *, lines: int) -> Run:
    """One batch, timed from its creation until the last line is answered."""
    path = folder / "engines.jsonl"
    path.write_text("".join(f"{line}\n" for line in input_lines(lines)))
    file_id = server.upload(path)
    assert engine.process is not None
    cpu_s = machine.tree_cpu_s(engine.process.pid)
    began = time.monotonic()
    batch_id = server.create(file_id)
    live: dict[str, Any] = {}
    while (counts := server.batch(batch_id)["request_counts"])["completed"] < lines:
        if counts["failed"]:
            raise RuntimeError(f"lines failed: {counts}")
        live = _live(server) or live
        time.sleep(_POLL_S)
    rate = lines / (time.monotonic() - began)
    per_cpu_s = lines / (machine.tree_cpu_s(engine.process.pid) - cpu_s)
    load = os.getloadavg()[0]
    if limit != AUTO or not live:
        return Run(limit, rate, per_cpu_s, load)
    [model] = live["per_model"]
    gauges = live["gauges"] or {}
    return Run(
        limit, rate, per_cpu_s, load, model["limit"], model["rule"], model["advice"], gauges.get("engine")
    )


def input_lines(count: int, *, tokens: int = _TOKENS) -> Iterator[str]:
    """Lines whose prompts were not sent before, so that no run finds its prompts in an engine's cache."""
    for _ in range(count):
        number = next(_numbers)
        message = {"role": "user", "content": f"{number} is a number. Name another."}
        body = {
            "model": MODEL,
            "messages": [message],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line)


def _lines_for(limit: int | str, lines: int) -> int:
    """Fewer lines for the lowest limits, where a batch takes longest and its tail is short."""
    return lines // 4 if limit == 1 else lines // 2 if limit == 2 else lines


def _live(server: Server) -> dict[str, Any] | None:
    live = server.call("GET", f"/nightmill/v1/upstreams/{NAME}")["live"]
    return live if live and live["per_model"] and live["gauges"] else None
