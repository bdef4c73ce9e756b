"""Batches as bars below the cell of a notebook (Jupyter, Colab, VS Code).

The bars are plain HTML that the kernel replaces, so they need no widget package, and a saved notebook keeps
the last state. What the texts say belongs to `progress`; bars on a terminal belong to `terminal`.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from nightmill.client import progress

_STYLE: Final = "width: 20em; vertical-align: middle"


@dataclass(frozen=True, slots=True)
class Bar:
    """One batch as it is shown.

    Args:
        total: 0 while that is not known.
        text: beside the bar.
        notes: below it.
        has_ended: whether nothing will change any more.
    """

    done: int
    total: int
    text: str
    notes: tuple[str, ...] = ()
    has_ended: bool = False

    @property
    def html(self) -> str:
        """Without a value the bar moves to and fro."""
        values = f'value="{self.done}" max="{self.total or 1}" ' if self.total or self.has_ended else ""
        notes = "".join(f'<div style="opacity: 0.7">{escape(note)}</div>' for note in self.notes)
        bar = f'<progress {values}style="{_STYLE}"></progress>'
        return f'<div role="status">{bar} {escape(self.text)}{notes}</div>'


@dataclass(frozen=True, slots=True)
class Bars:
    """What is below the cell: IPython asks for its HTML, or for its text where there is no HTML."""

    bars: tuple[Bar, ...]

    def __repr__(self) -> str:
        return "\n".join(line for bar in self.bars for line in (bar.text, *bar.notes))

    def _repr_html_(self) -> str:
        return "".join(bar.html for bar in self.bars)


class NotebookDisplay:
    """The place below a cell, made with the first bars and replaced by others."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown: Bars | None = None

    def show(self, bars: Bars) -> None:
        if bars == self._shown:
            return
        self._shown = bars
        if self._handle is None:
            display: Any = importlib.import_module("IPython.display")
            self._handle = display.display(bars, display_id=True)
        else:
            self._handle.update(bars)


def is_notebook() -> bool:
    """Whether this program is the kernel of a notebook; an `ipython` in a terminal is none."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    shell: Any = ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def bars(now: Callable[[], float], wall: Callable[[], float]) -> "progress.ShowAll":
    """A function that shows the newest snapshots of all batches."""
    known: dict[str, progress.Tracked] = {}
    display = NotebookDisplay()

    def show(snapshots: Sequence[progress.Snapshot]) -> None:
        tracked = list(progress.track(known, snapshots, now=now(), wall=wall()))
        display.show(Bars(tuple(_bar(it, wall(), are_several=len(tracked) > 1) for it in tracked)))

    return show


def _bar(tracked: "progress.Tracked", wall: float, *, are_several: bool) -> Bar:
    snapshot = tracked.snapshot
    name = f"{snapshot.name} " if are_several else ""
    return Bar(
        done=snapshot.done,
        total=snapshot.total,
        text=f"{name}{progress.sentence(tracked, wall)}",
        notes=tuple(filter(None, (snapshot.why, snapshot.failures))),
        has_ended=snapshot.has_ended,
    )
