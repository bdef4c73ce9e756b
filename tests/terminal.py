"""A command in a terminal of its own, to see what a person sees and to press Ctrl-C."""

import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

LIMIT_S = 60.0

# The terminal becomes that of the process, so that its Ctrl-C reaches the whole process group.
_START = (
    "import os, sys; os.login_tty(0);"
    " os.execv(sys.executable, [sys.executable, '-m', 'nightmill', *sys.argv[1:]])"
)


class Terminal:
    """`nightmill` with the given words, in a terminal of so many columns."""

    def __init__(
        self,
        *words: str | Path,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        columns: int = 80,
    ) -> None:
        self._screen, inner = os.openpty()
        termios.tcsetwinsize(inner, (40, columns))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, words)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=folder,
            env=os.environ | dict(environment or {}),
        )
        os.close(inner)
        self.shown = ""
        self._is_open = True

    def until(self, holds: str | Callable[[], bool]) -> None:
        """Waits until a text is shown, or until something else holds."""
        end = time.monotonic() + LIMIT_S
        while not (holds in self.shown if isinstance(holds, str) else holds()):
            assert self._is_open, f"the command has ended: {self.shown}"
            assert time.monotonic() < end, f"not shown: {holds!r} in {self.shown}"
            self._read(0.05)

    def press_ctrl_c(self) -> None:
        os.write(self._screen, b"\x03")

    def end(self) -> int:
        """The exit code, once the command and what holds its terminal have ended."""
        end = time.monotonic() + LIMIT_S
        while self._is_open:
            assert time.monotonic() < end, f"it does not end: {self.shown}"
            self._read(0.5)
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(LIMIT_S)
        os.close(self._screen)

    def _read(self, wait_s: float) -> None:
        if not select.select([self._screen], [], [], wait_s)[0]:
            return
        try:
            received = os.read(self._screen, 1 << 16)
        except OSError:  # Linux says so when no process has the terminal any more
            received = b""
        self._is_open = bool(received)
        self.shown += received.decode(errors="replace").replace("\r\n", "\n")
