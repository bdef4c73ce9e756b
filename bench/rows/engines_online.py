"""Online requests beside a batch on a real vLLM that computes four sequences at once.

The online requests are sent directly to vLLM at a fixed rate, whether or not earlier ones are answered. They
are measured alone, and beside a batch in four ways: a fixed limit and the adaptive one, each with vLLM's
`priority` and without. `make test-engines` installs vLLM and the model.
"""

import http.client
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.figures import Bench, Figure
from bench.rows.engines import APPLIED_S, AUTO, NAME, SOON, input_lines
from bench.server import Server, serving
from tests.engines.install import PYTHON, WEIGHTS
from tests.engines.servers import SEQUENCES, Vllm, running

ROW = "online requests beside a batch on a real vLLM"
_FIXED = 32
_PRIORITY = 10
_TOKENS = 8
_BATCH_LINES = 5_000  # more than are answered while the online requests are measured
_BUSY_S = 8.0  # from the first answer of the batch until the measurement begins
_TIMEOUT_S = 600
WAYS: dict[str, dict[str, Any]] = {
    f"{_FIXED} in flight": {"concurrency": _FIXED, "priority": None},
    f"{_FIXED} in flight, priority {_PRIORITY}": {"concurrency": _FIXED, "priority": _PRIORITY},
    "adaptive": {"concurrency": AUTO, "priority": None},
    f"adaptive, priority {_PRIORITY}": {"concurrency": AUTO, "priority": _PRIORITY},
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of the online requests in ascending order, and lines of the batch per second."""

    latencies_s: Sequence[float]
    lines_per_s: float
    load: float

    def quantile_s(self, share: float) -> float:
        return self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))]


def measure(bench: Bench) -> list[Figure]:
    if not (PYTHON.exists() and (WEIGHTS / "config.json").exists()):
        print("SKIPPED: the row `engines_online` needs what `make test-engines` installs")
        return []
    flags = ["--scheduling-policy", "priority"]
    vllm = Vllm(bench.folder / "vllm-online.log", sequences=SEQUENCES, threads=1, flags=flags)
    with running(vllm):
        return compare(bench, vllm.url)


def compare(bench: Bench, url: str) -> list[Figure]:
    requests, pause_s = bench.sizes.online_requests, bench.sizes.online_pause_s
    with serving(bench.folder / "data", upstream=url, environment=SOON, pinned=False) as server:
        measured = {"alone": Measured(_online(url, requests, pause_s), 0.0, os.getloadavg()[0])}
        _show("alone", measured["alone"])
        for way, fields in WAYS.items():
            with _batch(bench, server, fields) as batch_id:
                began, before = time.monotonic(), _completed(server, batch_id)
                latencies = _online(url, requests, pause_s)
                rate = (_completed(server, batch_id) - before) / (time.monotonic() - began)
                measured[way] = Measured(latencies, rate, os.getloadavg()[0])
                _show(way, measured[way])
    return [figure for way, each in measured.items() for figure in _figures(way, each, measured["alone"])]


def _show(way: str, each: Measured) -> None:
    print(
        f"  {way}: p50 {each.quantile_s(0.5):.2f} s, p99 {each.quantile_s(0.99):.2f} s,"
        f" batch {each.lines_per_s:.2f} lines/s, load {each.load:.1f}",
        flush=True,
    )


def _figures(way: str, each: Measured, alone: Measured) -> Iterator[Figure]:
    p50, p99 = each.quantile_s(0.5), each.quantile_s(0.99)
    note = f"load of the machine {each.load:.1f}"
    if each is not alone:
        note = f"{p99 / alone.quantile_s(0.99):.1f} times as long as alone; {note}"
    yield Figure(ROW, f"{way}: online requests, p50", p50, "s", samples=each.latencies_s)
    yield Figure(ROW, f"{way}: online requests, p99", p99, "s", note=note)
    if each is not alone:
        yield Figure(ROW, f"{way}: the batch", each.lines_per_s, "/s")


@contextmanager
def _batch(bench: Bench, server: Server, fields: dict[str, Any]) -> Iterator[str]:
    """A batch in progress that is cancelled in the end."""
    server.call("PATCH", f"/nightmill/v1/upstreams/{NAME}", fields)
    time.sleep(APPLIED_S)
    path = bench.folder / "online.jsonl"
    path.write_text("".join(f"{line}\n" for line in input_lines(_BATCH_LINES)))
    batch_id = server.create(server.upload(path))
    while not _completed(server, batch_id):
        time.sleep(0.1)
    time.sleep(_BUSY_S)
    yield batch_id
    server.call("POST", f"/v1/batches/{batch_id}/cancel")
    server.wait(batch_id, every_s=0.2)


def _completed(server: Server, batch_id: str) -> int:
    counts = server.batch(batch_id)["request_counts"]
    if counts["failed"]:
        raise RuntimeError(f"lines failed: {counts}")
    completed: int = counts["completed"]
    return completed


def _online(url: str, requests: int, pause_s: float) -> list[float]:
    """Sends a request every `pause_s`; the seconds that each took, in ascending order."""
    bodies = list(itertools.islice(input_lines(requests, tokens=_TOKENS), requests))
    with ThreadPoolExecutor(requests) as threads:
        sent = []
        for line in bodies:
            sent.append(threads.submit(_latency_s, url, json.dumps(json.loads(line)["body"])))
            time.sleep(pause_s)
        return sorted(each.result() for each in sent)


def _latency_s(url: str, body: str) -> float:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)
    began = time.monotonic()
    try:
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"an online request was answered with {response.status}")
    return time.monotonic() - began
