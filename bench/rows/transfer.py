"""Upload and download of one big file, compared in turns with minimal servers (`bare`)."""

import http.client
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import inputs, machine, stubs
from bench.figures import Bench, Better, Figure, median, quiet_first
from bench.server import Server, send_form, serving
from bench.stubs import STUB_CORE

ROW = "a 200 MB file"
_LINES = 50_000
_SWEPT_S = 30.0
_MIB = 1 << 20


def measure(bench: Bench) -> list[Figure]:
    size_bytes = bench.sizes.intake_mib * _MIB
    lines = _LINES * bench.sizes.intake_mib // 200
    path = inputs.input_file(bench.folder, lines, line_bytes=size_bytes // lines)
    size_bytes = path.stat().st_size
    taken = bench.folder / "taken"
    taken.mkdir()
    with (
        stubs.slow(mean_s=3600) as stub,
        _bare("take", taken) as take,
        _bare("give", path) as give,
        serving(bench.folder / "data", upstream=stub.url, source=bench.source, pinned=False) as server,
    ):
        _warm_up(bench, server)
        api = server.pids["api"]
        machine.forget_peak(api)
        samples = [_round(bench, server, path, take=take, give=give) for _ in range(bench.sizes.rounds)]
        memory = machine.memory_mib(api)
    shutil.rmtree(taken)
    return [
        *_compared("upload", samples, 0.6),
        *_compared("download", samples, 0.9),
        Figure(ROW, "peak memory of the API meanwhile", memory, "MiB", 100),
        Figure(
            ROW,
            "bytes on disk over bytes uploaded",
            max(sample["disk_bytes"] for sample in samples) / size_bytes,
            "x",
            1.1,
            note="one copy",
            samples=samples,
        ),
    ]


def _round(
    bench: Bench, server: Server, path: Path, *, take: tuple[int, int], give: tuple[int, int]
) -> dict[str, Any]:
    size_bytes = path.stat().st_size
    api = server.pids["api"]
    sample: dict[str, Any] = {}
    blobs = bench.folder / "data" / "blobs"
    _until_swept(blobs)
    sample["bare upload"], _ = _timed(take[1], partial(send_form, take[0], "/", path), size_bytes)
    sample["upload"], file_id = _timed(api, partial(server.upload, path), size_bytes)
    sample["bare download"], _ = _timed(give[1], partial(_drain, give[0], "/"), size_bytes)
    content = f"/v1/files/{file_id}/content"
    sample["download"], _ = _timed(api, partial(_drain, server.port, content), size_bytes)
    sample["disk_bytes"] = _bytes_under(blobs)
    server.call("DELETE", f"/v1/files/{file_id}")
    for file in (bench.folder / "taken").iterdir():
        file.unlink()
    return sample


def _compared(what: str, samples: list[dict[str, Any]], target: float) -> list[Figure]:
    pairs = [
        {
            "speed": sample[what]["mb_per_s"] / sample[f"bare {what}"]["mb_per_s"],
            "cpu": sample[what]["cpu_s"] / max(0.01, sample[f"bare {what}"]["cpu_s"]),
            "cpu_s": sample[what]["cpu_s"],
            "mb_per_s": sample[what]["mb_per_s"],
            "foreign_share": max(sample[what]["foreign_share"], sample[f"bare {what}"]["foreign_share"]),
        }
        for sample in samples
    ]
    kept = quiet_first(pairs)
    bound = "a bare socket-to-file server" if what == "upload" else "bare sendfile"
    return [
        Figure(
            ROW, f"{what}: speed over {bound}", median([p["speed"] for p in kept]), "x", target, Better.HIGH
        ),
        Figure(ROW, f"{what}: speed", median([p["mb_per_s"] for p in kept]), "MB/s"),
        Figure(ROW, f"{what}: CPU of the API", median([p["cpu_s"] for p in kept]), "s"),
        Figure(ROW, f"{what}: CPU over the bare server's", median([p["cpu"] for p in kept]), "x"),
    ]


def _timed(pid: int, move: Callable[[], Any], size_bytes: int) -> tuple[dict[str, float], Any]:
    machine.wait_for_quiet(timeout_s=3.0)
    with machine.watched({"server": pid}) as used:
        answer = move()
    return {
        "mb_per_s": size_bytes / used.wall_s / 1e6,
        "cpu_s": used.cpu_s["server"],
        "foreign_share": used.foreign_share,
    }, answer


def _warm_up(bench: Bench, server: Server) -> None:
    file_id = server.upload(inputs.input_file(bench.folder, 1_000))
    _drain(server.port, f"/v1/files/{file_id}/content")
    server.call("DELETE", f"/v1/files/{file_id}")


def _drain(port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", path)
    response = connection.getresponse()
    buffer = bytearray(1 << 20)
    while response.readinto(buffer):
        pass
    connection.close()


def _until_swept(blobs: Path) -> None:
    """Waits until maintenance has deleted the blobs of the round before."""
    give_up_at = time.monotonic() + _SWEPT_S
    while _bytes_under(blobs):
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"deleted files still lie there after {_SWEPT_S} s")
        time.sleep(0.1)


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _bare(what: str, path: Path) -> Iterator[tuple[int, int]]:
    port = stubs.free_port()
    script = str(Path(__file__).parents[1] / "bare.py")
    child = subprocess.Popen(
        ["taskset", "-c", str(STUB_CORE), sys.executable, script, str(port), what, str(path)]
    )
    try:
        time.sleep(0.3)
        yield port, child.pid
    finally:
        child.terminate()
        child.wait(10)
