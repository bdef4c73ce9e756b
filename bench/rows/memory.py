"""Resident memory and the cost of a line for growing batches, and for answers of 40 KB."""

from typing import Any

from bench import inputs, machine, stubs
from bench.figures import Bench, Figure
from bench.rows.dispatch import WINDOW, run_batch
from bench.server import serving

ROW = "many lines"
_LONG_ANSWER_BYTES = 40_000


def measure(bench: Bench) -> list[Figure]:
    samples = [_one(bench, lines, inputs.ANSWER_BYTES) for lines in bench.sizes.many_lines]
    first, last = samples[0], samples[-1]
    figures: list[Figure] = []
    for sample in samples:
        lines = f"{sample['lines']:,} lines"
        figures += [
            Figure(
                ROW, f"peak memory of the dispatcher, {lines}", sample["memory_mib"]["worker 0"], "MiB", 60
            ),
            Figure(ROW, f"peak memory of the API, {lines}", sample["memory_mib"]["api"], "MiB", 100),
            Figure(ROW, f"peak memory of the keeper, {lines}", sample["memory_mib"]["keeper"], "MiB", 100),
        ]
    for name, what in (("worker 0", "dispatcher"), ("api", "API"), ("keeper", "keeper")):
        growth = last["memory_mib"][name] / first["memory_mib"][name]
        text = f"memory of the {what}, {last['lines']:,} over {first['lines']:,} lines"
        figures.append(Figure(ROW, text, growth, "x", 1.1))
    costs = [sum(sample["us"].values()) for sample in samples]
    text = f"CPU per line, {last['lines']:,} over {first['lines']:,} lines"
    figures.append(Figure(ROW, text, costs[-1] / costs[0], "x", 1.1, samples=samples))
    long = _one(bench, bench.sizes.long_answer_lines, _LONG_ANSWER_BYTES)
    name = f"peak memory of the dispatcher, {long['lines']:,} answers of 40 KB"
    return [*figures, Figure(ROW, name, long["memory_mib"]["worker 0"], "MiB", 150, samples=[long])]


def _one(bench: Bench, lines: int, answer_bytes: int) -> dict[str, Any]:
    with (
        stubs.instant(bench.folder / "nginx", answer_bytes=answer_bytes) as stub,
        serving(bench.folder / "data", upstream=stub.url, concurrency=WINDOW, source=bench.source) as server,
    ):
        path = inputs.input_file(bench.folder, lines)
        file_id = server.upload(path)
        if lines > 1_000_000:
            path.unlink()
        with machine.watched({**server.pids, "stub": stub.pid}) as used:
            run_batch(server, file_id, lines=lines)
        return {
            "lines": lines,
            "us": {name: used.cpu_s[name] / lines * 1e6 for name in server.pids},
            "memory_mib": {name: machine.memory_mib(pid) for name, pid in server.pids.items()},
            "lines_per_s": lines / used.wall_s,
            "foreign_share": used.foreign_share,
        }
