"""The check of an input file on this machine, for `validate`, `submit` and `run`: its errors, in groups.

The rules are those of the server. A file that is no request lines at all has one error, which says what it is
and how to convert it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, BinaryIO, Final, TextIO

from nightmill.cli.screen import clean
from nightmill.core.batch import LineError
from nightmill.errors import RequestError
from nightmill.validation import (
    DuplicatePass,
    ErrorGroup,
    ErrorGroups,
    InputRules,
    InputValidator,
    ValidationReport,
    ValidationResult,
    foreign_format,
    report_row,
)
from nightmill.validation.foreign_format import BEGINNING_BYTES

if TYPE_CHECKING:
    from nightmill.validation import ForeignFormat

_CHUNK_BYTES: Final = 1 << 20
_FOREIGN_CODES: Final = frozenset({"empty_file", "invalid_file"})
_NARROW_COLUMNS: Final = 60


@dataclass(frozen=True, slots=True)
class CheckedInput:
    """What a check of a file has found."""

    result: ValidationResult
    groups: ErrorGroups

    @property
    def counts(self) -> str:
        """`2 of 7 lines are invalid`."""
        invalid, lines = self.result.invalid, self.result.total + self.result.invalid
        return f"{invalid:,} of {lines:,} {'lines are' if lines > 1 else 'line is'} invalid"

    @property
    def is_foreign(self) -> bool:
        """Whether the file is no request lines at all."""
        return any(error.code in _FOREIGN_CODES for error in self.result.refusals)

    @property
    def is_capped(self) -> bool:
        """Whether `error_text` leaves lines out."""
        groups = self.groups.groups
        return bool(self.groups.other_lines) or any(group.count > len(group.lines) for group in groups)


def foreign(path: Path) -> "ForeignFormat | None":
    """What the file is instead of request lines, or None."""
    with path.open("rb") as stream:
        return foreign_format(stream.read(BEGINNING_BYTES))


def refuse_foreign(path: Path, name: Path) -> None:
    """Refuses a file that is no request lines, with what it is and how to convert it.

    Args:
        name: the path that the user gave.
    """
    found = foreign(path)
    if found is not None:
        raise RequestError(found.refusal(str(name)), code=found.code)


def checked(path: Path, rules: InputRules, *, name: Path, report: BinaryIO | None = None) -> CheckedInput:
    """Checks every line.

    Args:
        name: the path that the user gave.
        report: gets the rows of the validation report.
    """
    found = foreign(path)
    if found is not None:
        error = LineError(found.code, found.refusal(str(name)))
        if report is not None:
            report.write(report_row(error))
        return CheckedInput(ValidationResult(0, None, (error,), refusals=(error,)), ErrorGroups())
    rows = None if report is None else ValidationReport()
    groups = ErrorGroups(rows)
    validator = InputValidator(rules, groups)
    with path.open("rb") as stream:
        _run(validator, stream, rows, report)
        duplicate_pass = validator.duplicate_pass()
        if duplicate_pass is not None:
            stream.seek(0)
            groups.clear()
            if report is not None:
                report.truncate(report.seek(0))
            _run(duplicate_pass, stream, rows, report)
    result = validator.result(duplicate_pass)
    if report is not None:
        report.write(b"".join(map(report_row, result.refusals)))
    return CheckedInput(result, groups)


def _run(
    validator: "InputValidator | DuplicatePass",
    stream: BinaryIO,
    rows: ValidationReport | None,
    report: BinaryIO | None,
) -> None:
    """Gives the whole file to `validator`, and the rows of its report to `report`."""
    while not validator.is_over and (chunk := stream.read(_CHUNK_BYTES)):
        validator.take(chunk)
        if rows is not None and report is not None:
            report.write(rows.take())
    validator.finish()
    if rows is not None and report is not None:
        report.write(rows.take())


def error_text(found: CheckedInput, stream: TextIO) -> list[str]:
    """The errors as lines: those of the file, then each kind of error of its lines once.

    Args:
        stream: where they go; on a terminal they fit its width, a pipe gets each message on one line.
    """
    width = max(_NARROW_COLUMNS, get_terminal_size().columns) if stream.isatty() else None
    texts = [clean(error.message) for error in found.result.refusals]
    for group in found.groups.groups:
        texts += _group_text(group, width)
    if found.groups.other_lines:
        texts.append(f"{found.groups.other_lines:,} more lines have other errors")
    return texts


def _group_text(group: ErrorGroup, width: int | None) -> Iterator[str]:
    numbers = ", ".join(f"{number:,}" for number in group.lines)
    if group.count == 1:
        yield f"line {numbers}: {group.code}"
    else:
        more = group.count - len(group.lines)
        rest = f" and {more:,} more" if more else ""
        yield f"{group.count:,} lines: {group.code} (lines {numbers}{rest})"
    for text in (group.message, group.hint):
        if width is None or not text:
            yield from [f"  {clean(text)}"] if text else []
        else:
            yield from wrap(clean(text), width, initial_indent="  ", subsequent_indent="  ")


def first_endpoint(path: Path) -> str | None:
    """The endpoint of the first line that names a known one; bad lines before it are skipped."""
    from nightmill.core.batch import ENDPOINTS
    from nightmill.core.request_line import endpoint_in

    with path.open("rb") as stream:
        for _ in range(100):
            url = endpoint_in(stream.readline(_CHUNK_BYTES))
            if url in ENDPOINTS:
                return url
    return None
