"""Living processes of a process group, and signals to them."""

import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """`command` begins with the name of the process; a forked child has its roles there."""

    process_id: int
    command: str


def living(groups: set[int]) -> list[Process]:
    """Processes of the groups, without those that wait to be reaped."""
    if not groups:
        return []
    if _PROC.is_dir():
        return list(filter(None, (_from_proc(entry, groups) for entry in _PROC.iterdir())))
    columns = ["ps", "-A", "-o", "pid=,pgid=,stat=,command="]
    table = subprocess.run(columns, check=True, capture_output=True, text=True).stdout
    found: list[Process] = []
    for row in table.splitlines():
        process_id, group, state, command = row.split(maxsplit=3)
        if int(group) in groups and not state.startswith("Z"):
            found.append(Process(int(process_id), command))
    return found


def _from_proc(entry: Path, groups: set[int]) -> Process | None:
    if not entry.name.isdecimal():
        return None
    try:
        # The name in the second field may hold spaces and parentheses; the other fields follow it.
        state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        if int(group) not in groups or state == "Z":
            return None
        # A forked child has its parent's command line; its roles are in its name.
        name = (entry / "comm").read_text().strip()
        command = command_of(int(entry.name))
    except (FileNotFoundError, ProcessLookupError):
        return None  # the process has ended meanwhile
    return Process(int(entry.name), f"{name}: {command}")


def command_of(process_id: int) -> str:
    """The command line; empty when the process has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return (_PROC / str(process_id) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def with_children(process_ids: Iterable[int]) -> list[int]:
    """The processes and all their descendants. Linux only."""
    found = list(process_ids)
    for process_id in found:
        for children in (_PROC / str(process_id) / "task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found.extend(map(int, children.read_text().split()))
    return found


def send_signal(number: signal.Signals, process_ids: Iterable[int]) -> list[int]:
    """The ids of the processes that were alive to get the signal."""
    reached: list[int] = []
    for process_id in process_ids:
        with suppress(ProcessLookupError):
            os.kill(process_id, number)
            reached.append(process_id)
    return reached
