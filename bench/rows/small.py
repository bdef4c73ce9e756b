"""The fixed cost of a batch: ten lines, from `create` to `completed` as a polling client sees it."""

import time
from typing import Any

from bench import inputs, machine, stubs
from bench.figures import Bench, Figure, median, quiet_first
from bench.server import serving

ROW = "a batch of 10 lines"
_LINES = 10
_POLL_S = 0.01
_PAUSE_S = 0.1


def measure(bench: Bench) -> list[Figure]:
    samples: list[dict[str, Any]] = []
    with (
        stubs.instant(bench.folder / "nginx") as stub,
        serving(bench.folder / "data", upstream=stub.url, source=bench.source, pinned=False) as server,
    ):
        file_id = server.upload(inputs.input_file(bench.folder, _LINES))
        for _ in range(bench.sizes.small_batches):
            time.sleep(_PAUSE_S)
            with machine.watched({**server.pids, "stub": stub.pid}) as used:
                server.wait(server.create(file_id), every_s=_POLL_S)
            samples.append({"ms": used.wall_s * 1e3, "foreign_share": used.foreign_share})
    times = sorted(sample["ms"] for sample in quiet_first(samples))
    return [
        Figure(ROW, "create to completed, median", median(times), "ms", 100, samples=samples),
        Figure(ROW, "create to completed, slowest", times[-1], "ms"),
    ]
