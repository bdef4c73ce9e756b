"""Stub engines to measure against, and what their histories say (`engine_stub`)."""

import json
import sys
import urllib.request
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.stubs import free_port, started


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """A model server.

    Args:
        slots: requests that are computed at once.
        line_s: mean time that one takes; unused by `batching`.
        gauges: whether there is a metrics page.
        changes: [seconds after the first request, slots from then on].
    """

    kind: str = "saturating"
    slots: int = 32
    line_s: float = 0.1
    kv_tokens: int = 0
    gauges: bool = True
    changes: Sequence[tuple[float, int]] = ()
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Look:
    """The counts at one moment; `received`, `answered` and `refused` are sums since the start."""

    at: float
    received: int
    answered: int
    refused: int
    running: int
    waiting: int


class History:
    """What happened at an engine, from its first request on; moments are seconds since then."""

    def __init__(self, looks: Sequence[Look]) -> None:
        first = next((number for number, look in enumerate(looks) if look.received), len(looks) - 1)
        self._looks = looks[max(0, first - 1) :]
        self._moments = [look.at - self._looks[0].at for look in self._looks]

    @property
    def last(self) -> Look:
        return self._looks[-1]

    @property
    def length_s(self) -> float:
        return self._moments[-1]

    def since(self, at: float) -> float:
        """Seconds from the first request to a moment of the system's monotonic clock."""
        return at - self._looks[0].at

    def rate(self, from_s: float, to_s: float) -> float:
        """Answers per second in a period."""
        first = min(bisect_left(self._moments, from_s), len(self._looks) - 1)
        last = max(bisect_right(self._moments, to_s) - 1, first)
        seconds = self._moments[last] - self._moments[first]
        return (self._looks[last].answered - self._looks[first].answered) / seconds if seconds else 0.0

    def in_flight(self, from_s: float, to_s: float) -> float:
        """Mean of the requests at the engine in a period."""
        first, last = bisect_left(self._moments, from_s), bisect_right(self._moments, to_s)
        counts = [look.running + look.waiting for look in self._looks[first:last]]
        return sum(counts) / len(counts) if counts else 0.0

    def reached_s(self, rate: float, *, from_s: float = 0.0, over_s: float = 1.0) -> float:
        """Seconds from `from_s` until a period of `over_s` begins that has the rate; infinite without one."""
        step_s = 0.1
        for number in range(int((self.length_s - from_s - over_s) / step_s) + 1):
            begins_s = from_s + number * step_s
            if self.rate(begins_s, begins_s + over_s) >= rate:
                return begins_s - from_s
        return float("inf")


@dataclass(frozen=True, slots=True)
class EngineStub:
    url: str
    port: int
    pid: int
    history_file: Path

    def history(self) -> History:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/history", timeout=30) as response:
            return _history(response.read())

    def history_of_killed(self) -> History:
        return _history(self.history_file.read_bytes())


def _history(text: bytes) -> History:
    return History([Look(*row) for row in json.loads(text)])


@contextmanager
def engine(folder: Path, options: EngineOptions) -> Iterator[EngineStub]:
    """A stub engine; it may be killed with SIGTERM before the context ends."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    history_file = folder / f"history-{port}.json"
    script = str(Path(__file__).with_name("engine_stub.py"))
    arguments = json.dumps(asdict(options) | {"history_file": str(history_file)})
    with started([sys.executable, script, str(port), arguments], port) as pid:
        yield EngineStub(f"http://127.0.0.1:{port}/v1", port, pid, history_file)
