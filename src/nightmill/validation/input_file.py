"""Validates a whole input file, given in chunks of any size: makes its line index and finds its errors.

Memory use is eight bytes for each line plus at most a single line. Lines end at `\\n` bytes only. Line
numbers are physical and start at 1. A byte order mark, CRLF, blank lines and a missing last line break are
valid. This module does no I/O: the caller reads the bytes and stores the index.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from nightmill.core.batch import LineError
from nightmill.core.json_text import BOM
from nightmill.core.segment import pack_line
from nightmill.validation.custom_ids import CustomIds, RepeatedHashes
from nightmill.validation.error_groups import LineReport
from nightmill.validation.file_format import LONGEST_SIGNATURE_BYTES, binary_format, other_encoding
from nightmill.validation.line_rules import InputRules, LineChecker, duplicate_custom_id


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """The result of a validation.

    Args:
        total: the valid lines.
        model: None when the lines name no model or several.
        errors: of the file, then of its first invalid lines.
        invalid: the invalid lines, listed in `errors` or not.
        refusals: the errors that concern the file as a whole.
    """

    total: int
    model: str | None
    errors: tuple[LineError, ...]
    invalid: int = 0
    refusals: tuple[LineError, ...] = ()


class InputValidator:
    """The first pass over every line. Pass the whole file to `take`, then call `finish`.

    `is_over` becomes true when further bytes cannot change the result; the caller can stop early.

    Args:
        report: gets each invalid line; the caller takes the rows of a `ValidationReport` after each chunk.
    """

    def __init__(self, rules: InputRules, report: LineReport | None = None) -> None:
        self.is_over = False
        self._rules = rules
        self._report = report
        self._checker = LineChecker(rules)
        self._lines = _LineReader(rules.line_bytes)
        self._custom_ids = CustomIds()
        self._total = 0
        self._beginning: bytes | None = b""
        self._file_errors: list[LineError] = []
        self._line_errors: list[LineError] = []
        self._bad_lines = 0

    def take(self, chunk: bytes) -> bytes:
        """The index records of the lines that end in `chunk`."""
        if self._beginning is not None:
            chunk = self._beginning + chunk
            if len(chunk) < LONGEST_SIGNATURE_BYTES:
                self._beginning = chunk
                return b""
            return self._begin(chunk)
        return self._index(self._lines.feed(chunk))

    def finish(self) -> bytes:
        """The index records of the last lines: a line without a line break, or a file of a few bytes."""
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
        """The second pass over the file, or None when no custom_id is repeated. Call once, at the end.

        The second pass finds all invalid lines again, so that its records and its report replace those of
        the first.
        """
        repeated_hashes = self._custom_ids.repeated_hashes()
        if not repeated_hashes.repeats:
            return None
        return DuplicatePass(self._rules, repeated_hashes, self._report)

    def result(self, duplicate_pass: "DuplicatePass | None" = None) -> ValidationResult:
        repeats = duplicate_pass.errors if duplicate_pass else []
        repeat_count = duplicate_pass.repeats if duplicate_pass else 0
        bad_lines = self._bad_lines + repeat_count
        listed = sorted(self._line_errors + repeats, key=lambda error: error.line or 0)
        del listed[self._rules.listed_errors :]
        errors = self._file_errors + listed
        if bad_lines > len(listed):
            more = f"{bad_lines - len(listed)} more lines have errors that are not listed here."
            errors.append(LineError("too_many_errors", more))
        models = self._checker.models
        return ValidationResult(
            self._total - repeat_count,
            models[0] if len(models) == 1 else None,
            tuple(errors),
            bad_lines,
            tuple(self._file_errors),
        )

    def _begin(self, text: bytes) -> bytes:
        self._beginning = None
        if name := binary_format(text) or other_encoding(text):
            self._refuse_file("invalid_file", f"The input file is {name}. It must be JSON Lines in UTF-8.")
            return b""
        return self._index(self._lines.feed(text))

    def _index(self, lines: "Iterator[tuple[int, int, bytes | None]]") -> bytes:
        check, add, listed = self._checker.check, self._custom_ids.add, self._rules.listed_errors
        max_lines, total, bad_lines = self._rules.lines_per_file, self._total, self._bad_lines
        report = self._report
        records: list[bytes] = []
        for number, offset, line in lines:
            if line is None:
                result = _too_long(number, self._rules.line_bytes)
            elif line.isspace():
                continue
            else:
                result = check(line, number)
            if total + bad_lines >= max_lines:
                message = (
                    f"The input file holds more than {max_lines} requests; one batch may hold {max_lines}."
                )
                self._refuse_file("too_many_tasks", message)
                break
            if isinstance(result, str):
                add(result)
                assert line is not None
                records.append(pack_line(offset, len(line) - 1, total + bad_lines))
                total += 1
            else:
                if report is not None:
                    report.add(result, line, ordinal=total + bad_lines)
                bad_lines += 1
                if bad_lines <= listed:
                    self._line_errors.append(result)
        self._total, self._bad_lines = total, bad_lines
        return b"".join(records)

    def _refuse_file(self, code: str, message: str) -> None:
        self._file_errors.append(LineError(code, message))
        self.is_over = True


class DuplicatePass:
    """The second pass: compares the custom_ids with repeated hashes. Pass the same file as to the validator.

    A line whose custom_id an earlier line has is invalid. `errors` lists the repeats up to the limit,
    `repeats` counts all of them.
    """

    def __init__(
        self, rules: InputRules, repeated_hashes: RepeatedHashes, report: LineReport | None = None
    ) -> None:
        self.is_over = False
        self.errors: list[LineError] = []
        self.repeats = 0
        self._rules = rules
        self._report = report
        self._checker = LineChecker(rules)
        self._lines = _LineReader(rules.line_bytes)
        self._repeated_hashes = repeated_hashes
        self._ordinal = 0

    def take(self, chunk: bytes) -> bytes:
        """The index records of the valid lines that end in `chunk`."""
        return self._index(self._lines.feed(chunk))

    def finish(self) -> bytes:
        return b"" if self.is_over else self._index(self._lines.rest())

    def _index(self, lines: "Iterator[tuple[int, int, bytes | None]]") -> bytes:
        records: list[bytes] = []
        for number, offset, line in lines:
            if line is not None and line.isspace():
                continue
            if self._ordinal == self._rules.lines_per_file:
                self.is_over = True
                break
            if line is None:
                result: str | LineError = _too_long(number, self._rules.line_bytes)
            else:
                result = self._checker.check(line, number)
            if isinstance(result, str) and self._repeated_hashes.is_repeat(result):
                result = duplicate_custom_id(result, number)
                self.repeats += 1
                if len(self.errors) < self._rules.listed_errors:
                    self.errors.append(result)
            if isinstance(result, LineError):
                if self._report is not None:
                    self._report.add(result, line, ordinal=self._ordinal)
            elif line is not None:
                records.append(pack_line(offset, len(line) - 1, self._ordinal))
            self._ordinal += 1
        return b"".join(records)


class _LineReader:
    """Number, offset and bytes of every line, with its line break; None instead of too long a line."""

    def __init__(self, line_bytes: int) -> None:
        self._line_bytes = line_bytes
        self._number = 0
        self._offset = 0
        self._unfinished = bytearray()
        self._skipped_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, int, bytes | None]]:
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._keep(chunk)
            return
        start = 0
        if self._skipped_bytes:
            start = chunk.find(b"\n") + 1
            self._number += 1
            yield self._number, self._offset, None
            self._offset += self._skipped_bytes + start
            self._skipped_bytes = 0
        elif self._unfinished:
            start = chunk.find(b"\n") + 1
            self._unfinished += chunk[:start]
            text = bytes(self._unfinished)
            self._unfinished = bytearray()  # a line may be long: keep no third copy while it is checked
            yield from self._whole(text)
        yield from self._whole(chunk[start:end])
        self._keep(chunk[end:])

    def rest(self) -> Iterator[tuple[int, int, bytes | None]]:
        if self._skipped_bytes:
            yield self._number + 1, self._offset, None
        elif self._unfinished:
            yield from self._whole(bytes(self._unfinished) + b"\n")

    def _whole(self, text: bytes) -> Iterator[tuple[int, int, bytes | None]]:
        number, offset, max_bytes = self._number, self._offset, self._line_bytes + 1
        for line in BytesIO(text):
            number += 1
            length_bytes = len(line)
            if number == 1 and line.startswith(BOM):
                line = line.removeprefix(BOM)  # noqa: PLW2901 - the line without the mark
                offset += len(BOM)
                length_bytes -= len(BOM)
            yield number, offset, line if length_bytes <= max_bytes else None
            offset += length_bytes
        self._number, self._offset = number, offset

    def _keep(self, text: bytes) -> None:
        if self._skipped_bytes:
            self._skipped_bytes += len(text)
            return
        self._unfinished += text
        if len(self._unfinished) > self._line_bytes + len(BOM):
            self._skipped_bytes = len(self._unfinished)
            self._unfinished = bytearray()


def _too_long(number: int, line_bytes: int) -> LineError:
    return LineError("line_too_long", f"This line is longer than {line_bytes} bytes.", None, number)
