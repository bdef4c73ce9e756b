"""The cost of a line in a fleet by part and number of workers, and with the embedded store in the same run.

On two cores more workers cannot be faster, because all processes, Postgres and the S3 server included, share
them. An instant upstream shows the CPU cost of a line, and a slow upstream shows whether 1, 2 and 4 workers
use it equally well. CPU is measured for every process: API, keeper, workers, their two parents, Postgres with
all its children, and the S3 server.
"""

from typing import Any

from bench import inputs, machine, stubs, tools
from bench.figures import Bench, Better, Figure, median, quiet_first
from bench.fleet_postgres import Postgres, postgres
from bench.fleet_processes import Fleet, running_fleet
from bench.fleet_storage import Storage, bucket, shared_folder
from bench.rows.busy import history, steady
from bench.rows.dispatch import WINDOW, run_batch
from bench.server import serving

ROW = "the fleet"
WORKERS = (1, 2, 4)
_WARM_UP_LINES = 5_000
_COUNTED_LINES = 20_000
_LINES_PER_SEGMENT = 500
_SLOW_S = 0.2
_GROWTH = 1.1


def measure(bench: Bench) -> list[Figure]:
    figures: list[Figure] = []
    try:
        with (
            postgres(bench.folder / "postgres") as server,
            shared_folder(bench.folder / "fleet") as folder,
            stubs.instant(bench.folder / "nginx") as stub,
        ):
            embedded = [_embedded(bench, stub, workers) for workers in WORKERS[:2]]
            in_folder = [_rounds(bench, server, folder, stub, workers) for workers in WORKERS]
            with bucket(bench.folder / "unused") as s3:
                in_s3 = [_rounds(bench, server, s3, stub, workers) for workers in WORKERS]
                counted = [_counted(bench, server, storage, stub) for storage in (folder, s3)]
            figures += _costs(embedded, in_folder, in_s3)
            figures += _counts(counted)
            figures += _busy(bench, server, folder)
            figures += _memory(bench, server, folder, stub)
    except tools.CannotInstallError as error:
        print(f"SKIPPED: {error}")
    return figures


# --- the cost of a line ----------------------------------------------------------------------------------


def _embedded(bench: Bench, stub: stubs.Stub, workers: int) -> list[dict[str, Any]]:
    lines, samples = bench.sizes.fleet_lines, []
    with serving(
        bench.folder / "data",
        upstream=stub.url,
        concurrency=WINDOW,
        workers=workers,
        source=bench.source,
        pinned=False,
    ) as server:
        run_batch(
            server, server.upload(inputs.input_file(bench.folder, _WARM_UP_LINES)), lines=_WARM_UP_LINES
        )
        file_id = server.upload(inputs.input_file(bench.folder, lines))
        for _ in range(bench.sizes.fleet_rounds):
            machine.wait_for_quiet()
            with machine.watched({**server.pids, "stub": stub.pid}) as used:
                run_batch(server, file_id, lines=lines)
            parts: dict[str, float] = {}
            for name in server.pids:
                part = name.split()[0]
                parts[part] = parts.get(part, 0.0) + used.cpu_s[name] / lines * 1e6
            samples.append(
                {
                    "place": "SQLite and folder",
                    "workers": workers,
                    "us": parts,
                    "lines_per_s": lines / used.wall_s,
                    "foreign_share": used.foreign_share,
                }
            )
    return samples


def _rounds(
    bench: Bench, server: Postgres, storage: Storage, stub: stubs.Stub, workers: int
) -> list[dict[str, Any]]:
    lines = bench.sizes.fleet_lines
    with running_fleet(
        server, storage, upstream=stub.url, workers=workers, concurrency=WINDOW, source=bench.source
    ) as fleet:
        upload = fleet.server.upload
        run_batch(fleet.server, upload(inputs.input_file(bench.folder, _WARM_UP_LINES)), lines=_WARM_UP_LINES)
        file_id = upload(inputs.input_file(bench.folder, lines))
        return [_one(fleet, stub, file_id, lines) for _ in range(bench.sizes.fleet_rounds)]


def _one(fleet: Fleet, stub: stubs.Stub, file_id: str, lines: int) -> dict[str, Any]:
    machine.wait_for_quiet()
    before, written = fleet.cpu_s(), fleet.postgres.written_bytes()
    transactions = fleet.postgres.transactions(fleet.store)
    with machine.watched({**fleet.pids, "stub": stub.pid}) as used:
        run_batch(fleet.server, file_id, lines=lines)
    after = fleet.cpu_s()
    parts = {name: (after[name] - before[name]) / lines * 1e6 for name in after}
    others_s = (parts["postgres"] + parts["s3"]) * lines / 1e6
    return {
        "place": fleet.storage.name,
        "workers": fleet.workers,
        "us": parts,
        "lines_per_s": lines / used.wall_s,
        "transactions_per_segment": (fleet.postgres.transactions(fleet.store) - transactions)
        / (lines / _LINES_PER_SEGMENT),
        "log_bytes_per_line": (fleet.postgres.written_bytes() - written) / lines,
        "foreign_share": max(0.0, used.foreign_share - others_s / used.wall_s / machine.cores()),
    }


def _costs(
    embedded: list[list[dict[str, Any]]],
    in_folder: list[list[dict[str, Any]]],
    in_s3: list[list[dict[str, Any]]],
) -> list[Figure]:
    figures: list[Figure] = []
    alone = _whole(embedded[0])
    for rounds in embedded:
        name = f"SQLite and folder, {_workers(rounds)}"
        note = f"{_median(rounds, 'lines_per_s'):,.0f} lines a second"
        figures.append(
            Figure(ROW, f"{name}: CPU per line", _whole(rounds), "us", None, note=note, samples=rounds)
        )
    for samples in (in_folder, in_s3):
        first = _whole(samples[0])
        for rounds in samples:
            name = f"Postgres and {rounds[0]['place']}, {_workers(rounds)}"
            whole = _whole(rounds)
            parts = ", ".join(f"{part} {us:.1f}" for part, us in _parts(rounds).items() if us >= 0.05)
            note = f"{_median(rounds, 'lines_per_s'):,.0f} lines a second; {parts}"
            figures.append(Figure(ROW, f"{name}: CPU per line", whole, "us", note=note, samples=rounds))
        last = samples[-1]
        name = f"Postgres and {last[0]['place']}"
        share = _parts(last)["postgres"] / _whole(last) * 100
        figures.append(
            Figure(ROW, f"{name}, {_workers(last)} over 1: CPU per line", _whole(last) / first, "x", 1.25)
        )
        figures.append(Figure(ROW, f"{name}, {_workers(last)}: share of Postgres", share, "%"))
        if _parts(last)["s3"]:
            share = _parts(last)["s3"] / _whole(last) * 100
            figures.append(Figure(ROW, f"{name}, {_workers(last)}: share of the S3 server", share, "%"))
        figures.append(
            Figure(ROW, f"{name}, 1 worker, over SQLite and folder: CPU per line", first / alone, "x")
        )
    rounds = in_folder[-1]
    name = f"Postgres, {_workers(rounds)}"
    figures += [
        Figure(ROW, f"{name}: transactions for a segment", _median(rounds, "transactions_per_segment"), ""),
        Figure(ROW, f"{name}: log written for a line", _median(rounds, "log_bytes_per_line"), "B"),
    ]
    return figures


def _workers(rounds: list[dict[str, Any]]) -> str:
    count = rounds[0]["workers"]
    return f"{count} worker{'s' * (count > 1)}"


def _parts(rounds: list[dict[str, Any]]) -> dict[str, float]:
    kept = quiet_first(rounds)
    return {part: median([sample["us"][part] for sample in kept]) for part in kept[0]["us"]}


def _whole(rounds: list[dict[str, Any]]) -> float:
    return median([sum(sample["us"].values()) for sample in quiet_first(rounds)])


def _median(rounds: list[dict[str, Any]], name: str) -> float:
    return median([sample[name] for sample in quiet_first(rounds)])


# --- statements of the store -----------------------------------------------------------------------------


def _counted(bench: Bench, server: Postgres, storage: Storage, stub: stubs.Stub) -> dict[str, Any]:
    lines = _COUNTED_LINES
    with running_fleet(
        server, storage, upstream=stub.url, workers=4, concurrency=WINDOW, source=bench.source
    ) as fleet:
        file_id = fleet.server.upload(inputs.input_file(bench.folder, lines))
        with server.counted() as statements:
            run_batch(fleet.server, file_id, lines=lines)
        puts = storage.objects("parts")
    return {"place": storage.name, "lines": lines, "statements": dict(statements), "part_puts": puts}


def _counts(samples: list[dict[str, Any]]) -> list[Figure]:
    figures: list[Figure] = []
    for sample in samples:
        segments = sample["lines"] / _LINES_PER_SEGMENT
        kinds = sorted(sample["statements"].items(), key=lambda kind: -kind[1])
        note = ", ".join(f"{kind} {count / segments:.1f}" for kind, count in kinds[:5])
        name = f"Postgres and {sample['place']}, 4 workers"
        count = sum(sample["statements"].values()) / segments
        figures.append(
            Figure(ROW, f"{name}: statements for a segment", count, "", note=note, samples=[sample])
        )
        if sample["part_puts"]:
            per_segment = sample["part_puts"] / segments
            figures.append(Figure(ROW, f"{name}: puts of answers for a segment", per_segment, ""))
    return figures


# --- a slow upstream is kept busy ------------------------------------------------------------------------


def _busy(bench: Bench, server: Postgres, storage: Storage) -> list[Figure]:
    lines = round(2 * bench.sizes.busy_s * WINDOW / _SLOW_S / 1_000) * 1_000
    warm_up = 4 * WINDOW  # workers may still be loading when their processes are found
    figures: list[Figure] = []
    wholes: list[float] = []
    for workers in WORKERS:
        with (
            stubs.slow(mean_s=_SLOW_S) as stub,
            running_fleet(
                server, storage, upstream=stub.url, workers=workers, concurrency=WINDOW, source=bench.source
            ) as fleet,
        ):
            upload = fleet.server.upload
            run_batch(fleet.server, upload(inputs.input_file(bench.folder, warm_up)), lines=warm_up)
            file_id = upload(inputs.input_file(bench.folder, lines))
            machine.wait_for_quiet()
            history(stub)
            before = fleet.cpu_s()
            with machine.watched({**fleet.pids, "stub": stub.pid}) as used:
                run_batch(fleet.server, file_id, lines=lines)
            after = fleet.cpu_s()
            seen = history(stub)
        parts = {name: (after[name] - before[name]) / lines * 1e6 for name in after}
        (began, first), (ended, last) = steady(seen, lines)
        sample = {
            "place": "slow upstream",
            "workers": workers,
            "us": parts,
            "busy": (last - first) / (ended - began) * _SLOW_S / WINDOW,
            "most_owed": max(row[2] for row in seen),
            "foreign_share": used.foreign_share,
        }
        wholes.append(sum(parts.values()))
        text = f"200 ms, {WINDOW} in flight over {workers} worker{'s' * (workers > 1)}"
        note = f"{wholes[-1]:.0f} us of CPU per line, at most {sample['most_owed']} in flight"
        figures.append(
            Figure(
                ROW,
                f"{text}: part of window / latency",
                sample["busy"],
                "x",
                0.97,
                Better.HIGH,
                note,
                [sample],
            )
        )
    figures.append(Figure(ROW, "the same, CPU per line, 4 workers over 1", wholes[-1] / wholes[0], "x", 1.5))
    return figures


# --- a million lines -------------------------------------------------------------------------------------


def _memory(bench: Bench, server: Postgres, storage: Storage, stub: stubs.Stub) -> list[Figure]:
    samples: list[dict[str, Any]] = []
    for lines in bench.sizes.fleet_many_lines:
        with running_fleet(
            server, storage, upstream=stub.url, workers=4, concurrency=WINDOW, source=bench.source
        ) as fleet:
            file_id = fleet.server.upload(inputs.input_file(bench.folder, lines))
            with machine.watched({**fleet.pids, "stub": stub.pid}) as used:
                run_batch(fleet.server, file_id, lines=lines)
            memory = {name: machine.memory_mib(pid) for name, pid in fleet.pids.items()}
        samples.append({"lines": lines, "memory_mib": memory, "lines_per_s": lines / used.wall_s})
    first, last = samples[0], samples[-1]
    text = f"{last['lines']:,} over {first['lines']:,} lines, 4 workers"
    figures: list[Figure] = []
    for part in ("api", "keeper", "worker", "parents"):
        most = [max(mib for name, mib in s["memory_mib"].items() if name.startswith(part)) for s in samples]
        note = f"{most[0]:.0f} and {most[-1]:.0f} MiB"
        figures.append(
            Figure(ROW, f"{text}: peak memory, {part}", most[-1] / most[0], "x", _GROWTH, note=note)
        )
    name = f"{last['lines']:,} lines, 4 workers: lines a second"
    figures.append(Figure(ROW, name, last["lines_per_s"], "/s", samples=samples))
    return figures
