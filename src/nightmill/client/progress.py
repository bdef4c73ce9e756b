"""Shows the progress of batches on stderr: moving bars on a terminal, otherwise a line from time to time.

A `Snapshot` is what is known of a batch, `Pace` computes the rate and the time to go from counts over time,
and the sentences are made of both, without I/O. The bars belong to `terminal`, reading batches to `watching`.
"""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Literal, NamedTuple, TextIO, TypeAlias

from nightmill.core.batch import TERMINAL
from nightmill.core.words import clock, counts_text, final_counts_text, moment, short_id

_PLAIN_EVERY_S = 5.0
_FEW = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The progress of a batch. Times are Unix seconds.

    Args:
        batch_id: empty for a run without a server.
        in_flight: None where the server does not report it, as for the three below.
        retrying: lines that failed and wait to be sent again.
        lines_per_s: the rate as the server measures it.
        tokens_per_s: output tokens.
        tokens: all tokens, once it has ended.
        held: why lines are not sent, in words; None while they are.
        why: what limits the batch, in a sentence; None where the server does not report it.
        limit: the same in few words.
        failures: why lines failed, in words; empty where that is not known.
        started_at: None counts from the first snapshot.
        ended_at: None until it has ended.
        deadline: None without one.
        ends_at: when the server expects the end; None where it expects none.
        latest_at: the end of the range in which that is, likewise.
        away_since: since when the server has not answered; None while it answers.
    """

    status: str
    total: int
    completed: int
    failed: int
    batch_id: str = ""
    in_flight: int | None = None
    retrying: int | None = None
    lines_per_s: float | None = None
    tokens_per_s: float | None = None
    tokens: int | None = None
    held: str | None = None
    why: str | None = None
    limit: str | None = None
    failures: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    deadline: float | None = None
    ends_at: float | None = None
    latest_at: float | None = None
    away_since: float | None = None

    @property
    def done(self) -> int:
        return self.completed + self.failed

    @property
    def name(self) -> str:
        return short_id(self.batch_id)

    @property
    def is_sending(self) -> bool:
        return self.status == "in_progress"

    @property
    def has_ended(self) -> bool:
        return self.status in TERMINAL


Show: TypeAlias = Callable[[Snapshot], None]
ShowAll: TypeAlias = Callable[[Sequence[Snapshot]], None]
AtEnd: TypeAlias = Literal["kept", "removed"]
"""What becomes of the bars in a terminal at the end."""


class Pace:
    """Lines done a second over the last `window_s`, and the time to go at that rate."""

    def __init__(self, *, window_s: float = 30.0) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, done: int, *, now: float) -> None:
        self._seen.append((now, done))
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


@dataclass(slots=True)
class Tracked:
    """A batch on the display: its newest snapshot and its pace since the first one.

    Args:
        began_at: when the display began, in Unix seconds.
    """

    snapshot: Snapshot
    began_at: float
    pace: Pace = field(default_factory=Pace)

    @property
    def per_second(self) -> float | None:
        """Lines done a second: on the display, until then as the server measures it."""
        return self.pace.per_second or self.snapshot.lines_per_s

    def elapsed_s(self, wall: float) -> float:
        since = self.snapshot.started_at or self.began_at
        return max(0.0, (self.snapshot.ended_at or wall) - since)


class EndText(NamedTuple):
    """When a batch ends, in words, and whether that is behind its deadline."""

    text: str
    is_late: bool


def counts(snapshot: Snapshot) -> str:
    """`280 of 300 done (260 ok, 20 failed)`; empty before the lines are counted."""
    if not snapshot.total:
        return ""
    words = final_counts_text if snapshot.has_ended else counts_text
    return words(snapshot.total, snapshot.completed, snapshot.failed)


def speeds(tracked: Tracked, wall: float) -> list[str]:
    """`0:12 elapsed`, `25/s`, `1,200 tokens/s`, `8 in flight`, `3 retrying`: those that are known."""
    snapshot, rate = tracked.snapshot, tracked.per_second
    parts = [f"{clock(tracked.elapsed_s(wall))} elapsed"]
    if snapshot.away_since is not None:
        return parts
    if snapshot.has_ended:
        return [*parts, f"{snapshot.tokens:,} tokens"] if snapshot.tokens else parts
    if rate:
        parts.append(rate_text(rate))
    if snapshot.tokens_per_s:
        parts.append(f"{snapshot.tokens_per_s:,.0f} tokens/s")
    if snapshot.in_flight is not None and snapshot.is_sending:
        parts.append(f"{snapshot.in_flight:,} in flight")
    if snapshot.retrying:
        parts.append(f"{snapshot.retrying:,} retrying")
    return parts


def rate_text(per_second: float) -> str:
    return f"{per_second:,.1f}/s" if per_second < _FEW else f"{per_second:,.0f}/s"


def end(tracked: Tracked, wall: float) -> EndText | None:
    """When the batch ends; None where nothing can be said.

    The forecast of a server counts, otherwise the pace on the display.
    """
    snapshot = tracked.snapshot
    if not snapshot.is_sending or snapshot.away_since is not None:
        return None
    if snapshot.deadline is not None and wall > snapshot.deadline:
        return EndText(f"its deadline was {clock(wall - snapshot.deadline)} ago", is_late=True)
    if snapshot.ends_at is not None and snapshot.latest_at is not None:
        to_go = f"{clock(max(0.0, snapshot.ends_at - wall))} to go"
        about = f"{to_go}, about {moment(snapshot.ends_at, wall)}"
        if late := _late(snapshot.ends_at, snapshot.deadline):
            return EndText(f"{about}, {late}", is_late=True)
        return EndText(f"{about}, by {moment(snapshot.latest_at, wall)} in 9 of 10 cases", is_late=False)
    left_s = tracked.pace.left_s(snapshot.total)
    if left_s is None or snapshot.why is not None:
        return None
    late = _late(wall + left_s, snapshot.deadline)
    return EndText(f"{clock(left_s)} to go" + (f", {late}" if late else ""), is_late=bool(late))


def _late(ends_at: float, deadline: float | None) -> str:
    return (
        "" if deadline is None or ends_at <= deadline else f"{clock(ends_at - deadline)} after its deadline"
    )


def away(snapshot: Snapshot, wall: float) -> str:
    """That the server does not answer; empty while it does."""
    if snapshot.away_since is None:
        return ""
    away_s = max(0.0, wall - snapshot.away_since)
    return f"no answer from the server for {away_s:.0f} s; trying again"


def sentence(tracked: Tracked, wall: float) -> str:
    """All of it on one line."""
    snapshot = tracked.snapshot
    ends = end(tracked, wall)
    parts = [counts(snapshot), *speeds(tracked, wall), "" if ends is None else ends.text]
    said = f"{snapshot.status}: {', '.join(filter(None, parts))}"
    return "; ".join(filter(None, (said, snapshot.held, away(snapshot, wall))))


@contextmanager
def shown(
    stream: TextIO | None = None,
    *,
    now: Callable[[], float] = monotonic,
    wall: Callable[[], float] = time,
    at_end: AtEnd = "kept",
) -> Generator[Show]:
    """Gives a function that shows each snapshot on `stream` (stderr), fitting what the stream is.

    In a notebook, and without a stream, the snapshots are shown below the cell.

    Args:
        at_end: "removed" leaves no bar in a terminal, for a caller that says how the batch ended.
    """
    with shown_all(stream, now=now, wall=wall, at_end=at_end) as show:
        yield lambda snapshot: show([snapshot])


@contextmanager
def shown_all(
    stream: TextIO | None = None,
    *,
    now: Callable[[], float] = monotonic,
    wall: Callable[[], float] = time,
    at_end: AtEnd = "kept",
) -> Generator[ShowAll]:
    """As `shown`, for several batches at once."""
    # Imported here: the bars are made of what this module says.
    from nightmill.client import notebook  # noqa: PLC0415 - see above

    if stream is None and notebook.is_notebook():
        yield notebook.bars(now, wall)
        return
    target: TextIO = sys.stderr if stream is None else stream
    if not target.isatty():
        yield _plain(target, now, wall)
        return
    # Imported here: only a terminal needs rich, and it is slow to import.
    from nightmill.client.terminal import bars  # noqa: PLC0415 - see above

    with bars(target, now, wall, at_end) as show:
        yield show


def track(
    known: dict[str, Tracked], snapshots: Sequence[Snapshot], *, now: float, wall: float
) -> Iterator[Tracked]:
    """Notes each snapshot in `known`, by its batch."""
    for snapshot in snapshots:
        tracked = known.setdefault(snapshot.batch_id, Tracked(snapshot, wall))
        tracked.snapshot = snapshot
        if snapshot.away_since is None:
            tracked.pace.note(snapshot.done, now=now)
        yield tracked


def _plain(stream: TextIO, now: Callable[[], float], wall: Callable[[], float]) -> ShowAll:
    known: dict[str, Tracked] = {}
    last: dict[str, tuple[object, ...]] = {}
    why: dict[str, str] = {}
    next_at: dict[str, float] = {}

    def show(snapshots: Sequence[Snapshot]) -> None:
        at = now()
        for tracked in track(known, snapshots, now=at, wall=wall()):
            snapshot = tracked.snapshot
            key, state = snapshot.batch_id, (snapshot.status, snapshot.away_since is None)
            if last.get(key) == state and (snapshot.has_ended or at < next_at[key]):
                continue
            last[key], next_at[key] = state, at + _PLAIN_EVERY_S
            prefix = f"{snapshot.name} " if len(snapshots) > 1 else ""
            stream.write(f"{prefix}{sentence(tracked, wall())}\n")
            if snapshot.why and snapshot.why != why.get(key):
                why[key] = snapshot.why
                stream.write(f"  {snapshot.why}\n")
            stream.flush()

    return show
