"""The emulator as a child that outlives every kill, and its own record of what it was asked.

The record has one line for each request, written before the request is answered; an answer names its line by
number. So the record says what was sent, how often, and which attempt an output line comes from.
"""

import asyncio
import json
import math
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from nightmill.errors import SetupError

SLOW = "slow-line"
SLOW_S = 3.0
REQUEST_ID_PREFIX = "emulated-"

_START_S = 60.0
_LOOK_S = 0.01
_RATE_WINDOW_S = 0.25


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: for which line, by whom, and at what monotonic time."""

    marker: str
    sender: str
    moment: float


class Record:
    """What the emulator was asked, as it is asked."""

    def __init__(self, path: Path) -> None:
        self.markers: list[str] = []
        """One for each request, in order."""
        self.asks: list[Ask] = []
        """The same, of those that said who they are."""
        self.peak_per_second = 0.0
        """The most requests in a quarter of a second, times four."""
        self._path = path
        self._offset = 0
        self._recent: deque[tuple[float, int]] = deque()

    def take(self) -> int:
        """Reads on; says how many requests are new."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode().splitlines()
        for line in lines:
            marker, *sent = line.split()
            self.markers.append(marker)
            if sent:
                sender, moment = sent
                self.asks.append(Ask(marker, sender, float(moment)))
        return len(lines)

    async def keep_taking(self) -> None:
        while True:
            self._note(self.take(), monotonic())
            await asyncio.sleep(_LOOK_S)

    async def request_of(self, sender: str) -> float:
        """Monotonic time of a request that the sender makes from now on, as the emulator saw it."""
        since = monotonic()
        while True:
            for ask in reversed(self.asks):
                if ask.moment < since:
                    break
                if ask.sender == sender:
                    return ask.moment
            await asyncio.sleep(_LOOK_S)

    async def next_request(self) -> float:
        """Monotonic time of the next request from now on."""
        seen = len(self.markers)
        while len(self.markers) == seen:
            await asyncio.sleep(_LOOK_S / 2)
        return monotonic()

    def answered_within(self, seconds: float) -> int:
        """The most that was asked for in so long a time, as far as was seen."""
        return math.ceil(self.peak_per_second * seconds)

    def _note(self, new: int, now: float) -> None:
        self._recent.append((now, new))
        while self._recent[0][0] <= now - _RATE_WINDOW_S:
            self._recent.popleft()
        total = sum(count for _, count in self._recent)
        self.peak_per_second = max(self.peak_per_second, total / _RATE_WINDOW_S)


@asynccontextmanager
async def emulator(folder: Path, *, delay_s: float) -> AsyncGenerator[tuple[str, Record]]:
    """Its URL and its record."""
    record, port_file = folder / "record", folder / "port"
    faults = json.dumps([{"fault": "slow", "match": SLOW, "times": None, "delay_s": SLOW_S}])
    record.touch()
    command = [
        *(sys.executable, "-m", "nightmill.emulator.server", "--port-file", str(port_file)),
        *("--record", str(record), "--delay-s", str(delay_s), "--faults", faults),
    ]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        async with asyncio.timeout(_START_S):
            while not port_file.exists():
                if child.poll() is not None:
                    raise SetupError("the emulator did not start; see what it said above")
                await asyncio.sleep(_LOOK_S)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}/v1", Record(record)
    finally:
        child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
