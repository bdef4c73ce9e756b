"""One part as a row of objects, written by one writer only."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Protocol

from nightmill.core.batch import Tally
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import Lease, PinnedPart
from nightmill.parts.queue import RecordQueue
from nightmill.parts.writer import part_key


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
        self._part_bytes = part_bytes
        self._copies = count(1)
        self._failure: Exception | None = None
        self._queue = RecordQueue(on_commit)
        self._has_some = asyncio.Event()
        self._hurry = asyncio.Event()
        self._is_ending = False

    @property
    def durable_tally(self) -> Tally:
        return self._queue.durable_tally

    @property
    def pinned(self) -> PinnedPart | None:
        durable_bytes = self._queue.durable_bytes
        return PinnedPart(self.key, durable_bytes) if durable_bytes else None

    @property
    def pending_count(self) -> int:
        """Records that are not durable yet."""
        return self._queue.pending_count

    def append(self, ordinal: int, output: OutputLine) -> None:
        is_empty = not self._queue.queued_bytes
        self._putters.queued_bytes += self._queue.append(ordinal, output)
        if is_empty:
            self._has_some.set()
        if self._queue.queued_bytes >= self._part_bytes:
            self._hurry.set()

    async def flush(self) -> None:
        target = self._queue.counted
        while not self._queue.is_durable(target):
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
        self._queue.refuse(refusal)

    def fail(self, failure: Exception) -> None:
        """Nothing more becomes durable; the first failure stays."""
        self._failure = self._failure or failure
        self.refuse(failure)

    def hurry(self) -> None:
        """What is queued does not wait for the rest of its interval."""
        if self._queue.queued_bytes:
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
        return bool(self._queue.queued_bytes) or not self._is_ending

    def take(self) -> bytes:
        """The bytes of the next object."""
        piece = b"".join(self._queue.take())
        if not self._is_ending:
            self._has_some.clear()
            self._hurry.clear()
        return piece

    def take_next_copy(self) -> None:
        """The object lies there already, and is not ours."""
        self.key = part_key(self._lease, self._lease.token, next(self._copies))

    def settle(self) -> int:
        """What was taken is durable and counts. Returns its size in bytes."""
        self.number += 1
        return self._queue.settle()

    def drop(self) -> int:
        """Lets go of everything that is not durable. Returns its size in bytes."""
        return self._queue.drop()
