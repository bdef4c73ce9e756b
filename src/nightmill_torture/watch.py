"""Polls the server during the whole run and compares each batch with its state at the poll before.

Batches are polled several times a second, as a client would. The content of their files is checked at the end
(`proof`).
"""

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from openai import AsyncOpenAI, OpenAIError
from openai.types import Batch

from nightmill_torture.proof import Proof

_PAUSE_S = 0.1
_RETRY_S = 0.02
_NEWEST = 60
_RANK: Mapping[str, int] = {
    "validating": 0,
    "in_progress": 1,
    "finalizing": 2,
    "cancelling": 2,
    **dict.fromkeys(("completed", "expired", "cancelled", "failed"), 3),
}
_STAMPS = ("created", "expires", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
TERMINAL = frozenset(status for status, rank in _RANK.items() if rank == 3)

DIED_CONNECTING = (AttributeError,)
"""The client's socket library raises these when the server dies while a connection is made."""

COUNTS_BACK = "request_counts that went backwards"
STAMPS_CHANGED = "stamps that changed"
STATUS_BACK = "statuses that went backwards"
FILES_CHANGED = "output or error file ids that changed"


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch as a client saw it."""

    batch_id: str
    status: str
    counts: tuple[int, int, int]
    stamps: Mapping[str, int | None]
    files: tuple[str | None, str | None]

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


def as_seen(batch: Batch) -> Seen:
    counts = batch.request_counts
    return Seen(
        batch.id,
        batch.status,
        (0, 0, 0) if counts is None else (counts.total, counts.completed, counts.failed),
        {f"{name}_at": getattr(batch, f"{name}_at") for name in (*_STAMPS, "cancelled")},
        (batch.output_file_id, batch.error_file_id),
    )


class Watch:
    """The latest state of every batch, and when the server last answered."""

    def __init__(self, client: AsyncOpenAI, proof: Proof) -> None:
        self._client = client.with_options(max_retries=0)
        self._proof = proof
        self._changed = asyncio.Event()
        self.seen: dict[str, Seen] = {}
        self.answered_at = 0.0
        """Monotonic time at which the latest answered poll was sent."""
        self.longest_silence_s = 0.0
        self.polls = 0
        for name in (COUNTS_BACK, STAMPS_CHANGED, STATUS_BACK, FILES_CHANGED):
            proof.check(name)

    async def keep_polling(self) -> None:
        before = monotonic()
        while True:
            sent = monotonic()
            try:
                page = await self._client.batches.list(limit=_NEWEST)
            except (OpenAIError, *DIED_CONNECTING):
                await asyncio.sleep(_RETRY_S)
                continue
            now = monotonic()
            self.longest_silence_s = max(self.longest_silence_s, now - before)
            before = now
            self.answered_at = sent
            self.polls += 1
            for batch in page.data or ():
                self.note(as_seen(batch))
            with suppress(OpenAIError, *DIED_CONNECTING):
                await self._poll_older({batch.id for batch in page.data or ()})
            self._notify()
            await asyncio.sleep(_PAUSE_S)

    async def _poll_older(self, listed: Collection[str]) -> None:
        """Polls batches that have not ended and are no longer among the newest."""
        for batch_id, seen in list(self.seen.items()):
            if not seen.is_terminal and batch_id not in listed:
                self.note(as_seen(await self._client.batches.retrieve(batch_id)))

    async def answer_after(self, moment: float) -> float:
        """Waits for the answer to a poll that was sent after `moment`; monotonic time of the answer."""
        while self.answered_at < moment:
            await self._changed.wait()
        return monotonic()

    async def end_of(self, batch_id: str) -> Seen:
        while not ((seen := self.seen.get(batch_id)) and seen.is_terminal):
            await self._changed.wait()
        return seen

    def note(self, now: Seen) -> None:
        before = self.seen.get(now.batch_id)
        self.seen[now.batch_id] = now
        if before is None:
            return
        change = f"{now.batch_id} from {before.status} to {now.status}"
        if _RANK[now.status] < _RANK[before.status] or (before.is_terminal and now.status != before.status):
            self._proof.breach(STATUS_BACK, change)
        if any(new < old for new, old in zip(now.counts, before.counts, strict=True)):
            self._proof.breach(COUNTS_BACK, f"{change}: {before.counts}, then {now.counts}")
        for name, stamp in before.stamps.items():
            if stamp is not None and now.stamps[name] != stamp:
                self._proof.breach(STAMPS_CHANGED, f"{change}: {name} was {stamp}, is {now.stamps[name]}")
        for old, new in zip(before.files, now.files, strict=True):
            if old is not None and new != old:
                self._proof.breach(FILES_CHANGED, f"{change}: {old}, then {new}")

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
