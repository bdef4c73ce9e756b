"""The files of a run: whether they are those of a finished run, its failed lines, and the merge of a retry.

A finished run leaves nothing but its output and its error file, which together have each line of the input,
in its order. So these files alone show whether an input is answered: by their custom_ids, and by the input
being no newer. Memory depends on the number of failed lines only.
"""

import json
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import msgspec

from nightmill.core.json_text import BOM
from nightmill.errors import RequestError

_FOLDER_SUFFIX: Final = ".nightmill"


def work_folder(input_path: Path) -> Path:
    """The folder with the state of an unfinished run of the input."""
    return input_path.with_name(input_path.name + _FOLDER_SUFFIX)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The input of a run, and where its lines go: those with a 2xx to `output`, all others to `errors`."""

    input: Path
    output: Path
    errors: Path

    @property
    def work_folder(self) -> Path:
        return work_folder(self.input)

    @property
    def retry(self) -> "RunFiles":
        """The files of a run of the failed lines only."""
        folder = self.input.with_name(f"{self.input.name}{_FOLDER_SUFFIX}-retry")
        return RunFiles(folder / "requests.jsonl", folder / "output.jsonl", folder / "errors.jsonl")


@dataclass(frozen=True, slots=True)
class LineCounts:
    """The lines of a finished run."""

    completed: int
    failed: int


class _Line(msgspec.Struct, gc=False):
    custom_id: str | None = None


_decoder: Final = msgspec.json.Decoder(_Line)


def counts_if_finished(files: RunFiles) -> LineCounts | None:
    """The counts if the output and error file are those of the input; None if neither exists.

    Raises:
        RequestError: they are of another input, or the input has changed since.
    """
    written = [path.stat().st_mtime_ns for path in (files.output, files.errors) if path.is_file()]
    if not written:
        return None
    counts = _matched(files) if files.input.stat().st_mtime_ns <= max(written) else None
    if counts is None:
        there = files.output if files.output.is_file() else files.errors
        raise RequestError(
            f"{there} exists, but not with the answers of {files.input} as it is now; replace it with"
            " --again (in Python rerun='all'), or name another output"
        )
    return counts


def _matched(files: RunFiles) -> LineCounts | None:
    """The counts if each line of the input is in exactly one of the two files, in order; else None."""
    completed = failed = 0
    with files.input.open("rb") as stream, _opened(files.output) as output, _opened(files.errors) as errors:
        for raw in _lines(stream):
            custom_id = _custom_id(raw)
            if output.take(custom_id) is not None:
                completed += 1
            elif errors.take(custom_id) is not None:
                failed += 1
            else:
                return None
        is_whole = output.is_over and errors.is_over
    return LineCounts(completed, failed) if is_whole and completed + failed else None


def write_failed(files: RunFiles, target: Path) -> None:
    """Writes the request lines of which the error file has a line."""
    with _opened(files.errors) as errors, files.input.open("rb") as stream, replaced(target) as out:
        for raw in _lines(stream):
            if errors.take(_custom_id(raw)) is not None:
                out.write(raw)


def merge_retry(files: RunFiles) -> LineCounts:
    """Puts the lines of the retry in place of the failed ones. After a crash the same call finishes it.

    Each request has its newest success, else its newest error.
    """
    retry = files.retry
    completed = failed = 0
    with ExitStack() as stack:
        newest = [stack.enter_context(_opened(path)) for path in (retry.output, files.output)]
        failures = [stack.enter_context(_opened(path)) for path in (retry.errors, files.errors)]
        stream = stack.enter_context(files.input.open("rb"))
        # The stack ends in reverse, so the output is replaced before the errors. What a crash between the two
        # leaves is merged to the same files.
        errors = stack.enter_context(replaced(files.errors))
        output = stack.enter_context(replaced(files.output))
        for raw in _lines(stream):
            custom_id = _custom_id(raw)
            good = [reader.take(custom_id) for reader in newest]
            bad = [reader.take(custom_id) for reader in failures]
            if success := next(filter(None, good), None):
                output.write(success)
                completed += 1
            elif error := next(filter(None, bad), None):
                errors.write(error)
                failed += 1
    for path, count in ((files.output, completed), (files.errors, failed)):
        if not count:
            delete_earlier(path)
    return LineCounts(completed, failed)


class _Reader:
    """The lines of a file whose custom_ids are in the order of the input."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._lines = iter(()) if stream is None else _lines(stream)
        self._step()

    @property
    def is_over(self) -> bool:
        return self._head is None

    def take(self, custom_id: str | None) -> bytes | None:
        """The next line, if it is of this request."""
        head = self._head
        if head is None or self._custom_id != custom_id:
            return None
        self._step()
        return head

    def _step(self) -> None:
        self._head = next(self._lines, None)
        self._custom_id = None if self._head is None else _custom_id(self._head)


@contextmanager
def _opened(path: Path) -> Generator[_Reader]:
    if not path.is_file():
        yield _Reader(None)
        return
    with path.open("rb") as stream:
        yield _Reader(stream)


@contextmanager
def replaced(path: Path) -> Generator[BinaryIO]:
    """A file that gets its name once it is whole and durable. One that is not regular is written directly."""
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)


def delete_earlier(path: Path) -> None:
    """Deletes the file that an earlier run has written and this one has no line for."""
    if path.is_file():
        path.unlink()


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines that are not blank, each with its line break."""
    for number, line in enumerate(stream):
        raw = line.removeprefix(BOM) if number == 0 else line
        if raw.strip():
            yield raw if raw.endswith(b"\n") else raw + b"\n"


def _custom_id(raw: bytes) -> str | None:
    try:
        return _decoder.decode(raw).custom_id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _irregular_custom_id(raw)


def _irregular_custom_id(raw: bytes) -> str | None:
    """Of a line that msgspec does not decode, such as one with lone surrogates."""
    try:
        line: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    found: Any = cast("dict[str, Any]", line).get("custom_id") if isinstance(line, dict) else None
    return found if isinstance(found, str) else None
