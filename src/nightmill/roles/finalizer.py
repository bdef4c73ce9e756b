"""Writes the output and the error file of a batch that has ended, and publishes both with the final status.

Every request line of the batch is written exactly once, to one of the two files, and a client that reads the
final status can download both at once (docs/openai-behaviour.md 2.3, 9.6). The process may die at any
instruction: the next finalizer continues, and only a write under the newest token counts. A huge batch is cut
into slices, which any number of finalizers join at the same time; when all slices are joined, one finalizer
publishes. A finalizer that dies costs at most the work on one slice. The files are put together by
`roles.join`; which lines are answered, and until when, is decided by the workers and the maintenance role.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b

from nightmill.blobs import Piece, PiecedBlobs
from nightmill.blobs.pieces import SUFFIX
from nightmill.core.batch import Batch, Event, Status, Tally
from nightmill.core.clocks import Clocks
from nightmill.core.file import File, Purpose
from nightmill.core.segment import SegmentResult
from nightmill.core.slice import JoinedPiece, JoinedSlice, Slice, cut_slices
from nightmill.errors import LeaseLost, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import BatchId, FileId, WorkerId, new_file_id
from nightmill.roles.join import Joined, JoinedFile, Joiner, Pages
from nightmill.roles.loop import Notifier
from nightmill.store import BatchLease, SliceLease, Store
from nightmill.telemetry import BatchMoved, Emit

_LEASE_TTL_S = 60.0
_WAIT_S = 1.0
_FIRST_LEASE_TOKEN = 2  # intake held the batch under the first token
_MIN_SLICES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalizerOptions:
    """What the finalizer takes from the settings.

    Attributes:
        output_ttl_s: the time after which output files expire when neither batch nor project sets another.
        slice_bytes: the size of a slice of a huge batch.
    """

    output_ttl_s: int
    slice_bytes: int


class Finalizer:
    """Leases ended batches, and slices of huge batches, one at a time.

    Args:
        joiner: writes the files to `blobs`.
        clock: Unix seconds, for the stamps of batches and files.
    """

    name = "finalizer"

    def __init__(
        self,
        *,
        store: Store,
        blobs: PiecedBlobs,
        joiner: Joiner,
        options: FinalizerOptions,
        worker_id: WorkerId,
        notifier: Notifier,
        emit: Emit,
        clocks: Clocks,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._joiner = joiner
        self._options = options
        self._worker_id = worker_id
        self._notifier = notifier
        self._emit = emit
        self._clock = clocks.wall
        self._has_seen_slices = False
        self._is_slice_next = False

    async def turn(self) -> float:
        """Finishes at most one batch or slice. Returns the seconds until the next turn."""
        await self._close_settled_batches()
        # Batches and slices take turns, so that neither many small batches nor a huge batch delays the rest.
        takes = (self._take_batch, self._take_slice)
        for take in reversed(takes) if self._is_slice_next else takes:
            if await take():
                return 0
        return _WAIT_S

    async def _take_batch(self) -> bool:
        lease = await self._store.batch_leases.lease(
            (Status.FINALIZING, Status.CANCELLING), self._worker_id, ttl_s=_LEASE_TTL_S
        )
        if lease is None:
            return False
        await self._under(self._finalize(lease), lambda: self._store.batch_leases.release(lease))
        self._is_slice_next = self._has_seen_slices
        return True

    async def _take_slice(self) -> bool:
        self._is_slice_next = False
        lease = await self._store.slices.lease(self._worker_id, ttl_s=_LEASE_TTL_S)
        self._has_seen_slices = lease is not None
        if lease is None:
            return False
        await self._under(self._join_slice(lease), lambda: self._store.slices.release(lease))
        return True

    async def _under(self, work: Awaitable[None], release: Callable[[], Awaitable[object]]) -> None:
        try:
            await work
        except LeaseLost:
            return
        except (UnavailableError, asyncio.CancelledError):
            # After any other error the lease is kept until it expires: a batch that always fails would
            # otherwise be leased again at once and delay the others.
            with suppress(UnavailableError):
                await release()
            raise

    async def _close_settled_batches(self) -> None:
        for batch in await self._store.batches.settled():
            after = batch.after(Event.SETTLED, now=self._clock())
            failpoint("finalizer.before_settle")
            if await self._store.batches.move(after, expected=batch.status):
                failpoint("finalizer.settled")
                self._emit(BatchMoved(after))

    async def _finalize(self, lease: BatchLease) -> None:
        failpoint("finalizer.leased")
        if lease.is_sliced:
            await self._publish_slices(lease)
            return
        pages = Pages(self._store, lease.batch)
        slices = await self._slices(lease.batch, await pages.peek()) if lease.index_blob_key else []
        if slices:
            await self._cut(lease, slices)
        else:
            await self._join_whole(lease, pages)

    # --- a batch as a whole --------------------------------------------------------------------------

    async def _join_whole(self, lease: BatchLease, pages: Pages) -> None:
        batch = lease.batch
        output, error = self._new_files(batch, lease.token, first_token=_FIRST_LEASE_TOKEN)
        joined = Joined(Tally(), 0, 0)
        if lease.index_blob_key:
            joined = await self._joiner.join(
                batch,
                lease.index_blob_key,
                pages,
                output=output,
                error=error,
                renew=lambda: self._store.batch_leases.renew(lease),
                renew_s=lease.ttl_s / 4,
            )
        _check_count(batch, joined.lines)
        ttl_s = await self._ttl_s(batch)
        files = {
            suffix: self._file(batch, suffix, it.key, it.size_bytes, ttl_s)
            for suffix, it in (("output", output), ("error", error))
            if it.size_bytes
        }
        after = self._after(batch, joined.tally, joined.missing, files)
        failpoint("finalizer.before_publish")
        if not await self._store.batch_leases.publish(lease, after, files=list(files.values())):
            for file in files.values():
                await self._blobs.delete(file.blob_key)
            raise LeaseLost
        self._published(after)

    # --- a batch in slices ---------------------------------------------------------------------------

    async def _slices(self, batch: Batch, page: Sequence[SegmentResult]) -> list[Slice]:
        """The slices of a huge batch, judged by its first segments; empty for any other batch."""
        lines = sum(result.segment.count for result in page)
        part_bytes = sum(part.length_bytes for result in page for part in result.pinned)
        if (
            part_bytes * batch.total < _MIN_SLICES * self._options.slice_bytes * lines
            or len(page) < _MIN_SLICES
        ):
            return []
        segments = await self._store.segments.count(batch.id)
        per_slice = max(1, self._options.slice_bytes * len(page) // part_bytes)
        return list(cut_slices(batch.id, segments=segments, segments_per_slice=per_slice))

    async def _cut(self, lease: BatchLease, slices: Sequence[Slice]) -> None:
        failpoint("finalizer.before_cut")
        if not await self._store.slices.cut(lease, slices):
            raise LeaseLost
        failpoint("finalizer.cut")
        self._has_seen_slices = True
        self._notifier.notify()

    async def _join_slice(self, lease: SliceLease) -> None:
        failpoint("finalizer.slice_leased")
        batch, it = lease.batch, lease.slice
        output, error = self._new_files(batch, lease.token, first_token=1, end=f".slice-{it.number}")
        joined = await self._joiner.join(
            batch,
            lease.index_blob_key,
            Pages(self._store, batch, first=it.first, count=it.count),
            output=output,
            error=error,
            renew=lambda: self._store.slices.renew(lease),
            renew_s=lease.ttl_s / 4,
        )
        done = JoinedSlice(
            slice=it,
            output=JoinedPiece(output.key, output.size_bytes) if output.size_bytes else None,
            error=JoinedPiece(error.key, error.size_bytes) if error.size_bytes else None,
            lines=joined.lines,
            missing=joined.missing,
            tally=joined.tally,
        )
        failpoint("finalizer.before_slice")
        if not await self._store.slices.complete(lease, done):
            await self._blobs.delete(output.key)
            await self._blobs.delete(error.key)
            raise LeaseLost
        failpoint("finalizer.slice_joined")

    async def _publish_slices(self, lease: BatchLease) -> None:
        batch = lease.batch
        slices = await self._store.slices.joined(batch.id)
        _check_count(batch, sum(it.lines for it in slices))
        tally = Tally()
        for it in slices:
            tally = tally.plus(it.tally)
        ttl_s = await self._ttl_s(batch)
        files: dict[str, File] = {}
        pieces: dict[str, Sequence[str]] = {}
        for suffix, joined in (
            ("output", [it.output for it in slices if it.output]),
            ("error", [it.error for it in slices if it.error]),
        ):
            if not joined:
                continue
            key = await self._whole(lease, suffix, joined)
            files[suffix] = self._file(batch, suffix, key, sum(it.size_bytes for it in joined), ttl_s)
            if len(joined) > 1:
                pieces[key] = [it.key for it in joined]
        after = self._after(batch, tally, sum(it.missing for it in slices), files)
        failpoint("finalizer.before_publish")
        if not await self._store.batch_leases.publish(
            lease, after, files=list(files.values()), pieces=pieces
        ):
            for key in pieces:
                await self._blobs.delete(key)
            raise LeaseLost
        self._published(after)

    async def _whole(self, lease: BatchLease, suffix: str, joined: Sequence[JoinedPiece]) -> str:
        """The key of the blob that is made of the pieces."""
        if len(joined) == 1:
            return joined[0].key
        stem = f"files/{joined_file_id(lease.batch.id, suffix)}"
        for token in range(_FIRST_LEASE_TOKEN, lease.token):
            await self._blobs.delete(f"{stem}.{token}{SUFFIX}")
        key = f"{stem}.{lease.token}{SUFFIX}"
        await self._blobs.join(key, [Piece(it.key, it.size_bytes) for it in joined])
        return key

    # --- both ways -----------------------------------------------------------------------------------

    def _new_files(
        self, batch: Batch, token: int, *, first_token: int, end: str = ""
    ) -> Iterable[JoinedFile]:
        """The output and the error file of the batch, or of a slice."""
        for suffix in ("output", "error"):
            stem = f"files/{joined_file_id(batch.id, suffix)}{end}"
            yield JoinedFile(self._blobs, stem, token=token, first_token=first_token)

    def _after(self, batch: Batch, tally: Tally, missing: int, files: dict[str, File]) -> Batch:
        if batch.status is Status.CANCELLING:
            event = Event.CANCELLED
        else:
            event = Event.EXPIRED if missing else Event.COMPLETED
        return replace(
            batch.after(event, now=self._clock()),
            tally=tally,
            output_file_id=files["output"].id if "output" in files else None,
            error_file_id=files["error"].id if "error" in files else None,
        )

    async def _ttl_s(self, batch: Batch) -> int:
        rules = await self._store.projects.rules(batch.project_id)
        return batch.output_expires_after_s or rules.output_ttl_s or self._options.output_ttl_s

    def _file(self, batch: Batch, suffix: str, blob_key: str, size_bytes: int, ttl_s: int) -> File:
        created_at = int(self._clock())
        return File(
            id=joined_file_id(batch.id, suffix),
            project_id=batch.project_id,
            purpose=Purpose.BATCH_OUTPUT,
            filename=f"{batch.id}_{suffix}.jsonl",
            size_bytes=size_bytes,
            created_at=created_at,
            expires_at=created_at + ttl_s,
            blob_key=blob_key,
        )

    def _published(self, after: Batch) -> None:
        failpoint("finalizer.published")
        self._emit(BatchMoved(after))
        self._notifier.notify()


def joined_file_id(batch_id: BatchId, suffix: str) -> FileId:
    """The same for a batch however often it is finalized. `suffix` is "output" or "error"."""
    return new_file_id(blake2b(f"{batch_id} {suffix}".encode(), digest_size=16).digest())


def _check_count(batch: Batch, lines: int) -> None:
    if lines != batch.total:
        message = f"{batch.id} has {batch.total} lines, but its segments hold {lines}; run 'nightmill check'"
        raise RuntimeError(message)
