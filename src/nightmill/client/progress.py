"""Shows the progress of a batch on stderr: a moving bar on a terminal, otherwise a line from time to time.

`Pace` computes the rate and the remaining time from counts over time, without I/O.
"""

import sys
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import TextIO, TypeAlias

from nightmill.client.words import clock
from nightmill.client import notebook
from nightmill.core.batch import TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The progress of a batch.

    Args:
        in_flight: None where the server does not report it.
        held: why lines are not sent, in words; None while they are.
        why: what limits the batch, in a sentence; None where the server does not report it.
        ends_at: when the server expects the end, in Unix seconds; None where it expects none.
        latest_at: the end of the range in which that is, likewise.
    """

    status: str
    total: int
    completed: int
    failed: int
    in_flight: int | None = None
    held: str | None = None
    why: str | None = None
    ends_at: float | None = None
    latest_at: float | None = None

    @property
    def answered(self) -> int:
        return self.completed + self.failed


Show: TypeAlias = Callable[[Snapshot], None]


class Pace:
    """Answers a second over the last `window_s`, and the remaining time at that rate."""

    def __init__(self, *, window_s: float = 30.0) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, answered: int, *, now: float) -> None:
        self._seen.append((now, answered))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._window_s:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """None until there are two snapshots at different times."""
        if not self._seen:
            return None
        (begun, before), (ended, after) = self._seen[0], self._seen[-1]
        return (after - before) / (ended - begun) if ended > begun else None

    def left_s(self, total: int) -> float | None:
        """None while the rate is zero."""
        rate = self.per_second
        if not rate or not self._seen:
            return None
        return max(0, total - self._seen[-1][1]) / rate


def sentence(snapshot: Snapshot, pace: Pace) -> str:
    parts = [f"{snapshot.status}: {snapshot.answered:,} of {snapshot.total:,} answered"]
    rate, left_s = pace.per_second, pace.left_s(snapshot.total)
    if rate:
        parts.append(f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s")
    if snapshot.ends_at is not None and snapshot.latest_at is not None:
        parts.append(f"ends about {_time(snapshot.ends_at)}, by {_time(snapshot.latest_at)} in 9 of 10 cases")
    elif left_s and snapshot.status == "in_progress" and snapshot.why is None:
        parts.append(f"{clock(left_s)} to go")
    if snapshot.failed:
        parts.append(f"{snapshot.failed:,} failed")
    if snapshot.in_flight is not None and snapshot.status == "in_progress":
        parts.append(f"{snapshot.in_flight:,} in flight")
    said = ", ".join(parts)
    return f"{said}; {snapshot.held}" if snapshot.held else said


def _time(unix_s: float) -> str:
    """The local time, with the day if it is not within 12 hours."""
    moment, now = datetime.fromtimestamp(unix_s).astimezone(), datetime.now().astimezone()
    is_near = abs((moment - now).total_seconds()) < 12 * 3600
    return moment.strftime("%H:%M:%S" if is_near else "%Y-%m-%d %H:%M")


@contextmanager
def shown(stream: TextIO | None = None, *, now: Callable[[], float] = monotonic) -> Generator[Show]:
    """Gives a function that shows each snapshot on `stream` (stderr), fitting what the stream is.

    In a notebook, and without a stream, the snapshots are shown below the cell.
    """
    if stream is None and notebook.is_notebook():
        yield _in_notebook(now)
        return
    target: TextIO = sys.stderr if stream is None else stream
    showing = _bar(target, now) if target.isatty() else _plain(target, now)
    with showing as show:
        yield show


def _in_notebook(now: Callable[[], float]) -> Show:
    pace, display = Pace(), notebook.NotebookDisplay()

    def show(snapshot: Snapshot) -> None:
        pace.note(snapshot.answered, now=now())
        display.show(
            notebook.Bar(
                done=snapshot.answered,
                total=snapshot.total,
                text=sentence(snapshot, pace),
                note=snapshot.why or "",
                has_ended=snapshot.status in TERMINAL,
            )
        )

    return show


@contextmanager
def _plain(stream: TextIO, now: Callable[[], float], *, every_s: float = 5.0) -> Generator[Show]:
    pace = Pace()
    last_status = last_why = ""
    next_at = 0.0

    def show(snapshot: Snapshot) -> None:
        nonlocal last_status, last_why, next_at
        moment = now()
        pace.note(snapshot.answered, now=moment)
        if snapshot.status == last_status and moment < next_at:
            return
        last_status, next_at = snapshot.status, moment + every_s
        stream.write(sentence(snapshot, pace) + "\n")
        if snapshot.why and snapshot.why != last_why:
            last_why = snapshot.why
            stream.write(f"  {last_why}\n")
        stream.flush()

    yield show


@contextmanager
def _bar(stream: TextIO, now: Callable[[], float]) -> Generator[Show]:
    # Imported here: only a terminal needs rich, and it is slow to import.
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn  # noqa: PLC0415 - see above

    pace = Pace()
    columns = (BarColumn(bar_width=30), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(file=stream)) as progress:
        bar = progress.add_task("", total=None)

        def show(snapshot: Snapshot) -> None:
            pace.note(snapshot.answered, now=now())
            total = snapshot.total or None
            lines = sentence(snapshot, pace) + (f"\n{snapshot.why}" if snapshot.why else "")
            progress.update(bar, total=total, completed=snapshot.answered, description=lines)

        yield show
