"""Reads the blobs and the parts of a data folder as files, without a server. Changes nothing."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nightmill.core.batch import Tally
from nightmill.core.segment import PinnedPart, SegmentResult
from nightmill.errors import SetupError
from nightmill.ids import BatchId
from nightmill.parts import FirstAnswers
from nightmill.parts.record import PartName, read_records
from nightmill.roles.attempt_log import ATTEMPTS_FOLDER
from nightmill.settings import Settings

PARTS = "parts"
UNFINISHED = "tmp"
_READ_BYTES = 1 << 20


def kept_folder(settings: Settings) -> Path:
    """The data folder, which holds the database and all blobs.

    Raises:
        SetupError: the blobs are in an object store.
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


def parts_of(root: Path, batch_id: BatchId) -> list[PartName]:
    """The batch's parts in reading order. Files with other names are left out."""
    try:
        names = [path.name for path in (root / PARTS / batch_id).iterdir()]
    except FileNotFoundError:
        return []
    found = [part for part in map(PartName.of, names) if part is not None]
    return sorted(found, key=lambda part: part.place)


@dataclass(slots=True)
class Answers:
    """The answers in a segment's parts.

    `pinned` are the parts, each as far as its records are whole; `damage` has one sentence for each pinned
    part that is missing or damaged; `tallies` has the tally of each answered line by ordinal.
    """

    pinned: list[PinnedPart]
    damage: list[str]
    tallies: dict[int, Tally]

    def tally(self, ordinals: "set[int] | None" = None) -> Tally:
        total = Tally()
        for ordinal, line_tally in self.tallies.items():
            if ordinals is None or ordinal in ordinals:
                total = total.plus(line_tally)
        return total


def answers_in(root: Path, result: SegmentResult, names: list[PartName]) -> Answers:
    """Reads the parts that count for the segment, as `parts.counted_parts` does, past any damage.

    Pinned parts count up to their pinned length. Of a segment that is not done, parts of dead lease holders
    that are not pinned count too: the next lease holder pins them.

    Args:
        names: the batch's parts on disk.
    """
    batch_id, number = result.segment.batch_id, result.segment.number
    answers, first = Answers([], [], {}), FirstAnswers()
    known = {part.key for part in result.pinned}
    for part in result.pinned:
        end = _read_into(answers, first, root / PARTS / part.key, part.length_bytes)
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
        end = _read_into(answers, first, path, size_of(path) or 0)
        if end:
            answers.pinned.append(PinnedPart(key, end))
    return answers


def _read_into(answers: Answers, first: FirstAnswers, path: Path, length_bytes: int) -> int | None:
    """The offset of the end of the whole records; None without a file."""
    end = 0
    try:
        with path.open("rb", _READ_BYTES) as file:
            for end, record in read_records(file, length_bytes):  # noqa: B007 - the last end is returned
                if first.stands(record):
                    answers.tallies[record.ordinal] = record.tally
    except FileNotFoundError:
        return None
    except OSError:
        return end  # a bad sector: the records before it count
    return end


def keys_in(root: Path, *, before: float) -> Iterator[str]:
    """Keys of all blobs last written before `before` (Unix seconds), without parts, attempts and unfinished
    blobs."""
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in (PARTS, UNFINISHED, ATTEMPTS_FOLDER)]
        for name in names:
            path = Path(folder) / name
            if is_older(path, before=before):
                yield path.relative_to(root).as_posix()


def is_older(path: Path, *, before: float) -> bool:
    try:
        return path.stat().st_mtime < before
    except FileNotFoundError:
        return False
