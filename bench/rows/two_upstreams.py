"""Two upstreams of speeds 1 and 3: their throughput together, and what the death of one costs.

The speed of an upstream alone is what the same server reaches over it with the limit that finds itself. The
upstream is killed under load: its connections are reset and new ones are refused.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import inputs
from bench.engines import EngineOptions, EngineStub, History, engine
from bench.figures import Bench, Better, Figure, median
from bench.server import Server, serving

ROW = "two upstreams of speeds 1 and 3"
_SLOW = EngineOptions(slots=10, seed=1)
_FAST = EngineOptions(slots=30, seed=2)
_MANY_LINES = 30_000
_SLOW_PER_S, _FAST_PER_S = 100, 300
_KILLED_AFTER_S = 6.0
_REST_S = 10.0
_WARM_S = 4.0  # in which a limit is found


def measure(bench: Bench) -> list[Figure]:
    seconds = bench.sizes.adaptive_s
    together, slow_kept, fast_kept = [], [], []
    slow_alone = _alone(bench, _SLOW, seconds)
    fast_alone = _alone(bench, _FAST, seconds)
    for _ in range(bench.sizes.adaptive_rounds):
        together.append(_together(bench, seconds))
        slow_kept.append(_killed(bench, is_fast_killed=True))
        fast_kept.append(_killed(bench, is_fast_killed=False))
    ratios = [sample["per_s"] / (slow_alone + fast_alone) for sample in together]
    note = f"{slow_alone:.1f} and {fast_alone:.1f} answers/s alone"
    figures = [
        Figure(ROW, "both together over the sum", median(ratios), "x", 0.97, Better.HIGH, note, together)
    ]
    for name, samples, alone in (
        ("the faster", slow_kept, slow_alone),
        ("the slower", fast_kept, fast_alone),
    ):
        lost = max(sample["lost"] for sample in samples)
        beyond = max(sample["again"] - sample["in_flight"] for sample in samples)
        again = ", ".join(f"{sample['again']} of {sample['in_flight']}" for sample in samples)
        kept = median([sample["rest_per_s"] / alone for sample in samples])
        figures += [
            Figure(ROW, f"{name} is killed: lines lost", lost, "", 0, samples=samples),
            Figure(
                ROW,
                f"{name} is killed: lines sent again beyond those in flight there",
                max(0, beyond),
                "",
                0,
                note=f"sent again {again} in flight",
            ),
            Figure(
                ROW,
                f"{name} is killed: the other in the ten seconds after, over alone",
                kept,
                "x",
                0.97,
                Better.HIGH,
            ),
        ]
    return figures


def _alone(bench: Bench, options: EngineOptions, seconds: float) -> float:
    path = inputs.input_file(bench.folder, _MANY_LINES)
    with (
        engine(bench.folder / "engine", options) as stub,
        serving(bench.folder / "data", upstream=stub.url, concurrency=None, source=bench.source) as server,
    ):
        server.create(server.upload(path))
        time.sleep(_WARM_S + seconds)
        history = stub.history()
        return history.rate(_WARM_S, history.length_s)


@contextmanager
def _both(bench: Bench) -> Iterator[tuple[EngineStub, EngineStub, Server]]:
    """The slow engine, the fast one, and a server in front of both."""
    with (
        engine(bench.folder / "engine", _SLOW) as slow,
        engine(bench.folder / "engine", _FAST) as fast,
        serving(
            bench.folder / "data",
            upstream=[f"slow={slow.url}", f"fast={fast.url}"],
            concurrency=None,
            source=bench.source,
        ) as server,
    ):
        yield slow, fast, server


def _together(bench: Bench, seconds: float) -> dict[str, Any]:
    path = inputs.input_file(bench.folder, _MANY_LINES)
    with _both(bench) as (slow, fast, server):
        server.create(server.upload(path))
        time.sleep(_WARM_S + seconds)
        rates = [_steady(stub.history()) for stub in (slow, fast)]
        return {"per_s": sum(rates), "each": rates}


def _steady(history: History) -> float:
    return history.rate(_WARM_S, history.length_s)


def _killed(bench: Bench, *, is_fast_killed: bool) -> dict[str, Any]:
    """A batch of which one upstream dies; it goes on for more than ten seconds at the other."""
    rest_per_s = _SLOW_PER_S if is_fast_killed else _FAST_PER_S
    lines = int(_KILLED_AFTER_S * (_SLOW_PER_S + _FAST_PER_S) + (_REST_S + 3) * rest_per_s)
    with _both(bench) as (slow, fast, server):
        batch_id = server.create(server.upload(inputs.input_file(bench.folder, lines)))
        dying, living = (fast, slow) if is_fast_killed else (slow, fast)
        time.sleep(_KILLED_AFTER_S)
        os.kill(dying.pid, signal.SIGTERM)
        killed_at = time.monotonic()
        counts = server.wait(batch_id)["request_counts"]
        dead, rest = dying.history_of_killed(), living.history()
        from_s = rest.since(killed_at)
        return {
            "lost": counts["total"] - counts["completed"],
            "again": dead.last.received + rest.last.received - lines,
            "in_flight": dead.last.running + dead.last.waiting,
            "rest_per_s": rest.rate(from_s, from_s + _REST_S),
        }
