"""Groups the invalid lines of an input file by their error. No I/O.

Memory does not depend on the number of lines: a bounded number of groups is kept, each with the numbers of
its first lines. Lines whose error belongs to none of them are counted.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

from nightmill.core.batch import LineError
from nightmill.validation.report import hint_of

MOST_GROUPS: Final = 20
FIRST_LINES: Final = 5
# The message quotes a custom_id, so that every line would be a group of its own.
_ONE_GROUP: Final = frozenset({"duplicate_custom_id"})


class LineReport(Protocol):
    """What a validation gives its invalid lines to."""

    def add(self, error: LineError, raw: bytes | None, *, ordinal: int) -> None:
        """Takes an invalid line; `raw` is None for a line that is too long to be read."""
        ...


@dataclass(slots=True)
class ErrorGroup:
    """Invalid lines with the same error.

    Args:
        message: of the first line.
        hint: what to do about it; empty where nothing general can be said.
        lines: the numbers of the first lines.
        count: of all lines.
    """

    code: str
    message: str
    hint: str
    lines: list[int] = field(default_factory=list[int])
    count: int = 0


class ErrorGroups:
    """Collects the errors of lines as a validation finds them.

    Args:
        report: gets every invalid line too.
    """

    def __init__(self, report: LineReport | None = None) -> None:
        self.other_lines = 0
        """The lines of further groups."""
        self._report = report
        self._groups: dict[tuple[str, str], ErrorGroup] = {}

    @property
    def groups(self) -> list[ErrorGroup]:
        """In the order of their first lines."""
        return list(self._groups.values())

    def clear(self) -> None:
        """Forgets all lines: a second pass over the file finds them again."""
        self._groups.clear()
        self.other_lines = 0

    def add(self, error: LineError, raw: bytes | None, *, ordinal: int) -> None:
        if self._report is not None:
            self._report.add(error, raw, ordinal=ordinal)
        hint = hint_of(error, raw)
        key = (error.code, "" if error.code in _ONE_GROUP else f"{error.message} {hint}")
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) == MOST_GROUPS:
                self.other_lines += 1
                return
            group = self._groups[key] = ErrorGroup(error.code, error.message, hint)
        group.count += 1
        if error.line is not None and len(group.lines) < FIRST_LINES:
            group.lines.append(error.line)
