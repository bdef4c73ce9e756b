"""The merged result of a batch and its retries, as one stream in the order of the batch's input.

For each request line stands the newest success over the batch, its retries, their retries and so on; without
a success, the newest error. The lines of a retry have the order of its origin, so all files are read once,
side by side, and memory use does not depend on their length.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Final

from nightmill.api.context import ApiContext
from nightmill.api.stored_lines import blob_lines, file_of
from nightmill.blobs import Blobs
from nightmill.core.batch import Batch, Status
from nightmill.core.file import File
from nightmill.core.written_line import read_line
from nightmill.errors import ConflictError
from nightmill.ids import FileId

MOST_BATCHES: Final = 100
_CHUNK_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A batch and its retries, with the files that are read.

    Args:
        output: None without a file.
        sequence: grows with newer batches.
        ordinals: which lines of this batch are merged into the batch above.
        retries: of lines of this batch.
    """

    output: File | None
    errors: File | None
    sequence: int
    ordinals: range | None
    retries: Sequence["MergePlan"]

    @property
    def file_ids(self) -> Iterator[FileId]:
        """Every file that is read."""
        yield from (file.id for file in (self.output, self.errors) if file is not None)
        for retry in self.retries:
            yield from retry.file_ids


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of an output or error file. `rank` is compared between answers of one request line."""

    ordinal: int
    custom_id: bytes
    rank: tuple[bool, int]
    text: bytes


async def plan_of(context: ApiContext, batch: Batch, *, is_partial: bool) -> MergePlan:
    """Finds the retries of an ended batch.

    Args:
        is_partial: retries that are running are left out instead of refused.

    Raises:
        ConflictError: the batch or a retry has not ended, failed validation, or lacks a file.
    """
    if not batch.status.is_terminal:
        raise ConflictError(f"Batch '{batch.id}' is {batch.status}; merge its result when it has ended.")
    if batch.status is Status.FAILED:
        raise ConflictError(f"Batch '{batch.id}' failed validation and has no result.")
    return await _Planner(context, is_partial=is_partial).plan(batch, 0, None)


class _Planner:
    def __init__(self, context: ApiContext, *, is_partial: bool) -> None:
        self._context = context
        self._is_partial = is_partial
        self._count = 0

    async def plan(self, batch: Batch, sequence: int, ordinals: range | None) -> MergePlan:
        self._count += 1
        if self._count > MOST_BATCHES:
            raise ConflictError(f"More than {MOST_BATCHES} batches would be merged; merge a newer retry.")
        retries: list[MergePlan] = []
        for retry in await self._context.store.batch_origins.retries(batch.id):
            if retry.batch.status is Status.FAILED:
                continue  # its lines were not sent
            if retry.batch.status.is_terminal:
                retries.append(await self.plan(retry.batch, retry.sequence, retry.origin.ordinals))
            elif not self._is_partial:
                message = (
                    f"The retry '{retry.batch.id}' is {retry.batch.status}; wait for its end, or merge what "
                    "has ended with partial=true."
                )
                raise ConflictError(message)
        output, errors = batch.output_file_id, batch.error_file_id
        return MergePlan(
            None if output is None else await file_of(self._context, batch, output, what="output"),
            None if errors is None else await file_of(self._context, batch, errors, what="error"),
            sequence,
            ordinals,
            retries,
        )


async def merged_lines(blobs: Blobs, plan: MergePlan) -> AsyncGenerator[bytes]:
    """The lines, many in each chunk."""
    texts: list[bytes] = []
    size_bytes = 0
    async with aclosing(_merged(blobs, plan)) as lines:
        async for line in lines:
            texts += (line.text, b"\n")
            size_bytes += len(line.text)
            if size_bytes >= _CHUNK_BYTES:
                yield b"".join(texts)
                texts, size_bytes = [], 0
    if texts:
        yield b"".join(texts)


async def _merged(blobs: Blobs, plan: MergePlan) -> "AsyncGenerator[_Line]":
    """The best answer for each line of one batch that the batch above has."""
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(aclosing(_answers(blobs, plan)))
        retries = [await stack.enter_async_context(aclosing(_merged(blobs, retry))) for retry in plan.retries]
        heads = [await anext(retry, None) for retry in retries]
        async for line in own:
            best = line
            for number, head in enumerate(heads):
                # A retry has lines of its origin only, in the same order; the next of them is its head.
                if head is not None and head.custom_id == line.custom_id:
                    if head.rank > best.rank:
                        best = _Line(line.ordinal, line.custom_id, head.rank, head.text)
                    heads[number] = await anext(retries[number], None)
            if plan.ordinals is None or line.ordinal in plan.ordinals:
                yield best


async def _answers(blobs: Blobs, plan: MergePlan) -> "AsyncGenerator[_Line]":
    """All lines of a batch's own two files by ordinal."""
    async with (
        aclosing(_lines(blobs, plan.output, (True, plan.sequence))) as output,
        aclosing(_lines(blobs, plan.errors, (False, plan.sequence))) as errors,
    ):
        answer, error = await anext(output, None), await anext(errors, None)
        while answer is not None or error is not None:
            if error is None or (answer is not None and answer.ordinal < error.ordinal):
                assert answer is not None
                yield answer
                answer = await anext(output, None)
            else:
                yield error
                error = await anext(errors, None)


async def _lines(blobs: Blobs, file: File | None, rank: tuple[bool, int]) -> "AsyncGenerator[_Line]":
    if file is None:
        return
    async for texts in blob_lines(blobs, file.blob_key):
        for text in texts:
            line = read_line(text)
            yield _Line(line.ordinal, bytes(line.custom_id), rank, text)
