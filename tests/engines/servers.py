"""Real model servers as processes that can be killed and started again on the same port.

Each runs in a process group of its own, so that `kill` ends all its processes at once.
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.engines.install import PYTHON, WEIGHTS

MODEL = "small"
CONTEXT_TOKENS = 2_048
SEQUENCES = 4
"""Lines that vLLM and llama.cpp compute at once; further requests wait in their queues."""
START_S = 1_800
_PAUSE_S = 0.5


class ModelServer(ABC):
    """A model server on a port that it keeps over restarts.

    Args:
        log: gets what the server prints.
    """

    def __init__(self, log: Path) -> None:
        self.port = _free_port()
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @abstractmethod
    def command(self) -> Sequence[str]: ...

    def environment(self) -> Mapping[str, str]:
        """Variables beside those of this process."""
        return {}

    def begin(self) -> None:
        """Starts the server; `wait` returns once it is ready."""
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )

    def wait(self) -> None:
        give_up_at = time.monotonic() + START_S
        while not self._is_healthy():
            assert time.monotonic() < give_up_at, f"the server was not ready after {START_S} s: {self.log}"
            time.sleep(_PAUSE_S)

    def start(self) -> None:
        self.begin()
        self.wait()

    def kill(self) -> None:
        """Kills every process of the server."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):  # all have exited
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _is_healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"it ended:\n{self.log.read_text(errors='replace')[-4_000:]}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class Vllm(ModelServer):
    """vLLM with the small model.

    Args:
        sequences: lines that it computes at once; None for its default.
        threads: cores that it computes on; None for all.
        flags: more of its options.
    """

    def __init__(
        self,
        log: Path,
        *,
        sequences: int | None = SEQUENCES,
        threads: int | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        super().__init__(log)
        self._sequences = sequences
        self._threads = threads
        self._flags = flags

    def command(self) -> Sequence[str]:
        options: dict[str, Any] = {
            "--model": WEIGHTS,
            "--served-model-name": MODEL,
            "--host": "127.0.0.1",
            "--port": self.port,
            "--max-model-len": CONTEXT_TOKENS,
        }
        if self._sequences is not None:
            options["--max-num-seqs"] = self._sequences
        words = [str(word) for option in options.items() for word in option]
        program = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
        return [*program, *words, *self._flags]

    def environment(self) -> Mapping[str, str]:
        offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        if self._threads is None:
            return offline
        return {**offline, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(self._threads)}

    def kill_engine(self) -> None:
        """Kills the process that computes, and waits until the API process has exited by itself."""
        assert self.process is not None
        [engine] = [pid for pid in _children(self.process.pid) if "EngineCore" in _title(pid)]
        os.kill(engine, signal.SIGKILL)
        self.process.wait(timeout=300)
        self.kill()


class Llama(ModelServer):
    """llama.cpp with a GGUF file, whose stem is the model's name."""

    def __init__(self, log: Path, model: Path, *, slots: int = SEQUENCES, threads: int = 1) -> None:
        super().__init__(log)
        self._model = model
        self._slots = slots
        self._threads = threads

    def command(self) -> Sequence[str]:
        options = {
            "--model": self._model,
            "--slots": self._slots,
            "--context": CONTEXT_TOKENS,
            "--threads": self._threads,
            "--port": self.port,
        }
        words = [str(word) for option in options.items() for word in option]
        return [sys.executable, "-m", "nightmill.runtime.child", "llama", *words]


@contextlib.contextmanager
def running(*servers: ModelServer) -> Iterator[None]:
    """Starts servers side by side, and kills them in the end."""
    try:
        for server in servers:
            server.begin()
        for server in servers:
            server.wait()
        yield
    finally:
        for server in servers:
            server.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
