"""List, create and cancel with many ended batches in the store."""

import shutil
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import inputs, stubs
from bench.figures import Bench, Figure
from bench.server import Server, serving

ROW = "many batches in the store"
_TIMES = 100
_PAGE = "/v1/batches?limit=100"


def measure(bench: Bench) -> list[Figure]:
    folder = bench.folder / "data"
    kept = bench.folder / "kept"
    with stubs.slow(mean_s=3600) as stub:
        with serving(folder, upstream=stub.url, source=bench.source, pinned=False) as server:
            file_id = server.upload(inputs.input_file(bench.folder, 10))
            batch_id = server.create(file_id)
            server.call("POST", f"/v1/batches/{batch_id}/cancel")
            server.wait(batch_id)
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)
        _multiply(kept / "nightmill.sqlite", bench.sizes.stored_batches)
        with serving(folder, upstream=stub.url, source=bench.source, pinned=False, begin_with=kept) as server:
            samples = _times(server, file_id)
    return [
        Figure(
            ROW,
            f"{name}, p99 with {bench.sizes.stored_batches:,} batches",
            sorted(times)[int(len(times) * 0.99)],
            "ms",
            50,
            note=f"median {sorted(times)[len(times) // 2]:.1f}",
            samples=[{"ms": sorted(times)}],
        )
        for name, times in samples.items()
    ]


def _times(server: Server, file_id: str) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {"list": [], "list a later page": [], "create": [], "cancel": []}
    after = ""
    for _ in range(_TIMES):
        page = _timed(samples["list"], partial(server.call, "GET", "/v1/batches?limit=20"))
        after = after or page["last_id"]
        page = _timed(samples["list a later page"], partial(server.call, "GET", f"{_PAGE}&after={after}"))
        after = page["last_id"] if page["has_more"] else ""
        batch_id = _timed(samples["create"], partial(server.create, file_id))
        server.wait(batch_id, every_s=0.01, until=("in_progress",))
        _timed(samples["cancel"], partial(server.call, "POST", f"/v1/batches/{batch_id}/cancel"))
    return samples


def _timed(times: list[float], call: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    answer = call()
    times.append((time.perf_counter() - began) * 1e3)
    return answer


def _multiply(database: Path, count: int) -> None:
    """Copies the ended batch row by row; creating the batches over the API would take too long."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT * FROM batch").fetchall()
        columns = [column[1] for column in connection.execute("PRAGMA table_info(batch)")]
        row = dict(zip(columns, rows[0], strict=True))
        names, marks = ", ".join(columns), ", ".join("?" for _ in columns)
        copies = (
            tuple(
                {**row, "id": f"batch_{number:032x}", "sequence": row["sequence"] + number}[c]
                for c in columns
            )
            for number in range(1, count + 1)
        )
        connection.executemany(f"INSERT INTO batch ({names}) VALUES ({marks})", copies)
    connection.close()
