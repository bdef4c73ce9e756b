"""A batch of 10 lines behind a large one, on an upstream with all slots busy, against the batch alone."""

import time
from typing import Any

from bench import inputs
from bench.engines import EngineOptions, engine
from bench.figures import Bench, Figure, median
from bench.server import Server, serving

ROW = "a small batch behind a large one"
_ENGINE = EngineOptions(slots=16)
_LINES = 10
_BEHIND_S = 4.0
_PAUSE_S = 1.0
_POLL_S = 0.01
_LINE_S = 0.15  # of the longest line


def measure(bench: Bench) -> list[Figure]:
    figures: list[Figure] = []
    for concurrency in (_ENGINE.slots, None):
        alone, behind = _rounds(bench, concurrency)
        form = "concurrency found" if concurrency is None else f"{concurrency} in flight, all busy"
        for name, key in (("create to first answer", "first_s"), ("create to last answer", "last_s")):
            alone_s = median([sample[key] for sample in alone])
            behind_s = median([sample[key] for sample in behind])
            figures.append(
                Figure(
                    ROW,
                    f"{form}: {name}, behind {bench.sizes.large_lines:,} lines",
                    behind_s,
                    "s",
                    2 if key == "first_s" else None,
                    note=f"alone {alone_s:.2f} s; slowest {max(sample[key] for sample in behind):.2f} s",
                    samples=[{"alone": alone, "behind": behind}],
                )
            )
    return figures


def _rounds(bench: Bench, concurrency: int | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    small = inputs.input_file(bench.folder, _LINES)
    with (
        engine(bench.folder / "engine", _ENGINE) as stub,
        serving(
            bench.folder / "data", upstream=stub.url, concurrency=concurrency, source=bench.source
        ) as server,
    ):
        file_id = server.upload(small)
        count = bench.sizes.small_batches
        alone = [_timed(server, file_id) for _ in range(count)]
        large = server.create(server.upload(inputs.input_file(bench.folder, bench.sizes.large_lines)))
        server.wait(large, until=("in_progress",))
        time.sleep(_BEHIND_S)
        behind = [_timed(server, file_id) for _ in range(count)]
        counts = server.batch(large)["request_counts"]
        if counts["completed"] >= counts["total"]:
            raise RuntimeError("the large batch ended too soon")
        return alone, behind


def _timed(server: Server, file_id: str) -> dict[str, Any]:
    time.sleep(_PAUSE_S)
    began = time.monotonic()
    batch_id = server.create(file_id)
    first_s = 0.0
    while True:
        answered = server.batch(batch_id)["request_counts"]["completed"]
        if answered and not first_s:
            first_s = time.monotonic() - began
        if answered == _LINES:
            return {"first_s": first_s, "last_s": time.monotonic() - began}
        time.sleep(_POLL_S)
