"""Validates the input file of a batch in one read, and writes the line index.

A batch is accepted only when every line is valid, in one transaction with its segments; otherwise it fails
with errors by line. A batch that skips invalid lines is accepted if any line is valid. Every invalid line has
a row in the validation report, a blob beside the line index. The process may die at any instruction: the next
intake starts again under a newer token, and blobs that no batch names are never read. The checks themselves
are in `validation`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace

from nightmill.blobs import Blobs, BlobWriter
from nightmill.core.batch import Batch, Event, LineError, Status, Tally
from nightmill.core.batch_options import OnInvalid
from nightmill.core.file import Purpose
from nightmill.core.limits import Limits, estimated_tokens
from nightmill.core.segment import SegmentCutter
from nightmill.errors import LeaseLost, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import WorkerId
from nightmill.roles.join import JoinedFile
from nightmill.roles.loop import Notifier
from nightmill.settings import LimitSettings
from nightmill.store import BatchLease, Store
from nightmill.telemetry import BatchMoved, Emit
from nightmill.validation import (
    DuplicatePass,
    InputRules,
    InputValidator,
    ValidationReport,
    ValidationResult,
    report_row,
)

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
        report = ValidationReport()
        validator = InputValidator(rules, report)
        drafts = _Drafts(self._blobs, lease, self._cutter(batch), report)
        try:
            await self._index(lease, validator, drafts)
            duplicate_pass = await asyncio.to_thread(validator.duplicate_pass)
            if duplicate_pass is not None:
                await drafts.abort()
                drafts = _Drafts(self._blobs, lease, self._cutter(batch), report)
                await self._index(lease, duplicate_pass, drafts)
            result = validator.result(duplicate_pass)
            await drafts.report.write([report_row(error) for error in result.refusals])
            skips = batch.options.on_invalid is OnInvalid.SKIP and not result.refusals and result.total > 0
            is_accepted = skips or not result.errors
            await drafts.commit(with_index=is_accepted)
            failpoint("intake.indexed")
        except BaseException:
            await drafts.abort()
            raise
        if is_accepted:
            await self._accept(lease, result, drafts)
        else:
            await self._reject(lease, result, drafts)

    def _cutter(self, batch: Batch) -> SegmentCutter:
        return SegmentCutter(
            batch.id,
            most_lines=self._options.lines_per_segment,
            most_bytes=self._options.segment_bytes,
            canary_lines=batch.options.canary,
        )

    async def _index(
        self, lease: BatchLease, validator: InputValidator | DuplicatePass, drafts: "_Drafts"
    ) -> None:
        """Gives the whole file to `validator`, and its records to `drafts`."""

        def indexed(chunk: bytes) -> bytes:
            records = validator.take(chunk)
            drafts.cutter.take(records)
            return records

        async for chunk in self._chunks(lease, validator):
            await drafts.write(await asyncio.to_thread(indexed, chunk))
        records = await asyncio.to_thread(validator.finish)
        drafts.cutter.take(records)
        await drafts.write(records)

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

    async def _accept(self, lease: BatchLease, result: ValidationResult, drafts: "_Drafts") -> None:
        total = result.total + result.invalid
        after = replace(
            lease.batch.after(Event.ACCEPTED, now=self._clock()),
            model=result.model,
            total=total,
            enqueued_tokens=estimated_tokens(lease.batch.input_bytes),
            invalid=result.invalid,
            tally=Tally(failed=result.invalid),
            report_blob_key=drafts.report_blob_key,
        )
        segments = drafts.cutter.segments()
        after = replace(after, canary_segments=drafts.cutter.canary_segments)
        failpoint("intake.before_accept")
        moved = await self._store.batch_leases.accept(
            lease,
            after,
            index_blob_key=drafts.index_blob_key,
            segments=segments,
            limits=self._options.quota,
        )
        if moved is None or moved.status is Status.FAILED:
            await drafts.delete()
        if moved is None:
            raise LeaseLost
        failpoint("intake.accepted")
        self._emit(BatchMoved(moved))
        self._notifier.notify()

    async def _reject(
        self, lease: BatchLease, result: ValidationResult, drafts: "_Drafts | None" = None
    ) -> None:
        after = replace(
            lease.batch.after(Event.REJECTED, now=self._clock()),
            model=result.model,
            errors=result.errors,
            report_blob_key=None if drafts is None else drafts.report_blob_key,
        )
        failpoint("intake.before_reject")
        if not await self._store.batch_leases.reject(lease, after):
            if drafts is not None:
                await drafts.delete()
            raise LeaseLost
        failpoint("intake.rejected")
        self._emit(BatchMoved(after))


class _Drafts:
    """The line index, its segments and the validation report of one batch, as far as they are made.

    Neither blob is read before the batch names it.
    """

    def __init__(
        self, blobs: Blobs, lease: BatchLease, cutter: SegmentCutter, report: ValidationReport
    ) -> None:
        stem = f"lines/{lease.batch.id}"
        self.index_blob_key = f"{stem}/{lease.token}"
        self.cutter = cutter
        self.report = JoinedFile(blobs, f"{stem}/report", token=lease.token, first_token=lease.token)
        self._blobs = blobs
        self._report = report
        self._report.take()  # what an abandoned pass has left
        self._index: BlobWriter | None = None

    @property
    def report_blob_key(self) -> str | None:
        return self.report.key if self.report.size_bytes else None

    async def write(self, records: bytes) -> None:
        if self._index is None:
            self._index = await self._blobs.open_writer(self.index_blob_key)
        await self._index.write(records)
        if rows := self._report.take():
            await self.report.write([rows])

    async def commit(self, *, with_index: bool) -> None:
        await self.report.commit()
        if self._index is not None and with_index:
            await self._index.commit()
        elif self._index is not None:
            await self._index.abort()
        self._index = None

    async def abort(self) -> None:
        await self.report.abort()
        if self._index is not None:
            await self._index.abort()

    async def delete(self) -> None:
        """Deletes what was committed for a batch that another process has moved on."""
        await self._blobs.delete(self.index_blob_key)
        await self._blobs.delete(self.report.key)


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
