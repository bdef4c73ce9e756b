"""Files that a command reads or writes as a whole, with `-` for stdin and stdout."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Final

from nightmill.errors import RequestError

STDIN: Final = Path("-")
STDOUT: Final = STDIN


@contextmanager
def readable(path: Path) -> Generator[Path]:
    """The file itself, or for `-` a copy of stdin that is deleted afterwards."""
    if path != STDIN:
        yield path
        return
    with TemporaryDirectory(prefix="nightmill-") as folder:
        copy = Path(folder) / "stdin.jsonl"
        with copy.open("wb") as stream:
            copyfileobj(sys.stdin.buffer, stream)
        yield copy


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A path to write to. At the end the file gets its name, or goes to stdout for `-`.

    Raises:
        RequestError: the file exists; what is in it may not be replaced silently.
    """
    if path == STDOUT:
        with TemporaryDirectory(prefix="nightmill-") as folder:
            unfinished = Path(folder) / "stdout.jsonl"
            yield unfinished
            copy_out(unfinished)
        return
    if path.exists():
        raise RequestError(f"{path} exists; name another file with --output, or delete it")
    unfinished = path.with_name(f"{path.name}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def copy_out(path: Path) -> None:
    """Writes the file to stdout."""
    with path.open("rb") as stream:
        copyfileobj(stream, sys.stdout.buffer)
    sys.stdout.buffer.flush()
