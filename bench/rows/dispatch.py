"""The cost of a line from `create` to `completed`, and the ratio to wrk, on an instant upstream.

wrk runs before and after each batch on the same upstream with the same bodies, because on a shared machine
only the ratio of the two is meaningful. CPU per line can be measured on a loaded machine, but it also rises
when caches are shared, so the same ratio is given for it.
"""

from typing import Any

from bench import inputs, machine, stubs
from bench.figures import Bench, Better, Figure, median, quiet_first
from bench.server import Server, serving

ROW = "a chat batch on an instant upstream"
WINDOW = 256
_WARM_UP_LINES = 5_000
_WRK_S = 2.0
_POLL_S = 0.1


def measure(bench: Bench) -> list[Figure]:
    lines = bench.sizes.batch_lines
    one = _rounds(bench, lines=lines, workers=1)
    two = _rounds(bench, lines=lines, workers=2)
    kept = quiet_first(one)
    dispatcher = median([sample["us"]["worker 0"] for sample in kept])
    everything = median([sum(sample["us"].values()) for sample in kept])
    wrk = median([sample["wrk_us"] for sample in kept])
    speed = median([sample["speed"] for sample in kept])
    figures = [
        Figure(ROW, f"CPU per line, all in, {lines:,} lines", everything, "us", 22, samples=one),
        Figure(ROW, "of it in the dispatcher", dispatcher, "us", 17),
        Figure(ROW, "of it in the API", median([sample["us"]["api"] for sample in kept]), "us"),
        Figure(ROW, "of it in intake", median([sample["intake_us"] for sample in kept]), "us"),
        Figure(ROW, "of it in the finalizer", median([sample["finalizer_us"] for sample in kept]), "us"),
        Figure(ROW, "wrk, CPU per request in the same rounds", wrk, "us", note="6.2 on a quiet machine"),
        Figure(ROW, "CPU per line, all in, as multiples of wrk's", everything / wrk, "x", 22 / 6.2),
        Figure(ROW, "of it in the dispatcher, as multiples of wrk's", dispatcher / wrk, "x", 17 / 6.2),
        Figure(ROW, "lines a second over wrk, one worker", speed, "x", 0.45, Better.HIGH),
    ]
    rates = median([sample["speed"] for sample in quiet_first(two)])
    figures.append(
        Figure(
            ROW,
            "lines a second over wrk, two workers",
            rates,
            "x",
            note="two cores hold two workers, nginx and the server: no room to scale",
            samples=two,
        )
    )
    return figures


def _rounds(bench: Bench, *, lines: int, workers: int) -> list[dict[str, Any]]:
    path = inputs.input_file(bench.folder, lines)
    warm_up = inputs.input_file(bench.folder, _WARM_UP_LINES)
    samples: list[dict[str, Any]] = []
    with (
        stubs.instant(bench.folder / "nginx") as stub,
        serving(
            bench.folder / "data",
            upstream=stub.url,
            concurrency=WINDOW,
            workers=workers,
            source=bench.source,
        ) as server,
    ):
        run_batch(server, server.upload(warm_up), lines=_WARM_UP_LINES)
        file_id = server.upload(path)
        for _ in range(bench.sizes.rounds):
            machine.wait_for_quiet()
            before = stubs.wrk(
                bench.folder, stub, connections=WINDOW, seconds=_WRK_S, line_bytes=inputs.LINE_BYTES
            )
            with machine.watched({**server.pids, "stub": stub.pid}) as used:
                keeper_s = machine.cpu_s(server.pids["keeper"])
                batch_id = server.create(file_id)
                server.wait(batch_id, every_s=0.01, until=("in_progress",))
                intake_s = machine.cpu_s(server.pids["keeper"]) - keeper_s
                _ended(server, batch_id, lines=lines)
            after = stubs.wrk(
                bench.folder, stub, connections=WINDOW, seconds=_WRK_S, line_bytes=inputs.LINE_BYTES
            )
            wrk_per_s = (before.requests + after.requests) / (before.wall_s + after.wall_s)
            requests = before.requests + after.requests
            samples.append(
                {
                    "us": {name: used.cpu_s[name] / lines * 1e6 for name in server.pids},
                    "intake_us": intake_s / lines * 1e6,
                    "finalizer_us": (used.cpu_s["keeper"] - intake_s) / lines * 1e6,
                    "stub_us": used.cpu_s["stub"] / lines * 1e6,
                    "wrk_us": (before.cpu_s + after.cpu_s) / requests * 1e6,
                    "lines_per_s": lines / used.wall_s,
                    "wrk_per_s": wrk_per_s,
                    "speed": lines / used.wall_s / wrk_per_s,
                    "foreign_share": used.foreign_share,
                    "memory_mib": {name: machine.memory_mib(pid) for name, pid in server.pids.items()},
                }
            )
    return samples


def run_batch(server: Server, file_id: str, *, lines: int) -> dict[str, Any]:
    """Runs a batch from create to `completed`, and checks that every line is answered."""
    return _ended(server, server.create(file_id), lines=lines)


def _ended(server: Server, batch_id: str, *, lines: int) -> dict[str, Any]:
    batch = server.wait(batch_id, every_s=_POLL_S)
    counts = batch["request_counts"]
    if batch["status"] != "completed" or counts != {"total": lines, "completed": lines, "failed": 0}:
        raise RuntimeError(f"the batch ended as {batch['status']} with {counts}")
    return dict(batch)
