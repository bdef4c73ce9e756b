"""Validates the input file of a batch in one read, and writes the line index.

A batch is accepted only when every line is valid, in one transaction with its segments; otherwise it fails
with errors by line. The process may die at any instruction: the next intake starts again under a newer token,
and an index that was not accepted is never read. The checks themselves are in `validation`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace

from nightmill.blobs import Blobs
from nightmill.core.batch import Batch, Event, LineError, Status
from nightmill.core.file import Purpose
from nightmill.core.limits import Limits, estimated_tokens
from nightmill.core.segment import Segment, SegmentCutter
from nightmill.errors import LeaseLost, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import WorkerId
from nightmill.roles.loop import Notifier
from nightmill.settings import LimitSettings
from nightmill.store import BatchLease, Store
from nightmill.telemetry import BatchMoved, Emit
from nightmill.validation import DuplicatePass, InputRules, InputValidator, ValidationResult

_WAIT_S = 1.0
# Larger chunks are slower: the allocator gives their pages back to the system and faults them in again.
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeOptions:
    """What intake takes from the settings.

    Attributes:
        quota: the limits of a project that has none of its own.
        models_of: the models that a line for an endpoint may name; empty when any may be named.
    """

    limits: LimitSettings
    quota: Limits
    models_of: Callable[[str], Awaitable[frozenset[str]]]
    lines_per_segment: int
    segment_bytes: int
    lease_ttl_s: float


class Intake:
    """The role that accepts or rejects batches in status `validating`."""

    name = "intake"

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        options: IntakeOptions,
        worker_id: WorkerId,
        notifier: Notifier,
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._options = options
        self._worker_id = worker_id
        self._notifier = notifier
        self._emit = emit
        self._clock = clock

    async def turn(self) -> float:
        lease = await self._store.batch_leases.lease(
            (Status.VALIDATING,), self._worker_id, ttl_s=self._options.lease_ttl_s
        )
        if lease is None:
            return _WAIT_S
        try:
            await self._process(lease)
        except LeaseLost:
            return 0
        except (UnavailableError, asyncio.CancelledError):
            # Any other error keeps the lease until it lapses, so that one bad batch can't delay the others.
            with suppress(UnavailableError):
                await self._store.batch_leases.release(lease)
            raise
        return 0

    async def _process(self, lease: BatchLease) -> None:
        failpoint("intake.leased")
        batch = lease.batch
        if lease.token > 1:
            await self._blobs.delete_under(f"lines/{batch.id}")  # left by holders of the lease that died
        if fault := await self._unreadable(batch):
            await self._reject(lease, ValidationResult(0, None, (fault,)))
        else:
            await self._validate(lease)

    async def _unreadable(self, batch: Batch) -> LineError | None:
        """The error of an input file that can't be read or is too large; None when it can be validated."""
        file = await self._store.files.get(batch.project_id, batch.input_file_id)
        if file is not None and file.purpose is not Purpose.BATCH:
            message = f"The file {file.id} has purpose '{file.purpose}'. Upload it with purpose 'batch'."
            return LineError("invalid_request", message, "file_id")
        if not batch.input_blob_key:
            return _cannot_find(batch)
        size_bytes = await self._blobs.size_bytes(batch.input_blob_key)
        if size_bytes is None:
            return _cannot_find(batch)
        limit = self._options.limits.input_file_bytes
        if size_bytes > limit:
            message = (
                f"The batch input file is larger than the {limit} maximum. "
                "Please try again with a smaller batch."
            )
            return LineError("file_too_large", message)
        return None

    async def _validate(self, lease: BatchLease) -> None:
        batch = lease.batch
        models = await self._options.models_of(batch.endpoint)
        rules = input_rules(self._options.limits, batch.endpoint, models=models)
        validator = InputValidator(rules)
        index_blob_key = f"lines/{batch.id}/{lease.token}"
        cutter = SegmentCutter(
            batch.id, most_lines=self._options.lines_per_segment, most_bytes=self._options.segment_bytes
        )

        def indexed(chunk: bytes) -> bytes:
            records = validator.take(chunk)
            cutter.take(records)
            return records

        writer = await self._blobs.open_writer(index_blob_key)
        try:
            async for chunk in self._chunks(lease, validator):
                await writer.write(await asyncio.to_thread(indexed, chunk))
            records = await asyncio.to_thread(validator.finish)
            cutter.take(records)
            await writer.write(records)
            result = await self._validation_result(lease, validator)
            if result.errors:
                await writer.abort()
            else:
                await writer.commit()
                failpoint("intake.indexed")
        except BaseException:
            await writer.abort()
            raise
        if result.errors:
            await self._reject(lease, result)
        else:
            await self._accept(lease, result, index_blob_key, cutter.segments())

    async def _validation_result(self, lease: BatchLease, validator: InputValidator) -> ValidationResult:
        duplicate_pass = await asyncio.to_thread(validator.duplicate_pass)
        if duplicate_pass is not None:
            async for chunk in self._chunks(lease, duplicate_pass):
                await asyncio.to_thread(duplicate_pass.take, chunk)
            await asyncio.to_thread(duplicate_pass.finish)
        return validator.result(duplicate_pass)

    async def _chunks(
        self, lease: BatchLease, validator: InputValidator | DuplicatePass
    ) -> AsyncIterator[bytes]:
        """The input file, as far as `validator` needs it; renews the lease meanwhile.

        Raises:
            LeaseLost: another process took over, or the batch was cancelled.
        """
        loop = asyncio.get_running_loop()
        kept = loop.time()
        offset = 0
        while not validator.is_over and (
            chunk := await self._blobs.read(lease.batch.input_blob_key, offset, _CHUNK_BYTES)
        ):
            offset += len(chunk)
            if loop.time() - kept > lease.ttl_s / 4:
                kept = loop.time()
                if not await self._store.batch_leases.renew(lease):
                    raise LeaseLost
            yield chunk

    async def _accept(
        self, lease: BatchLease, result: ValidationResult, index_blob_key: str, segments: list[Segment]
    ) -> None:
        after = replace(
            lease.batch.after(Event.ACCEPTED, now=self._clock()),
            model=result.model,
            total=result.total,
            enqueued_tokens=estimated_tokens(lease.batch.input_bytes),
        )
        failpoint("intake.before_accept")
        moved = await self._store.batch_leases.accept(
            lease,
            after,
            index_blob_key=index_blob_key,
            segments=segments,
            limits=self._options.quota,
        )
        if moved is None or moved.status is Status.FAILED:
            await self._blobs.delete(index_blob_key)
        if moved is None:
            raise LeaseLost
        failpoint("intake.accepted")
        self._emit(BatchMoved(moved))
        self._notifier.notify()

    async def _reject(self, lease: BatchLease, result: ValidationResult) -> None:
        after = replace(
            lease.batch.after(Event.REJECTED, now=self._clock()), model=result.model, errors=result.errors
        )
        failpoint("intake.before_reject")
        if not await self._store.batch_leases.reject(lease, after):
            raise LeaseLost
        failpoint("intake.rejected")
        self._emit(BatchMoved(after))


def input_rules(limits: LimitSettings, endpoint: str, *, models: Collection[str]) -> InputRules:
    """What the settings require of an input file for `endpoint`."""
    return InputRules(
        endpoint=endpoint,
        models=frozenset(models),
        models_per_file=limits.models_per_file,
        lines_per_file=limits.lines_per_file,
        line_bytes=limits.line_bytes,
        nesting=limits.nesting,
        embedding_inputs=limits.embedding_inputs,
        listed_errors=limits.listed_errors,
    )


def _cannot_find(batch: Batch) -> LineError:
    message = (
        f"Cannot find file {batch.input_file_id}, or project {batch.project_id} does not have access to it."
    )
    return LineError("invalid_request", message, "file_id")
