"""Upstreams with almost no cost of their own, and wrk to measure them.

nginx answers at once with one fixed body and reads no request; `slow_stub` answers after a set time.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import inputs, tools

STUB_CORE = 1
"""The upstream has a core of its own, and so have wrk and the worker it is compared with."""
CLIENT_CORE = 0

_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; client_max_body_size 0;
  client_body_buffer_size 1m; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  tcp_nodelay on; server_tokens off;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    default_type application/json;
    location = /v1/models {{ return 200 '{models}'; }}
    set $text '{text}';
    location / {{ return 200 '{answer}'; }}
  }}
}}
"""
_MODELS = '{"object":"list","data":[{"id":"bench","object":"model","created":1,"owned_by":"bench"}]}'
_WRK_SCRIPT = """
local bodies, at = {{}}, 0
for row in io.lines("{bodies}") do bodies[#bodies + 1] = row end
local requests = {{}}
function init(args)
  for i, body in ipairs(bodies) do
    requests[i] = wrk.format("POST", "/v1/chat/completions", {{["content-type"] = "application/json"}}, body)
  end
end
function request() at = at % #requests + 1; return requests[at] end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""
_NGINX_WORD_BYTES = 30 * inputs.TEXT_BYTES
_DIFFERENT_BODIES = 2_000


@dataclass(frozen=True, slots=True)
class Stub:
    url: str
    port: int
    pid: int


def missing() -> str | None:
    """The system programs that are missing and could not be installed."""
    if not all(program(name) for name in ("nginx", "wrk")):
        tools.install_system("wrk", "nginx-light")
    absent = [name for name in ("nginx", "wrk") if program(name) is None]
    return f"{' and '.join(absent)} not installed (apt-get install wrk nginx-light)" if absent else None


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def instant(folder: Path, *, answer_bytes: int = inputs.ANSWER_BYTES) -> Iterator[Stub]:
    """nginx with one fixed answer."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / f"nginx-{port}.conf"
    text = inputs.text(_NGINX_WORD_BYTES)  # nginx limits the length of strings: a long answer repeats one
    answer = inputs.answer(answer_bytes).decode().replace(text, "${text}")
    config.write_text(_NGINX.format(folder=folder, port=port, text=text, answer=answer, models=_MODELS))
    name = program("nginx")
    assert name is not None
    with started([name, "-c", str(config), "-p", str(folder), "-e", f"{folder}/nginx.log"], port) as pid:
        yield Stub(f"http://127.0.0.1:{port}/v1", port, pid)


@contextmanager
def slow(*, mean_s: float, tail: float = 0.0, seed: int = 1) -> Iterator[Stub]:
    """Answers after `mean_s`; `tail` is the sigma of a log-normal around it, 0 for a fixed time."""
    port = free_port()
    script = str(Path(__file__).with_name("slow_stub.py"))
    arguments = [sys.executable, script, str(port), str(mean_s), str(tail), str(seed)]
    with started(arguments, port) as pid:
        yield Stub(f"http://127.0.0.1:{port}/v1", port, pid)


@dataclass(frozen=True, slots=True)
class WrkRun:
    requests: int
    wall_s: float
    cpu_s: float
    errors: int

    @property
    def per_s(self) -> float:
        return self.requests / self.wall_s


def wrk(folder: Path, stub: Stub, *, connections: int, seconds: float, line_bytes: int) -> WrkRun:
    """Runs wrk with one thread on the core of the worker, with the bodies of the benchmark lines."""
    bodies = folder / f"bodies-{line_bytes}.txt"
    if not bodies.exists():
        bodies.write_bytes(b"".join(inputs.body(n, line_bytes) + b"\n" for n in range(_DIFFERENT_BODIES)))
    script = folder / f"wrk-{line_bytes}.lua"
    script.write_text(_WRK_SCRIPT.format(bodies=bodies))
    name = program("wrk")
    assert name is not None
    before = os.times()
    arguments = ["taskset", "-c", str(CLIENT_CORE), name, "-t1", f"-c{connections}", f"-d{seconds:g}s"]
    arguments += ["-s", str(script), f"http://127.0.0.1:{stub.port}/"]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
    after = os.times()
    _, requests, micros, errors = ended.stdout[ended.stdout.index("RESULT") :].split()[:4]
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return WrkRun(int(requests), int(micros) / 1e6, cpu_s, int(errors))


def wrk_get(port: int, path: str, *, connections: int, seconds: float) -> int:
    """The number of 2xx answers for `path`."""
    name = program("wrk")
    assert name is not None
    ended = subprocess.run(
        [name, "-t1", f"-c{connections}", f"-d{seconds:g}s", f"http://127.0.0.1:{port}{path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    if "Non-2xx" in ended.stdout:
        raise RuntimeError(ended.stdout)
    return int(next(row.split()[0] for row in ended.stdout.splitlines() if "requests in" in row))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, *, timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.005)


@contextmanager
def started(arguments: list[str], port: int) -> Iterator[int]:
    child = subprocess.Popen(["taskset", "-c", str(STUB_CORE), *arguments])
    try:
        wait_for_port(port)
        yield child.pid
    finally:
        child.terminate()
        child.wait(10)
