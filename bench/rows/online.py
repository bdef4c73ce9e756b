"""Requests of people beside a batch, on a stub engine with 32 slots and gauges.

The people send at random moments, whatever is answered. Their latency is measured alone, beside a batch with
the limit that finds itself, beside one with half the `share`, and beside one with a fixed number that is too
high. What the batch loses to them is compared with what they take.
"""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from bench import inputs
from bench.engines import EngineOptions, EngineStub, engine
from bench.figures import Bench, Better, Figure
from bench.server import serving

ROW = "requests of people beside a batch"
_ENGINE = EngineOptions(slots=32)
_PER_S = 40.0
_MANY_LINES = 60_000
_SETTLED_S = 8.0
_TOO_MANY = 128
_ANSWER_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class _Form:
    name: str
    concurrency: int | None
    environment: dict[str, str]
    target: float | None = None


_FORMS = (
    _Form("the limit found", None, {}, 1.5),
    _Form("the limit found, share = 0.5", None, {"NIGHTMILL_UPSTREAM__SHARE": "0.5"}),
    _Form(f"{_TOO_MANY} in flight", _TOO_MANY, {}),
)


def measure(bench: Bench) -> list[Figure]:
    seconds = bench.sizes.online_s
    with engine(bench.folder / "engine", _ENGINE) as stub:
        alone = asyncio.run(_people(stub, seconds))
    alone_s = _percentile(alone, 0.99)
    figures = [Figure(ROW, "p99 without a batch", alone_s, "s", note=f"median {_percentile(alone, 0.5):.3f}")]
    for form in _FORMS:
        sample = _beside(bench, form, seconds)
        p99_s, people_per_s = sample["p99_s"], sample["people_per_s"]
        note = f"{p99_s / alone_s:.2f} times that without; median {sample['median_s']:.3f}"
        target = None if form.target is None else form.target * alone_s
        figures.append(
            Figure(ROW, f"p99 beside a batch, {form.name}", p99_s, "s", target, note=note, samples=[sample])
        )
        left = max(1.0, sample["before_per_s"] - people_per_s)
        figures.append(
            Figure(
                ROW,
                f"batch throughput over what is left, {form.name}",
                sample["during_per_s"] / left,
                "x",
                0.9 if form.target else None,
                Better.HIGH,
                note=f"{sample['before_per_s']:.0f} answers/s before, {sample['during_per_s']:.0f} beside",
            )
        )
    return figures


def _beside(bench: Bench, form: _Form, seconds: float) -> dict[str, Any]:
    path = inputs.input_file(bench.folder, _MANY_LINES)
    with (
        engine(bench.folder / "engine", _ENGINE) as stub,
        serving(
            bench.folder / "data",
            upstream=stub.url,
            concurrency=form.concurrency,
            source=bench.source,
            environment=form.environment,
        ) as server,
    ):
        server.create(server.upload(path))
        time.sleep(_SETTLED_S)
        before = stub.history()
        before_per_s = before.rate(before.length_s - _SETTLED_S / 2, before.length_s)
        began = time.monotonic()
        latencies = asyncio.run(_people(stub, seconds))
        history = stub.history()
        from_s = history.since(began)
        rate = history.rate(from_s, from_s + seconds)
    people_per_s = len(latencies) / seconds
    return {
        "p99_s": _percentile(latencies, 0.99),
        "median_s": _percentile(latencies, 0.5),
        "before_per_s": before_per_s,
        "during_per_s": rate - people_per_s,
        "people_per_s": people_per_s,
        "in_flight": history.in_flight(from_s, from_s + seconds),
    }


def _percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def _people(stub: EngineStub, seconds: float) -> list[float]:
    """The latencies of requests that begin at random moments."""
    chance = random.Random(5)
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    requests: list[asyncio.Task[float]] = []
    while loop.time() < until:
        requests.append(asyncio.create_task(_ask(stub, len(requests))))
        await asyncio.sleep(chance.expovariate(_PER_S))
    return list(await asyncio.gather(*requests))


async def _ask(stub: EngineStub, number: int) -> float:
    began = time.perf_counter()
    async with asyncio.timeout(_ANSWER_WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", stub.port)
        body = inputs.body(number)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        if b"200" not in await reader.readline():
            raise RuntimeError("a request of the people was refused")
        seconds = time.perf_counter() - began
        writer.close()
        return seconds
