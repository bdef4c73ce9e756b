"""Peers with the same lines and the same upstream, one after the other.

Each peer runs in a separate process and venv, and its own CPU is measured: for a loop after its imports, for
a server from create to `completed`, over the same API as nightmill. A peer that cannot be installed or fails
is shown as such. All peers get fewer lines than nightmill; otherwise the run would take hours.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import inputs, machine, stubs, tools
from bench.figures import Bench, Figure
from bench.rows.dispatch import run_batch
from bench.server import Server, serving

ROW = "the same lines through others"
_SCRIPTS = Path(__file__).parents[1] / "peers"
_TIMEOUT_S = 900
_WARM_UP_LINES = 100


@dataclass(frozen=True, slots=True)
class Peer:
    """`times` multiplies the number of lines of the row; `note` describes the configuration of the peer."""

    name: str
    packages: tuple[str, ...]
    script: str
    times: int = 1
    python: str = sys.executable
    model: str = "bench"
    note: str = ""

    @property
    def is_server(self) -> bool:
        return self.script.endswith("_server.py")


PEERS = (
    Peer("a loop on aiohttp", ("aiohttp==3.14.5", "uvloop==0.23.0"), "aiohttp_loop.py", times=20),
    Peer("a loop on openai.AsyncOpenAI", ("openai==3.54.0",), "openai_loop.py"),
    Peer("LiteLLM's executor", ("litellm[proxy]==1.106.2",), "litellm_executor.py"),
    Peer(
        "OGX",
        ("ogx==1.5.0",),
        "ogx_server.py",
        python="python3.12",
        model="vllm/bench",
        note="10 in flight, its default",
    ),
    Peer("AIBrix", ("aibrix==0.8.0",), "aibrix_server.py", note="local stores, its default window"),
)


def measure(bench: Bench) -> list[Figure]:
    lines = bench.sizes.batch_lines
    with stubs.instant(bench.folder / "nginx") as stub:
        ours = _ours(bench, stub, lines)
        figures = [Figure(ROW, f"nightmill, {lines:,} lines", ours["us"], "us", samples=[ours])]
        for peer in PEERS:
            many = bench.sizes.peer_lines * peer.times
            result = _measured_peer(bench, stub, peer, many)
            value = float(result.get("us", math.nan))
            note = result.get("skipped") or f"{value / ours['us']:,.0f} times ours; {result['note']}"
            figures.append(
                Figure(ROW, f"{peer.name}, {many:,} lines", value, "us", note=note, samples=[result])
            )
    return figures


def _ours(bench: Bench, stub: stubs.Stub, lines: int) -> dict[str, Any]:
    with serving(bench.folder / "data", upstream=stub.url, concurrency=256, source=bench.source) as server:
        run_batch(server, server.upload(inputs.input_file(bench.folder, 5_000)), lines=5_000)
        return _timed(server, inputs.input_file(bench.folder, lines), lines)


def _input(bench: Bench, peer: Peer, lines: int) -> Path:
    """The same lines, with the model name that the peer uses."""
    path = inputs.input_file(bench.folder, lines)
    if peer.model == "bench":
        return path
    renamed = path.with_name(f"{path.stem}-{peer.model.replace('/', '-')}.jsonl")
    renamed.write_bytes(path.read_bytes().replace(b'"model": "bench"', f'"model": "{peer.model}"'.encode()))
    return renamed


def _measured_peer(bench: Bench, stub: stubs.Stub, peer: Peer, lines: int) -> dict[str, Any]:
    """CPU per line, lines per second and memory; or the reason why the peer was skipped."""
    name = peer.script.partition("_")[0]
    folder = bench.folder / name
    folder.mkdir(exist_ok=True)
    try:
        program = tools.venv(name, *peer.packages, python=peer.python) / "python"
        if peer.is_server:
            with _served(program, peer, stub, folder) as server:
                warm_up = _input(bench, peer, _WARM_UP_LINES)
                run_batch(server, server.upload(warm_up), lines=_WARM_UP_LINES)
                return _timed(server, _input(bench, peer, lines), lines) | {"note": peer.note}
        path = inputs.input_file(bench.folder, lines).absolute()
        arguments = [str(program), str(_SCRIPTS / peer.script), stub.url, str(path), str(lines)]
        ended = subprocess.run(
            arguments, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        result = [row for row in ended.stdout.splitlines() if row.startswith('{"us"')]
        if ended.returncode or not result:
            return {"skipped": f"failed: {(ended.stderr or ended.stdout).strip()[-160:]}"}
        return dict(json.loads(result[-1]))
    except tools.CannotInstallError as error:
        return {"skipped": f"can't be installed here: {error}"}
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        return {"skipped": f"failed: {error}"[:160]}


def _timed(server: Server, path: Path, lines: int) -> dict[str, Any]:
    file_id = server.upload(path)
    with machine.watched(server.pids) as used:
        run_batch(server, file_id, lines=lines)
    return {
        "us": sum(used.cpu_s[name] for name in server.pids) / lines * 1e6,
        "lines_per_s": lines / used.wall_s,
        "memory_mib": sum(machine.memory_mib(pid) for pid in server.pids.values()),
        "foreign_share": used.foreign_share,
    }


@contextmanager
def _served(program: Path, peer: Peer, stub: stubs.Stub, folder: Path) -> Iterator[Server]:
    port = stubs.free_port()
    with (folder / "log").open("wb") as log:
        arguments = [str(program), str(_SCRIPTS / peer.script), stub.url, str(port)]
        child = subprocess.Popen(arguments, cwd=folder, stdout=log, stderr=log)
        try:
            stubs.wait_for_port(port, timeout_s=120)
            server = Server(port, child.pid)
            server.pids = {"server": child.pid, **{str(pid): pid for pid in machine.children(child.pid)}}
            yield server
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
