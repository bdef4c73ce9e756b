"""Code shared by the loops: reads the lines, measures CPU and time, prints the result."""

import json
import os
import resource
import sys
import time
from pathlib import Path


class Stopwatch:
    """CPU and wall time of this process from the construction on, so that imports do not count."""

    def __init__(self) -> None:
        self._cpu_s = _cpu_s()
        self._began = time.perf_counter()

    def print_result(self, lines: int, note: str) -> None:
        result = {
            "us": (_cpu_s() - self._cpu_s) / lines * 1e6,
            "lines_per_s": lines / (time.perf_counter() - self._began),
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "note": note,
        }
        print(json.dumps(result))


def arguments() -> tuple[str, Path, int]:
    url, path, lines = sys.argv[1:4]
    return url, Path(path), int(lines)


def requests(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system
