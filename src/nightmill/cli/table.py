"""A table that fits the width of the terminal: minor columns are left out, and long cells are cut.

In a pipe the width is 80 columns, so that a table looks the same there. The cells belong to the commands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from nightmill.cli.screen import clean, out
from nightmill.core.words import cut

_GAP: Final = "  "
_LEAST_LAST: Final = 12


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and the cells below it.

    Args:
        drop: 0 for a column that is always shown; of the others, the one with the highest number is left out
            first.
        least: the column is cut to this width before others are left out; 0 for a column that stays whole.
            The last column is always cut.
    """

    heading: str
    cells: Sequence[str]
    drop: int = 0
    least: int = 0

    @property
    def width(self) -> int:
        return max(map(len, (self.heading, *self.cells)))


def out_fitted(columns: Sequence[Column], width: int | None) -> None:
    """Prints the columns, within `width` unless it is None."""
    for line in fitted([replace(it, cells=[clean(cell) for cell in it.cells]) for it in columns], width):
        out(line)


def fitted(columns: Sequence[Column], width: int | None) -> list[str]:
    """The lines of the table, without trailing blanks."""
    shown = [column for column in columns if any(column.cells) or not column.drop]
    if width is not None:
        while _least_width(shown) > width and any(column.drop for column in shown):
            dropped = max(shown, key=lambda column: column.drop)
            shown = [column for column in shown if column is not dropped]
    widths = [column.width for column in shown] if width is None else _widths(shown, width)
    rows = zip(*((column.heading, *column.cells) for column in shown), strict=True)
    return [
        _GAP.join(cut(cell, most).ljust(most) for cell, most in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """The room that is left goes to the columns that are cut, from left to right."""
    spare = max(0, width - _least_width(columns))
    widths: list[int] = []
    for column in columns[:-1]:
        least = _least(column)
        widths.append(min(column.width, least + spare))
        spare -= widths[-1] - least
    left = width - sum(widths) - len(_GAP) * len(widths)
    return [*widths, max(_LEAST_LAST, min(columns[-1].width, left))]


def _least(column: Column) -> int:
    return min(column.width, column.least or column.width)


def _least_width(columns: Sequence[Column]) -> int:
    *first, last = columns
    return sum(_least(column) + len(_GAP) for column in first) + min(last.width, last.least or _LEAST_LAST)
