"""Batches on a terminal: a bar each, which moves every half second also while the server is silent.

One batch has all that is known of it below its bar. Several have a row each, and a line that adds them up.
Lines fit the terminal from 80 columns on. Everywhere else `progress` prints plain lines.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nightmill.client.progress import (
    AtEnd,
    ShowAll,
    Snapshot,
    Tracked,
    away,
    counts,
    end,
    rate_text,
    speeds,
    track,
)
from nightmill.core.words import clock, counts_text

_REFRESH_PER_S: Final = 2.0
_LEAST_ROWS: Final = 3
_BAR_COLUMN: Final = 2
_LATE: Final = "bold yellow"
_COLOURS: Final = {
    "completed": "green",
    "failed": "red",
    "expired": "yellow",
    "cancelled": "yellow",
    "cancelling": "yellow",
}


@contextmanager
def bars(
    stream: TextIO, now: Callable[[], float], wall: Callable[[], float], at_end: AtEnd = "kept"
) -> Generator[ShowAll]:
    """Gives a function that shows the newest snapshots of all batches, from its first call on."""
    console = Console(file=stream)
    known: dict[str, Tracked] = {}

    def render() -> RenderableType:
        tracked = list(known.values())
        if not tracked:
            return Text("")
        return one(tracked[0], wall()) if len(tracked) == 1 else several(tracked, wall(), console.height)

    def show(snapshots: Sequence[Snapshot]) -> None:
        for _ in track(known, snapshots, now=now(), wall=wall()):
            pass
        # Before there is anything to show, a started display would print an empty line.
        if known and not live.is_started:
            live.start(refresh=True)

    live = Live(
        console=console,
        get_renderable=render,
        refresh_per_second=_REFRESH_PER_S,
        transient=at_end == "removed",
    )
    try:
        yield show
    finally:
        live.stop()


def one(tracked: Tracked, wall: float) -> RenderableType:
    """One batch, with all that is known of it."""
    snapshot = tracked.snapshot
    head = _grid("left", "left", "left", "right")
    head.add_row(Text(snapshot.name), _status(snapshot), _bar(snapshot), _percent(snapshot))
    lines: list[RenderableType] = [head]
    if text := counts(snapshot):
        lines.append(Text(text))
    lines.append(Text(", ".join(speeds(tracked, wall))))
    ends = end(tracked, wall)
    if ends is not None:
        lines.append(Text(ends.text, style=_LATE if ends.is_late else ""))
    if snapshot.held:
        lines.append(Text(snapshot.held, style=_LATE))
    if snapshot.why and snapshot.away_since is None:
        lines.append(Text(snapshot.why, style="dim"))
    if snapshot.failures:
        lines.append(Text(snapshot.failures, style="red"))
    if text := away(snapshot, wall):
        lines.append(Text(text, style=_LATE))
    return Group(*lines)


def several(all_tracked: Sequence[Tracked], wall: float, height: int) -> RenderableType:
    """A row for each batch, as many as fit, and their sum."""
    most = max(_LEAST_ROWS, height - 3)
    rows = _grid("left", "left", "left", "right", "right", "right", "right")
    for tracked in all_tracked[:most]:
        rows.add_row(*_row(tracked, wall))
    lines: list[RenderableType] = [rows]
    if len(all_tracked) > most:
        lines.append(Text(f"and {len(all_tracked) - most:,} more", style="dim"))
    lines.append(Text(_sum(all_tracked)))
    if text := next(filter(None, (away(it.snapshot, wall) for it in all_tracked)), ""):
        lines.append(Text(text, style=_LATE))
    return Group(*lines)


def _grid(*justify: JustifyMethod) -> Table:
    """A table without lines, of which the third column takes the width that the others leave."""
    grid = Table.grid(padding=(0, 2), expand=True)
    for number, side in enumerate(justify):
        grid.add_column(no_wrap=True, justify=side, ratio=1 if number == _BAR_COLUMN else None)
    return grid


def _row(tracked: Tracked, wall: float) -> tuple[RenderableType, ...]:
    snapshot, rate = tracked.snapshot, tracked.per_second
    ends = end(tracked, wall)
    if snapshot.has_ended:
        to_go, rate = Text(clock(tracked.elapsed_s(wall))), None
    else:
        to_go = Text(
            (snapshot.limit or "") if ends is None else ends.text.split(",")[0],
            style=_LATE if ends and ends.is_late else "",
        )
    if snapshot.away_since is not None:
        rate = None
    return (
        Text(snapshot.name),
        _status(snapshot),
        _bar(snapshot),
        Text(f"{snapshot.done:,}/{snapshot.total:,}" if snapshot.total else ""),
        Text(f"{snapshot.failed:,} failed" if snapshot.failed else "", style="red"),
        Text(rate_text(rate) if rate else ""),
        to_go,
    )


def _sum(all_tracked: Sequence[Tracked]) -> str:
    snapshots = [tracked.snapshot for tracked in all_tracked]
    total = sum(snapshot.total for snapshot in snapshots)
    ok, failed = sum(it.completed for it in snapshots), sum(it.failed for it in snapshots)
    ended = sum(snapshot.has_ended for snapshot in snapshots)
    return f"{ended:,} of {len(snapshots):,} batches ended; {counts_text(total, ok, failed)}"


def _status(snapshot: Snapshot) -> Text:
    return Text(snapshot.status, style=_COLOURS.get(snapshot.status, ""))


def _percent(snapshot: Snapshot) -> Text:
    # Rounded down: 100% is for a batch of which every line is done.
    return Text(f"{100 * snapshot.done // snapshot.total}%" if snapshot.total else "")


def _bar(snapshot: Snapshot) -> RenderableType:
    if not snapshot.total and snapshot.has_ended:
        return Text("")
    return ProgressBar(
        total=snapshot.total or None,
        completed=snapshot.done,
        finished_style=_COLOURS.get(snapshot.status, "green"),
    )
