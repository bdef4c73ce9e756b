"""The progress of a batch as a bar below the cell of a notebook (Jupyter, Colab, VS Code).

The bar is plain HTML that the kernel replaces, so it needs no widget package, and a saved notebook keeps the
last state. What the text says belongs to `progress`.
"""

import importlib
import sys
from dataclasses import dataclass
from html import escape
from typing import Any, Final

_BAR: Final = '<progress value="{done}" max="{total}" style="width: 20em; vertical-align: middle"></progress>'
_BAR_OF_UNKNOWN_LENGTH: Final = '<progress style="width: 20em; vertical-align: middle"></progress>'


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar as it is shown.

    Args:
        total: 0 while that is not known.
        text: beside the bar.
        note: below it; empty without one.
        has_ended: whether nothing will change any more.
    """

    done: int
    total: int
    text: str
    note: str = ""
    has_ended: bool = False

    def __repr__(self) -> str:
        """What a reader without HTML shows."""
        return f"{self.text}\n{self.note}" if self.note else self.text

    def _repr_html_(self) -> str:
        bar = _BAR_OF_UNKNOWN_LENGTH
        if self.total or self.has_ended:
            bar = _BAR.format(done=self.done, total=self.total or 1)
        note = f'<div style="opacity: 0.7">{escape(self.note)}</div>' if self.note else ""
        return f'<div role="status">{bar} {escape(self.text)}{note}</div>'


class NotebookDisplay:
    """The place below a cell, made with the first bar and replaced by each other one."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown: Bar | None = None

    def show(self, bar: Bar) -> None:
        if bar == self._shown:
            return
        self._shown = bar
        if self._handle is None:
            display: Any = importlib.import_module("IPython.display")
            self._handle = display.display(bar, display_id=True)
        else:
            self._handle.update(bar)


def is_notebook() -> bool:
    """Whether this program is the kernel of a notebook; an `ipython` in a terminal is none."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    shell: Any = ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
