"""Time from the command to the first answer of /health, and time of `nightmill --help`."""

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from bench import machine, stubs
from bench.figures import Bench, Figure, median, quiet_first

ROW = "starting"
_LONGEST_S = 30.0


def measure(bench: Bench) -> list[Figure]:
    environment = dict(os.environ)
    if bench.source is not None:
        environment["PYTHONPATH"] = str(bench.source)
    served = [_serve(bench, environment) for _ in range(bench.sizes.starts)]
    helped = [_help(environment) for _ in range(bench.sizes.starts)]
    return [
        Figure(
            ROW,
            "nightmill serve until /health answers, new folder",
            median([sample["wall_s"] for sample in quiet_first(served)]),
            "s",
            1.0,
            samples=served,
        ),
        Figure(
            ROW,
            "nightmill --help",
            median([sample["wall_s"] for sample in quiet_first(helped)]),
            "s",
            0.3,
            samples=helped,
        ),
        Figure(ROW, "nightmill --help, CPU", median([sample["cpu_s"] for sample in helped]), "s"),
    ]


def _serve(bench: Bench, environment: dict[str, str]) -> dict[str, Any]:
    folder = bench.folder / "data"
    shutil.rmtree(folder, ignore_errors=True)
    port = stubs.free_port()
    arguments = [sys.executable, "-m", "nightmill", "serve", "--upstream", "http://127.0.0.1:9/v1"]
    arguments += ["--folder", str(folder), "--port", str(port), "--log-level", "error"]
    machine.wait_for_quiet(timeout_s=5.0)
    with machine.watched({}) as used:
        child = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
        _wait_for_health(port)
    # CPU of children of the start counts as ours, because it cannot be separated afterwards.
    child.send_signal(signal.SIGTERM)
    child.wait(_LONGEST_S)
    return {"wall_s": used.wall_s}


def _wait_for_health(port: int) -> None:
    until = time.monotonic() + _LONGEST_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LONGEST_S)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            if time.monotonic() > until:
                raise
        finally:
            connection.close()
        time.sleep(0.005)


def _help(environment: dict[str, str]) -> dict[str, Any]:
    machine.wait_for_quiet(timeout_s=5.0)
    before = os.times()
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "nightmill", "--help"], env=environment, stdout=subprocess.DEVNULL, check=True
    )
    wall_s = time.perf_counter() - began
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": wall_s, "cpu_s": cpu_s}
