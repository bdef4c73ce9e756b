"""One part as a row of objects, written by one writer only."""

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Protocol

from nightmill.batch import Tally, Usage
from nightmill.line import OutputLine
from nightmill.parts.record import bounded, pack_record
from nightmill.parts.writer import part_key
from nightmill.segment import Lease, PinnedPart


class Putters(Protocol):
    """What a writer asks of those who put for it."""

    queued_bytes: int

    async def next_turn(self) -> None:
        """Until something became durable, failed or was closed."""
        ...


class ObjectPartWriter:
    """The part of one lease.

    What `take` gave stays as it is until `settle`: an object that is put again must hold the same bytes, or
    somebody may have pinned what is no longer there.
    """

    def __init__(
        self, putters: Putters, lease: Lease, on_commit: Callable[[int], None] | None, *, part_bytes: int
    ) -> None:
        self.key = part_key(lease, lease.token, 0)
        self.number = 0
        self._putters = putters
        self._lease = lease
        self._on_commit = on_commit
        self._part_bytes = part_bytes
        self._copies = count(1)
        self._refusal: Exception | None = None
        self._failure: Exception | None = None
        self._queue: list[bytes] = []
        self._waiting_bytes = self._taken_bytes = self._durable_bytes = 0
        self._counted = self._taken_counted = self._durable_counted = 0
        self._failed = 0
        self._input_tokens = self._cached_tokens = self._output_tokens = 0
        self._reasoning_tokens = self._total_tokens = 0
        self._taken_tally = self._durable_tally = Tally()
        self._has_some = asyncio.Event()
        self._hurry = asyncio.Event()
        self._is_ending = False

    @property
    def durable_tally(self) -> Tally:
        return self._durable_tally

    @property
    def pinned(self) -> PinnedPart | None:
        return PinnedPart(self.key, self._durable_bytes) if self._durable_bytes else None

    @property
    def pending_count(self) -> int:
        """Records that are not durable yet."""
        return self._counted - self._durable_counted

    def append(self, ordinal: int, output: OutputLine) -> None:
        if self._refusal is not None:
            raise self._refusal
        try:
            crc, record = pack_record(ordinal, output)
        except struct.error:
            output = bounded(output)
            crc, record = pack_record(ordinal, output)
        if not self._queue:
            self._has_some.set()
        self._queue += (crc, record)
        self._counted += 1
        size_bytes = len(record) + len(crc)
        self._putters.queued_bytes += size_bytes
        self._waiting_bytes += size_bytes
        if self._waiting_bytes >= self._part_bytes:
            self._hurry.set()
        if output.is_error:
            self._failed += 1
        usage = output.usage
        if usage is not None:
            self._input_tokens += usage.input_tokens
            self._cached_tokens += usage.cached_tokens
            self._output_tokens += usage.output_tokens
            self._reasoning_tokens += usage.reasoning_tokens
            self._total_tokens += usage.total_tokens

    async def flush(self) -> None:
        target = self._counted
        while self._durable_counted < target:
            if self._failure is not None:
                raise self._failure
            self.hurry()
            await self._putters.next_turn()

    async def close(self) -> None:
        """When it is cancelled, what was appended still becomes durable."""
        self.refuse(ValueError(f"part {self.key} is closed"))
        self.end()
        await self.flush()
        while self._failure is None:
            await self._putters.next_turn()

    def refuse(self, refusal: Exception) -> None:
        """From now on `append` raises `refusal`; the first one stays."""
        self._refusal = self._refusal or refusal

    def fail(self, failure: Exception) -> None:
        """Nothing more becomes durable; the first failure stays."""
        self._failure = self._failure or failure
        self.refuse(failure)

    def hurry(self) -> None:
        """What is queued does not wait for the rest of its interval."""
        if self._queue:
            self._hurry.set()

    def end(self) -> None:
        """Nothing is appended any more: `due` says so once all is durable."""
        self._is_ending = True
        self._has_some.set()
        self._hurry.set()

    async def due(self, interval_s: float) -> bool:
        """Waits until there is something to put; False when there will be nothing more."""
        await self._has_some.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await self._hurry.wait()
        return bool(self._queue) or not self._is_ending

    def take(self) -> bytes:
        """The bytes of the next object."""
        piece = b"".join(self._queue)
        self._queue = []
        if not self._is_ending:
            self._has_some.clear()
            self._hurry.clear()
        self._taken_bytes, self._waiting_bytes = len(piece), 0
        self._taken_counted = self._counted
        usage = Usage(
            self._input_tokens,
            self._cached_tokens,
            self._output_tokens,
            self._reasoning_tokens,
            self._total_tokens,
        )
        self._taken_tally = Tally(self._counted - self._failed, self._failed, usage)
        return piece

    def take_next_copy(self) -> None:
        """The object lies there already, and is not ours."""
        self.key = part_key(self._lease, self._lease.token, next(self._copies))

    def settle(self) -> int:
        """What was taken is durable and counts. Returns its size in bytes."""
        newly_counted = self._taken_counted - self._durable_counted
        self.number += 1
        self._durable_bytes += self._taken_bytes
        self._durable_counted = self._taken_counted
        self._durable_tally = self._taken_tally
        size_bytes, self._taken_bytes = self._taken_bytes, 0
        if self._on_commit is not None:
            self._on_commit(newly_counted)
        return size_bytes

    def drop(self) -> int:
        """Lets go of everything that is not durable. Returns its size in bytes."""
        size_bytes = self._taken_bytes + self._waiting_bytes
        self._queue = []
        self._taken_bytes = self._waiting_bytes = 0
        return size_bytes
