"""Record of a run: which requests reached the upstream, and which answers were seen durable.

The emulator writes one line for each request before it answers, and its answer names that line by number. So
the record says what was sent, how often, and which request an output line comes from.
"""

import asyncio
import json
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

_LOOK_S = 0.01
_RATE_WINDOW_S = 0.25


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the upstream: for which line, by which member, and when (monotonic time)."""

    marker: str
    sender: str
    moment: float


class Record:
    """What the emulator recorded: every request, and every answer that was seen durable.

    Args:
        path: the file that the emulator writes.
    """

    def __init__(self, path: Path) -> None:
        self.markers: list[str] = []
        """The line of each request, in order."""
        self.requests: list[Request] = []
        """The requests for lines that name their sender, in order."""
        self.answers: dict[str, str] = {}
        """custom_id -> request id of every answer that was seen durable."""
        self.peak_per_second = 0.0
        """The most requests in a quarter of a second, times four."""
        self._path = path
        self._offset = 0
        self._recent: deque[tuple[float, int]] = deque()

    def take(self) -> int:
        """Reads what the emulator has written since; returns the number of new requests."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode().splitlines()
        for line in lines:
            marker, *sent = line.split()
            self.markers.append(marker)
            # A worker's own request, which finds out whether a held model answers, belongs to no line.
            if sent and "-" in marker:
                sender, moment = sent
                self.requests.append(Request(marker, sender, float(moment)))
        return len(lines)

    async def keep_taking(self) -> None:
        while True:
            self._note_rate(self.take(), monotonic())
            await asyncio.sleep(_LOOK_S)

    def add_answer(self, text: bytes) -> str | None:
        """Adds a durable output line. Returns a description if the line had another answer before."""
        row = json.loads(text)
        if row["response"] is None:
            return None
        custom_id, request_id = row["custom_id"], row["response"]["request_id"]
        before = self.answers.setdefault(custom_id, request_id)
        return None if before == request_id else f"{custom_id} had answer {before}, then {request_id}"

    async def next_request(self, sender: str | None = None) -> None:
        """Waits for a request that is made from now on, by the sender if it is named."""
        seen = len(self.requests)
        while not any(sender in (None, request.sender) for request in self.requests[seen:]):
            await asyncio.sleep(_LOOK_S)

    def first_request_after(self, moment: float) -> float | None:
        """Monotonic time of the first request since `moment`."""
        return next((request.moment for request in self.requests if request.moment >= moment), None)

    def most_requests_in(self, seconds: float) -> int:
        """The most requests in that time, at the highest rate seen."""
        return math.ceil(self.peak_per_second * seconds)

    def _note_rate(self, new: int, now: float) -> None:
        self._recent.append((now, new))
        while self._recent[0][0] <= now - _RATE_WINDOW_S:
            self._recent.popleft()
        total = sum(count for _, count in self._recent)
        self.peak_per_second = max(self.peak_per_second, total / _RATE_WINDOW_S)
