"""`GET /v1/batches/{id}`: latency while a batch runs at full speed, and requests per second of one core."""

import threading
import time
from typing import Any

from bench import inputs, machine, stubs
from bench.figures import Bench, Better, Figure
from bench.rows.dispatch import WINDOW
from bench.server import Server, serving

ROW = "GET /v1/batches/{id}"
_CONNECTIONS = 16
_BATCHES = 4
"""Together they outlast the polls; the newest is polled."""


def measure(bench: Bench) -> list[Figure]:
    lines = bench.sizes.many_lines[1]
    with (
        stubs.instant(bench.folder / "nginx") as stub,
        serving(bench.folder / "data", upstream=stub.url, concurrency=WINDOW, source=bench.source) as server,
    ):
        file_id = server.upload(inputs.input_file(bench.folder, lines))
        batch_ids = [server.create(file_id) for _ in range(_BATCHES)]
        batch_id = batch_ids[-1]
        server.wait(batch_id, until=("in_progress",))
        times = _polled(server, batch_id, bench.sizes.polls)
        still_running = server.batch(batch_id)["status"] == "in_progress"
        for one in batch_ids:
            if server.batch(one)["status"] == "in_progress":
                server.call("POST", f"/v1/batches/{one}/cancel")
            server.wait(one)
        idle = _many_at_once(server, batch_id, bench.sizes.polls)
    times.sort()
    return [
        Figure(
            ROW,
            "p99 while a batch runs at full speed",
            times[int(len(times) * 0.99)] * 1e3,
            "ms",
            20,
            note="" if still_running else "the batch ended before the polls did",
            samples=[{"ms": [round(seconds * 1e3, 2) for seconds in times[:: max(1, len(times) // 100)]]}],
        ),
        Figure(ROW, "median of the same", times[len(times) // 2] * 1e3, "ms"),
        Figure(ROW, "CPU of the API for one", idle["us"], "us", 500, samples=[idle]),
        Figure(ROW, "a second on one core, by that CPU", 1e6 / idle["us"], "/s", 2_000, Better.HIGH),
        Figure(ROW, "a second as measured, 16 clients", idle["per_s"], "/s"),
    ]


def _polled(server: Server, batch_id: str, polls: int) -> list[float]:
    """One client that polls a hundred times a second, so that it does not slow down the batch."""
    times: list[float] = []
    for _ in range(polls):
        began = time.perf_counter()
        status = server.batch(batch_id)["status"]
        times.append(time.perf_counter() - began)
        if status != "in_progress":
            break
        time.sleep(0.01)
    return times


def _many_at_once(server: Server, batch_id: str, polls: int) -> dict[str, Any]:
    """Sends the requests with wrk if it is installed, otherwise with threads."""
    path = f"/v1/batches/{batch_id}"
    answered = [0] * _CONNECTIONS

    def ask(number: int) -> None:
        client = Server(server.port, server.pid)
        for _ in range(polls // _CONNECTIONS):
            client.call("GET", path)
            answered[number] += 1

    if stubs.program("wrk") is not None:
        with machine.watched(server.pids) as used:
            asked = stubs.wrk_get(server.port, path, connections=_CONNECTIONS, seconds=3)
    else:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(_CONNECTIONS)]
        with machine.watched(server.pids) as used:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        asked = sum(answered)
    return {
        "us": used.cpu_s["api"] / asked * 1e6,
        "per_s": asked / used.wall_s,
        "foreign_share": used.foreign_share,
    }
