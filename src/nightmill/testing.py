"""A server for tests of code that uses the Batch API: `with nightmill.testing.server() as server:`.

The server is a real `nightmill serve` on a free port of this machine, in processes of its own, with a new
data folder. The emulator answers, unless the settings name an upstream: every answer is made up. Neither the
environment nor a settings file of the machine changes it. It ends with the `with` block, and also when the
process that started it is killed. The fixtures of `nightmill.pytest_plugin` are made of it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from nightmill.errors import SetupError
from nightmill.settings import as_message, from_message, load

_KEY: Final = "unused"
_POLL_S: Final = 0.05
_STOP_S: Final = 20.0
_LOG_LINES: Final = 15
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that takes requests.

    Args:
        base_url: what an OpenAI client takes as its `base_url`.
        api_key: any key will do.
        folder: the data folder.
        log_path: the log, as JSON lines.
    """

    base_url: str
    api_key: str
    folder: Path
    log_path: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which OpenAI's clients, and `nightmill` itself, find the server."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": self.api_key}

    def log_tail(self) -> str:
        """The last lines of the log."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])


@contextmanager
def server(
    settings: Mapping[str, Any] | None = None, *, start_timeout_s: float = 60.0
) -> Generator[RunningServer]:
    """Starts a server, and stops it at the end of the block.

    Args:
        settings: settings by section, as in a settings file (docs/settings.md):
            `{"emulator": {"fail_rate": 0.1}, "limits": {"completion_windows": ["24h", "5s"]}}`.
        start_timeout_s: how long the start may take.

    Raises:
        SetupError: a setting is wrong, or the server did not start; the message has the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="nightmill-testing-", ignore_cleanup_errors=True) as folder:
        for tries_left in reversed(range(_TRIES)):
            running, process = _started(settings or {}, Path(folder))
            try:
                if _is_ready(running, process, time.monotonic() + start_timeout_s):
                    yield running
                    return
                log = running.log_tail()
                if tries_left == 0 or "Address already in use" not in log:
                    raise SetupError(f"the test server did not start; the end of its log: {log}")
            finally:
                _stop(process)


def _started(settings: Mapping[str, Any], folder: Path) -> tuple[RunningServer, "subprocess.Popen[bytes]"]:
    # Imported here: settings are checked, and clients made, without loading the server.
    from nightmill.runtime.supervisor import free_port  # noqa: PLC0415 - see above

    port = free_port()
    tree: dict[str, Any] = {"folder": str(folder / "data"), **settings}
    tree["api"] = {"drain_s": 0.0, **settings.get("api", {}), "host": "127.0.0.1", "port": port}
    if not ("url" in settings.get("upstream", {}) or settings.keys() & {"upstreams", "model", "ray"}):
        tree["emulator"] = {"enabled": True, **settings.get("emulator", {})}
    checked = load(flags=tree, environment={})
    log_path = folder / "server.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nightmill.testing"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop the server
        )
    assert process.stdin is not None
    process.stdin.write(as_message(checked).encode() + b"\n")
    process.stdin.flush()
    return RunningServer(f"http://127.0.0.1:{port}/v1", _KEY, checked.folder, log_path), process


def _is_ready(running: RunningServer, process: "subprocess.Popen[bytes]", give_up_at: float) -> bool:
    """Waits until the server is ready; returns whether it is before it ends or the time is over."""
    place = urlsplit(running.base_url)
    while process.poll() is None and time.monotonic() < give_up_at:
        # Without the proxies of the environment, which `urllib.request` would ask.
        connection = HTTPConnection(place.hostname or "", place.port, timeout=2)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == HTTPStatus.OK:
                return True
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(_POLL_S)
    return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdin.close()


def main() -> None:
    """The server's process: reads its settings from standard input, and ends when that ends."""
    from nightmill.client.local import finished  # noqa: PLC0415 - the parent must not load the server
    from nightmill.runtime.child import first_line  # noqa: PLC0415 - as above
    from nightmill.runtime.programs import prefork_roles  # noqa: PLC0415 - as above
    from nightmill.runtime.serve import serve  # noqa: PLC0415 - as above

    settings = from_message(first_line(sys.stdin.fileno()))
    preforked = prefork_roles(settings)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        finished(serve(settings, say=_say, preforked=preforked))
    except SetupError as error:
        sys.exit(f"nightmill: {error}")


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1_024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
