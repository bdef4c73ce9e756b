"""A whole input file, fed in pieces of any size: its line index, or everything that is wrong with it.

Promise: memory does not follow the size of the file (eight bytes a line, and at most one line is held); lines
end at `\\n` bytes only; line numbers are physical and start at 1; a byte order mark, CRLF, blank lines and a
missing last line break are fine. Not its duty: where the bytes come from and where the index goes. No I/O.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from nightmill.core.batch import LineError
from nightmill.core.json_text import BOM
from nightmill.core.segment import pack_line
from nightmill.validation.custom_ids import CustomIds, Suspects
from nightmill.validation.line_rules import InputRules, LineChecker, duplicate_custom_id

_NOT_TEXT = (
    (b"\x1f\x8b", "gzip data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)
_BEGINNING_BYTES = max(len(beginning) for beginning, _ in _NOT_TEXT)


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """What an validator found. `model` is None when the lines name none or several."""

    total: int
    model: str | None
    errors: tuple[LineError, ...]


class InputValidator:
    """The first look at every line. Feed the whole file to `take`, then call `finish`.

    `is_over` turns true when nothing behind can change the findings; feeding may stop then.
    """

    def __init__(self, rules: InputRules) -> None:
        self.is_over = False
        self._rules = rules
        self._checker = LineChecker(rules)
        self._lines = _LineReader(rules.line_bytes)
        self._custom_ids = CustomIds()
        self._total = 0
        self._beginning: bytes | None = b""
        self._file_errors: list[LineError] = []
        self._line_errors: list[LineError] = []
        self._bad_lines = 0

    def take(self, chunk: bytes) -> bytes:
        """The index records of the lines that ended in `chunk`."""
        if self._beginning is not None:
            chunk = self._beginning + chunk
            if len(chunk) < _BEGINNING_BYTES:
                self._beginning = chunk
                return b""
            return self._begin(chunk)
        return self._index(self._lines.feed(chunk))

    def finish(self) -> bytes:
        """The index records of the last lines: one has no line break, or the file is a few bytes long."""
        records = self._begin(self._beginning) if self._beginning else b""
        if not self.is_over:
            records += self._index(self._lines.rest())
        if not self._total and not self._file_errors and not self._bad_lines:
            message = "The input file is empty. Please ensure that the batch contains at least one request."
            self._refuse_file("empty_file", message)
        inputs, limit = self._checker.embedding_inputs, self._rules.embedding_inputs
        if inputs > limit:
            message = f"The input file holds {inputs} embedding inputs; one batch may hold {limit}."
            self._refuse_file("too_many_embedding_inputs", message)
        return records

    def duplicate_pass(self) -> "DuplicatePass | None":
        """None when no custom_id can have come twice; else feed it the whole file. Ask once, at the end."""
        suspects = self._custom_ids.suspects()
        return DuplicatePass(self._rules, suspects) if suspects.repeats else None

    def result(self, duplicate_pass: "DuplicatePass | None" = None) -> ValidationResult:
        repeats = duplicate_pass.errors if duplicate_pass else []
        bad_lines = self._bad_lines + (duplicate_pass.repeats if duplicate_pass else 0)
        listed = sorted(self._line_errors + repeats, key=lambda error: error.line or 0)
        del listed[self._rules.listed_errors :]
        errors = self._file_errors + listed
        if bad_lines > len(listed):
            more = f"{bad_lines - len(listed)} more lines have errors that are not listed here."
            errors.append(LineError("too_many_errors", more))
        models = self._checker.models
        return ValidationResult(self._total, models[0] if len(models) == 1 else None, tuple(errors))

    def _begin(self, text: bytes) -> bytes:
        self._beginning = None
        for beginning, name in _NOT_TEXT:
            if text.startswith(beginning):
                self._refuse_file(
                    "invalid_file", f"The input file is {name}. It must be JSON Lines in UTF-8."
                )
                return b""
        return self._index(self._lines.feed(text))

    def _index(self, lines: "Iterator[tuple[int, int, bytes | None]]") -> bytes:
        check, add, listed = self._checker.check, self._custom_ids.add, self._rules.listed_errors
        most, total, bad_lines = self._rules.lines_per_file, self._total, self._bad_lines
        records: list[bytes] = []
        for number, offset, line in lines:
            if line is None:
                found = _too_long(number, self._rules.line_bytes)
            elif line.isspace():
                continue
            else:
                found = check(line, number)
            if total + bad_lines >= most:
                message = f"The input file holds more than {most} requests; one batch may hold {most}."
                self._refuse_file("too_many_tasks", message)
                break
            if isinstance(found, str):
                add(found)
                assert line is not None
                records.append(pack_line(offset, len(line) - 1, total))
                total += 1
            else:
                bad_lines += 1
                if bad_lines <= listed:
                    self._line_errors.append(found)
        self._total, self._bad_lines = total, bad_lines
        return b"".join(records)

    def _refuse_file(self, code: str, message: str) -> None:
        self._file_errors.append(LineError(code, message))
        self.is_over = True


class DuplicatePass:
    """Compares the custom_ids whose hashes came twice. Feed it the same file as the validator it came from.

    `errors` lists the repeats found, `repeats` counts them all.
    """

    def __init__(self, rules: InputRules, suspects: Suspects) -> None:
        self.is_over = False
        self.errors: list[LineError] = []
        self._rules = rules
        self._checker = LineChecker(rules)
        self._lines = _LineReader(rules.line_bytes)
        self._suspects = suspects

    @property
    def repeats(self) -> int:
        return max(self._suspects.repeats, len(self.errors)) if self.is_over else len(self.errors)

    def take(self, chunk: bytes) -> None:
        self._compare(self._lines.feed(chunk))

    def finish(self) -> None:
        if not self.is_over:
            self._compare(self._lines.rest())

    def _compare(self, lines: "Iterator[tuple[int, int, bytes | None]]") -> None:
        for number, _, line in lines:
            if line is None or line.isspace():
                continue
            found = self._checker.check(line, number)
            if isinstance(found, str) and self._suspects.is_repeat(found):
                self.errors.append(duplicate_custom_id(found, number))
                if len(self.errors) == self._rules.listed_errors:
                    self.is_over = True
                    return


class _LineReader:
    """Number, offset and bytes of every line, its line break included; None for one that is too long."""

    def __init__(self, line_bytes: int) -> None:
        self._line_bytes = line_bytes
        self._number = 0
        self._offset = 0
        self._begun = bytearray()
        self._skipped_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, int, bytes | None]]:
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._hold(chunk)
            return
        start = 0
        if self._skipped_bytes:
            start = chunk.find(b"\n") + 1
            self._number += 1
            yield self._number, self._offset, None
            self._offset += self._skipped_bytes + start
            self._skipped_bytes = 0
        elif self._begun:
            start = chunk.find(b"\n") + 1
            yield from self._whole(bytes(self._begun + chunk[:start]))
            self._begun = bytearray()
        yield from self._whole(chunk[start:end])
        self._hold(chunk[end:])

    def rest(self) -> Iterator[tuple[int, int, bytes | None]]:
        if self._skipped_bytes:
            yield self._number + 1, self._offset, None
        elif self._begun:
            yield from self._whole(bytes(self._begun) + b"\n")

    def _whole(self, text: bytes) -> Iterator[tuple[int, int, bytes | None]]:
        number, offset, most = self._number, self._offset, self._line_bytes + 1
        for line in BytesIO(text):
            number += 1
            length_bytes = len(line)
            if number == 1 and line.startswith(BOM):
                line = line.removeprefix(BOM)  # noqa: PLW2901 - the line is what is left of it
                offset += len(BOM)
                length_bytes -= len(BOM)
            yield number, offset, line if length_bytes <= most else None
            offset += length_bytes
        self._number, self._offset = number, offset

    def _hold(self, text: bytes) -> None:
        if self._skipped_bytes:
            self._skipped_bytes += len(text)
            return
        self._begun += text
        if len(self._begun) > self._line_bytes + len(BOM):
            self._skipped_bytes = len(self._begun)
            self._begun = bytearray()


def _too_long(number: int, line_bytes: int) -> LineError:
    return LineError("line_too_long", f"This line is longer than {line_bytes} bytes.", None, number)
