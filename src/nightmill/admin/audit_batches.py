"""Compares batches with their input, line index, segments, parts and outputs."""

from collections.abc import Iterator
from pathlib import Path

from nightmill.admin.blob import blob_chunks, blob_size
from nightmill.admin.disk import Answers, answers_in, parts_of
from nightmill.admin.findings import (
    CountBatches,
    DeleteSegments,
    Finding,
    Kind,
    PinParts,
    RebuildIndex,
    RecountBatch,
)
from nightmill.admin.line_index import fault_of, indexed_again, names_same_lines
from nightmill.core.batch import Batch, Status, Tally
from nightmill.core.segment import INDEX_RECORD_BYTES, SegmentResult, unpack_lines
from nightmill.parts.record import PartName
from nightmill.store.inventory import Inventory, StoredBatch


def audit_batches(inventory: Inventory, root: Path) -> Iterator[Finding]:
    """Checks that every unfinished batch can continue and has the right counts, and that finished ones left
    no rows.
    """
    for stored in inventory.unfinished_batches():
        yield from _UnfinishedBatch(stored, root, list(inventory.segments(stored.batch.id))).findings()
    for batch_id, count in inventory.leftover_segments():
        detail = f"it has ended and {count} of its segments are still there"
        yield Finding(Kind.LEFT_SEGMENTS, batch_id, detail, DeleteSegments(batch_id))
    for stored in inventory.finished_batches():
        for file_id in (stored.batch.output_file_id, stored.batch.error_file_id):
            if file_id is not None and not inventory.knows_file(file_id):
                detail = f"its file {file_id} is unknown; bring the database back from a backup"
                yield Finding(Kind.OUTPUT_LINES, stored.batch.id, detail)
    if wrong := inventory.wrongly_counted():
        detail = f"{wrong} of the kept counts and search texts of batches are wrong"
        yield Finding(Kind.BATCH_COUNTS, "batches", detail, CountBatches())


def audit_lines(inventory: Inventory, root: Path) -> Iterator[Finding]:
    """Reads whole files: checks that every finished batch has as many lines as its input, and every input its
    lines.
    """
    for stored in inventory.finished_batches():
        if (finding := _count_outputs(inventory, root, stored.batch)) is not None:
            yield finding
    for stored in inventory.unfinished_batches():
        batch = stored.batch
        if stored.index_blob_key is None or blob_size(root, batch.input_blob_key) is None or batch.invalid:
            continue
        if indexed_again(batch, root) is None:
            detail = f"its input {batch.input_blob_key} does not have its {batch.total} lines any more"
            yield Finding(Kind.INPUT_MISSING, batch.id, f"{detail}; bring it back from a backup")


class _UnfinishedBatch:
    def __init__(self, stored: StoredBatch, root: Path, segments: list[SegmentResult]) -> None:
        self._stored = stored
        self._batch = stored.batch
        self._root = root
        self._segments = segments
        self._index: bytes | None = None

    def findings(self) -> Iterator[Finding]:
        if self._batch.status is Status.VALIDATING or self._stored.index_blob_key is None:
            return  # intake has not accepted the batch: it has no lines yet
        yield from self._input_findings(self._stored.index_blob_key)
        report = self._batch.report_blob_key
        if report is not None and blob_size(self._root, report) is None:
            detail = f"the validation report {report} is gone; it needs a backup"
            yield Finding(Kind.LINE_INDEX, self._batch.id, detail)
        yield from self._cut_findings()
        names = parts_of(self._root, self._batch.id)
        pins = list(filter(None, (self._segment_finding(result, names) for result in self._segments)))
        yield from pins
        # Pinning a segment again computes its batch's tally again too.
        if not any(isinstance(finding.repair, PinParts) for finding in pins):
            yield from self._tally_findings()

    def _input_findings(self, index_blob_key: str) -> Iterator[Finding]:
        batch = self._batch
        input_bytes = blob_size(self._root, batch.input_blob_key)
        again = None
        if input_bytes is None:
            detail = (
                f"its input {batch.input_blob_key} is gone; bring it back from a backup or from its sender"
            )
            yield Finding(Kind.INPUT_MISSING, batch.id, detail)
        elif not batch.invalid:  # which lines are invalid depended on the settings of then
            again = indexed_again(batch, self._root)
        index = _read(self._root / index_blob_key)
        fault = "it is gone"
        if index is not None:
            fault = fault_of(
                index, total=batch.total, invalid=batch.invalid, input_bytes=input_bytes or 1 << 62
            )
            if fault is None and again is not None and not names_same_lines(index, again):
                fault = "it is not that of its input"
        self._index = index if fault is None else again
        if fault is not None:
            detail = f"the line index {index_blob_key}: {fault}"
            repair = None if again is None else RebuildIndex(batch, index_blob_key)
            yield Finding(
                Kind.LINE_INDEX, batch.id, detail if repair else f"{detail}; it needs a backup", repair
            )

    def _cut_findings(self) -> Iterator[Finding]:
        first = 0
        for number, result in enumerate(self._segments):
            if result.segment.number != number or result.segment.first != first:
                break
            first += result.segment.count
        else:
            if first == self._batch.total - self._batch.invalid:
                return
        lines = self._batch.total - self._batch.invalid
        detail = f"its segments do not cover its {lines} lines; bring the database back"
        yield Finding(Kind.SEGMENTS, self._batch.id, f"{detail} from a backup")

    def _segment_finding(self, result: SegmentResult, names: list[PartName]) -> Finding | None:
        answers = answers_in(self._root, result, names)
        ordinals = self._ordinals(result)
        tally = answers.tally(ordinals)
        repair = PinParts(result.segment, tuple(answers.pinned), tally)
        subject = f"{self._batch.id} segment {result.segment.number}"
        if answers.damage:
            return Finding(Kind.PART, subject, "; ".join(answers.damage), repair)
        if ordinals is not None and (foreign := answers.tallies.keys() - ordinals):
            detail = f"its parts answer {len(foreign)} lines of other segments; it needs a backup"
            return Finding(Kind.ANSWERS, subject, detail)
        if self._is_counted(result, answers, tally):
            return None
        detail = f"it counts {result.tally.answered} answers and its parts hold {tally.answered}"
        return Finding(Kind.ANSWERS, subject, detail, repair)

    def _ordinals(self, result: SegmentResult) -> set[int] | None:
        if self._index is None:
            return None
        start = result.segment.first * INDEX_RECORD_BYTES
        records = self._index[start : start + result.segment.count * INDEX_RECORD_BYTES]
        return {line.ordinal for line in unpack_lines(records)}

    @staticmethod
    def _is_counted(result: SegmentResult, answers: Answers, tally: Tally) -> bool:
        """A segment that is not done may have more durable answers than its last holder reported."""
        if not result.is_done:
            return result.tally.answered <= len(answers.tallies)
        return tally == result.tally and tally.answered == result.segment.count

    def _tally_findings(self) -> Iterator[Finding]:
        counted, left = Tally(failed=self._batch.invalid), 0
        for result in self._segments:
            counted = counted.plus(result.tally)
            left += not result.is_done
        repair = RecountBatch(self._batch.id)
        if counted != self._batch.tally:
            stored = self._batch.tally
            detail = (
                f"it counts {stored.completed} completed and {stored.failed} failed, "
                f"its segments {counted.completed} and {counted.failed}"
            )
            if (counted.completed, counted.failed) == (stored.completed, stored.failed):
                detail = "its token counts are not the sum of its segments'"
            yield Finding(Kind.TALLY, self._batch.id, detail, repair)
        elif left != self._stored.segments_left:
            detail = f"it counts {self._stored.segments_left} segments to do, there are {left}"
            yield Finding(Kind.TALLY, self._batch.id, detail, repair)


def _count_outputs(inventory: Inventory, root: Path, batch: Batch) -> Finding | None:
    if batch.status is Status.FAILED:
        return None
    lines = 0
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is None:
            continue
        file = inventory.live_file(file_id)
        if file is None or blob_size(root, file.blob_key) is None:
            return None  # deleted, or already reported as a missing file
        lines += sum(chunk.count(b"\n") for chunk in blob_chunks(root, file.blob_key))
    if lines == batch.total:
        return None
    detail = f"its files hold {lines} lines, not {batch.total}; bring them back from a backup"
    return Finding(Kind.OUTPUT_LINES, batch.id, detail)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
