"""Speed of validation: CPU of the keeper process, and the time until the batch leaves `validating`."""

import time
from pathlib import Path
from typing import Any

from bench import inputs, machine, stubs
from bench.figures import Bench, Better, Figure, median, quiet_first
from bench.server import serving

ROW = "intake, every check on"
_LONG_LINES = 50_000
_SHORT_LINE_BYTES = 200
_MIB = 1 << 20


def measure(bench: Bench) -> list[Figure]:
    lines = _LONG_LINES * bench.sizes.intake_mib // 200
    size_mb = bench.sizes.intake_mib * _MIB / 1e6
    long = inputs.input_file(bench.folder, lines, line_bytes=bench.sizes.intake_mib * _MIB // lines)
    many = bench.sizes.intake_lines
    short = inputs.input_file(bench.folder, many, line_bytes=_SHORT_LINE_BYTES)
    of_long = _intake(bench, long, rounds=bench.sizes.rounds)
    of_short = _intake(bench, short, rounds=1)
    short.unlink()
    kept = quiet_first(of_long)
    cpu_s = median([sample["cpu_s"] for sample in kept])
    full = bench.sizes.intake_mib == 200
    return [
        Figure(
            ROW,
            f"{bench.sizes.intake_mib} MiB in {lines:,} lines: time until in_progress",
            median([sample["wall_s"] for sample in kept]),
            "s",
            0.35 if full else None,
            samples=of_long,
        ),
        Figure(ROW, "the same: CPU of the keeper", cpu_s, "s", 0.35 if full else None),
        Figure(ROW, "the same: on one core", size_mb / cpu_s, "MB/s", 600, Better.HIGH),
        Figure(
            ROW,
            f"{many:,} lines of {_SHORT_LINE_BYTES} bytes: time until in_progress",
            of_short[0]["wall_s"],
            "s",
            20 if many == 10_000_000 else None,
            samples=of_short,
        ),
        Figure(
            ROW,
            "the same: CPU of the keeper per line",
            of_short[0]["cpu_s"] / many * 1e6,
            "us",
            2.0,
            note=f"peak memory of the keeper {of_short[0]['memory_mib']:.0f} MiB",
        ),
    ]


def _intake(bench: Bench, path: Path, *, rounds: int) -> list[dict[str, Any]]:
    """The upstream never answers, so that nothing but intake works."""
    samples: list[dict[str, Any]] = []
    with (
        stubs.slow(mean_s=3600) as stub,
        serving(
            bench.folder / "data", upstream=stub.url, concurrency=1, source=bench.source, pinned=False
        ) as server,
    ):
        file_id = server.upload(path)
        keeper = {"keeper": server.pids["keeper"]}
        for _ in range(rounds):
            machine.wait_for_quiet()
            with machine.watched(keeper) as used:
                batch_id = server.create(file_id)
                server.wait(batch_id, every_s=0.01, until=("in_progress",))
            assert server.batch(batch_id)["status"] == "in_progress"
            samples.append(
                {
                    "wall_s": used.wall_s,
                    "cpu_s": used.cpu_s["keeper"],
                    "foreign_share": used.foreign_share,
                    "memory_mib": machine.memory_mib(keeper["keeper"]),
                }
            )
            server.call("POST", f"/v1/batches/{batch_id}/cancel")
            time.sleep(0.2)
    return samples
