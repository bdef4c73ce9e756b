"""CPU and memory used by a process, by the machine and by foreign processes, from /proc of Linux."""

import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20


def cpu_s(pid: int) -> float:
    """User and system time of a process, including its ended threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def tree_cpu_s(pid: int) -> float:
    """CPU time of a process, its living descendants, and its ended and reaped children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        below = children(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S + sum(map(tree_cpu_s, below))


def memory_mib(pid: int, name: str = "VmHWM") -> float:
    """Peak resident memory, or another line of the process's status."""
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith(name + ":"):
            return int(row.split()[1]) * 1024 / _MIB
    raise LookupError(f"process {pid} has no {name}")


def forget_peak(pid: int) -> None:
    """Resets VmHWM."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in listed for child in file.read_text().split()]


def name(pid: int) -> str:
    """The name that `ps` shows; for a child of nightmill that is its first role."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def cores() -> int:
    return os.cpu_count() or 1


def busy_s() -> float:
    """Time for which the cores were busy, summed, including time that the host took away (steal)."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


@dataclass(slots=True)
class Used:
    """CPU used during a period. `foreign_share` is the share of all cores that other processes used."""

    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    foreign_share: float = 0.0


@contextmanager
def watched(pids: Mapping[str, int]) -> Iterator[Used]:
    """Yields a `Used` that is filled in when the context ends. This process counts as one of ours."""
    used = Used()
    watched_pids = {**pids, "bench": os.getpid()}
    before = {name: cpu_s(pid) for name, pid in watched_pids.items()}
    busy_before, began = busy_s(), time.perf_counter()
    yield used
    used.wall_s = time.perf_counter() - began
    busy = busy_s() - busy_before
    used.cpu_s = {name: cpu_s(pid) - before[name] for name, pid in watched_pids.items()}
    foreign_s = max(0.0, busy - sum(used.cpu_s.values()))
    used.foreign_share = foreign_s / (used.wall_s * cores()) if used.wall_s else 0.0


def wait_for_quiet(*, share: float = 0.1, timeout_s: float = 8.0) -> bool:
    """Waits until at most `share` of the cores is busy, for at most `timeout_s` seconds."""
    until = time.monotonic() + timeout_s
    while True:
        busy, began = busy_s(), time.perf_counter()
        time.sleep(0.2)
        elapsed_s = (time.perf_counter() - began) * cores()
        if (busy_s() - busy) / elapsed_s < share:
            return True
        if time.monotonic() > until:
            return False


def description() -> dict[str, str]:
    """The machine, in words."""
    model = next(
        (row.partition(":")[2].strip() for row in _rows("/proc/cpuinfo") if row.startswith("model name")), "?"
    )
    memory = next(row.split()[1] for row in _rows("/proc/meminfo") if row.startswith("MemTotal"))
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory": f"{int(memory) / _MIB:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _rows(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
