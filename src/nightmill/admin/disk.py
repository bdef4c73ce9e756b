"""What lies in a data folder's blobs: by key, and as the parts of a batch. It only looks."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nightmill.core.batch import Tally, Usage
from nightmill.core.segment import PinnedPart, SegmentResult
from nightmill.errors import SetupError
from nightmill.ids import BatchId
from nightmill.parts.record import read_records
from nightmill.settings import Settings

PARTS = "parts"
UNFINISHED = "tmp"
_PART = re.compile(r"([0-9]+)\.([0-9]+)(?:-([0-9]+))?\.part", re.ASCII)
_READ_BYTES = 1 << 20


def kept_folder(settings: Settings) -> Path:
    """The data folder that has everything.

    Raises:
        SetupError: the bytes lie elsewhere.
    """
    if settings.blobs.url is not None:
        message = (
            f"the blobs lie in {settings.blobs.url}, not in the data folder; "
            "keep them with the object store's own versions and copies, see docs/operations.md"
        )
        raise SetupError(message)
    return settings.folder


def blob_root(folder: Path) -> Path:
    return folder / "blobs"


def size_of(path: Path) -> int | None:
    """None where there is no file."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(frozen=True, slots=True, order=True)
class PartName:
    """Ordered as parts are read: the first answer of a line stands."""

    number: int
    token: int
    copy: int

    @staticmethod
    def of(name: str) -> "PartName | None":
        match = _PART.fullmatch(name)
        return PartName(int(match[1]), int(match[2]), int(match[3] or 0)) if match else None

    def key(self, batch_id: BatchId) -> str:
        copy = f"-{self.copy}" if self.copy else ""
        return f"{batch_id}/{self.number}.{self.token}{copy}.part"


def parts_of(root: Path, batch_id: BatchId) -> list[PartName]:
    """In order; names that are no part's are left out."""
    try:
        names = [path.name for path in (root / PARTS / batch_id).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(part for part in map(PartName.of, names) if part is not None)


@dataclass(slots=True)
class Answers:
    """What a segment's parts hold: whole records only, the first answer of each line."""

    pinned: list[PinnedPart]
    damage: list[str]
    tallies: dict[int, Tally]

    def tally(self, ordinals: "set[int] | None" = None) -> Tally:
        total = Tally()
        for ordinal, one in self.tallies.items():
            if ordinals is None or ordinal in ordinals:
                total = total.plus(one)
        return total


def answers_in(root: Path, result: SegmentResult, names: list[PartName]) -> Answers:
    """Reads every part that counts for the segment.

    What is pinned counts as far as it is pinned. Of a segment that is not done so do parts of dead holders
    that nobody has pinned yet: the next holder will.

    Args:
        names: the batch's parts on disk.
    """
    batch_id, number = result.segment.batch_id, result.segment.number
    answers = Answers([], [], {})
    known = {part.key for part in result.pinned}
    for part in result.pinned:
        end = _read_into(answers, root / PARTS / part.key, part.length_bytes)
        if end is None:
            answers.damage.append(f"part {part.key} is gone")
            continue
        if end < part.length_bytes:
            answers.damage.append(f"part {part.key} is damaged behind byte {end} of {part.length_bytes}")
        if end:
            answers.pinned.append(PinnedPart(part.key, end))
    if result.is_done:
        return answers
    for name in names:
        key = name.key(batch_id)
        if name.number != number or name.token > result.token or key in known:
            continue
        path = root / PARTS / key
        end = _read_into(answers, path, size_of(path) or 0)
        if end:
            answers.pinned.append(PinnedPart(key, end))
    return answers


def _read_into(answers: Answers, path: Path, length_bytes: int) -> int | None:
    """Where the whole records end; None without a file."""
    end = 0
    try:
        with path.open("rb", _READ_BYTES) as file:
            for end, record in read_records(file, length_bytes):  # noqa: B007 - the last is wanted
                is_error = record.output.is_error
                tally = Tally(not is_error, int(is_error), record.output.usage or Usage())
                answers.tallies.setdefault(record.ordinal, tally)
    except FileNotFoundError:
        return None
    except OSError:
        return end  # a bad sector: as far as it could be read
    return end


def keys_in(root: Path, *, before: float) -> Iterator[str]:
    """Keys of all blobs that were last written before then; parts and unfinished ones are not among them."""
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in (PARTS, UNFINISHED)]
        for name in names:
            path = Path(folder) / name
            if is_older(path, before=before):
                yield path.relative_to(root).as_posix()


def is_older(path: Path, *, before: float) -> bool:
    try:
        return path.stat().st_mtime < before
    except FileNotFoundError:
        return False
