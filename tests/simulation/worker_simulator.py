"""The real worker against a scripted model server, in virtual time, with a store in memory.

Batches may have a million lines: the text of a line and its index record are made when they are read. The
store offers the same candidates as the real one (held by tests/store/test_open_batches.py).
"""

import asyncio
import json
import random
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final, cast

from nightmill.core.batch import Tally, Usage
from nightmill.core.clocks import Clocks
from nightmill.core.concurrency import Grant, SlotRequest, Slots
from nightmill.core.output_line import OutputLine
from nightmill.core.rate_limit import RateLimits
from nightmill.core.routing import Offer
from nightmill.core.schedule import Candidates, OpenBatch
from nightmill.core.segment import (
    INDEX_RECORD_BYTES,
    HeartbeatReply,
    Lease,
    PinnedPart,
    Segment,
    pack_line,
)
from nightmill.ids import BatchId, ProjectId, WorkerId
from nightmill.roles.loop import Notifier
from nightmill.roles.worker import Storage, Worker
from nightmill.settings import WorkerSettings
from nightmill.telemetry import Event
from nightmill.upstream.registry import UpstreamRegistry, UpstreamRuntime
from tests.simulation.simulator import ENDPOINT, Server
from tests.simulation.virtual_time import run_in_virtual_time

_SEGMENT_LINES: Final = 500


@dataclass
class SimulatedBatch:
    """A batch of lines of equal length.

    Args:
        name: begins the content of each line, by which scripts tell batches apart.
        at: virtual time of its creation; the worker gets no notification.
        priorities: further priorities, each with the virtual time of the change.
    """

    name: str
    count: int
    at: float = 0.0
    project: str = "default"
    model: str = "m"
    priority: int = 0
    priorities: Sequence[tuple[float, int]] = ()
    padding: int = 0
    leased: int = 0
    sequence: int = 0

    def line(self, ordinal: int) -> bytes:
        content = f"{self.name} {ordinal:07}"
        body = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        row = {"custom_id": content, "body": body, "padding": "x" * self.padding}
        return json.dumps(row).encode()

    @property
    def line_bytes(self) -> int:
        return len(self.line(0))

    @property
    def id(self) -> BatchId:
        return BatchId(f"batch_{self.sequence:032x}")

    def priority_at(self, now: float) -> int:
        return [self.priority, *(priority for at, priority in self.priorities if at <= now)][-1]

    def open(self, now: float) -> OpenBatch:
        size_bytes = self.count * self.line_bytes
        project = ProjectId(self.project)
        return OpenBatch(self.id, project, self.sequence, 1e9, size_bytes, self.priority_at(now))


@dataclass
class _Writer:
    """A part in memory whose records are durable at once."""

    answered: Tally = field(default_factory=Tally)
    size_bytes: int = 0

    @property
    def durable_tally(self) -> Tally:
        return self.answered

    @property
    def pinned(self) -> PinnedPart | None:
        return PinnedPart("part", self.size_bytes) if self.size_bytes else None

    def append(self, ordinal: int, row: OutputLine) -> None:  # noqa: ARG002
        self.answered = self.answered.plus(Tally(not row.is_error, row.is_error, row.usage or Usage()))
        self.size_bytes += len(row.text)

    async def flush(self) -> None:
        return

    async def close(self) -> None:
        return


class _Parts:
    stalled = None
    is_full = False

    def open(self, segment: Segment, token: int) -> _Writer:  # noqa: ARG002
        return _Writer()


class _Store:
    """The verbs of the store that a worker calls; `segments`, `batches` and so on are all this object."""

    def __init__(self, batches: Sequence[SimulatedBatch]) -> None:
        for number, batch in enumerate(batches, start=1):
            batch.sequence = number
        self._batches = {batch.id: batch for batch in batches}
        self.segments = self.batches = self.open_batches = self.grants = self

    def _waiting(self, passed_over: Collection[BatchId] = ()) -> list[SimulatedBatch]:
        now = asyncio.get_running_loop().time()
        return [
            batch
            for batch in self._batches.values()
            if batch.at <= now and batch.leased < batch.count and batch.id not in passed_over
        ]

    async def candidates(
        self,
        *,
        after: ProjectId,
        most: int,
        passed_over: Collection[BatchId],
        after_model: str | None,  # noqa: ARG002 - its batches have one model
        worker_id: WorkerId,  # noqa: ARG002 - there is one worker
    ) -> Candidates:
        now = asyncio.get_running_loop().time()
        by_project: dict[str, list[OpenBatch]] = {}
        for batch in self._waiting(passed_over):
            by_project.setdefault(batch.project, []).append(batch.open(now))
        names = [name for name in sorted(by_project) if name > after][:most]
        offered: list[list[OpenBatch]] = []
        for name in names:
            found = by_project[name]
            highest = min(found, key=lambda it: (-it.priority, it.sequence))
            oldest = min(found, key=lambda it: it.sequence)
            smallest = min(found, key=lambda it: (it.input_bytes, it.sequence))
            offered.append(list(dict.fromkeys([highest, oldest, smallest])))
        next_after = ProjectId("" if len(names) < most else names[-1])
        priorities = {batch_id: self._batches[batch_id].priority_at(now) for batch_id in passed_over}
        return Candidates([], offered, next_after, priorities)

    async def lease(
        self,
        worker_id: WorkerId,  # noqa: ARG002
        *,
        limit: int,
        ttl_s: float,
        preferred: Sequence[tuple[BatchId, int]] = (),
        passed_over: Set[BatchId] = frozenset(),
    ) -> Sequence[Lease]:
        leases: list[Lease] = []
        for batch_id, count in preferred:
            leases += self._leases_of(self._batches[batch_id], count, ttl_s)
        for batch in self._waiting(passed_over):
            leases += self._leases_of(batch, limit - len(leases), ttl_s)
        return leases

    def _leases_of(self, batch: SimulatedBatch, most: int, ttl_s: float) -> Iterator[Lease]:
        now = asyncio.get_running_loop().time()
        for _ in range(most):
            count = min(_SEGMENT_LINES, batch.count - batch.leased)
            if count == 0:
                return
            segment = Segment(batch.id, batch.leased // _SEGMENT_LINES, batch.leased, count)
            batch.leased += count
            yield Lease(
                segment=segment,
                token=1,
                pinned=(),
                tally=Tally(),
                endpoint=ENDPOINT,
                model=batch.model,
                input_blob_key=f"text {batch.id}",
                index_blob_key=f"index {batch.id}",
                deadline=10**9,
                ttl_s=ttl_s,
                project_id=ProjectId(batch.project),
                batch_sequence=batch.sequence,
                batch_bytes=batch.count * batch.line_bytes,
                priority=batch.priority_at(now),
            )

    async def renew(self, *_: object, **_options: object) -> HeartbeatReply:
        return HeartbeatReply(frozenset(), {})

    async def complete(self, *_: object) -> bool:
        return True

    async def release(self, *_: object) -> bool:
        return True

    async def terms(self, _: object) -> dict[BatchId, Any]:
        return {}

    async def request(self, request: SlotRequest, *, ttl_s: float) -> Grant:  # noqa: ARG002
        return Grant(request.concurrency_limit, request.concurrency_limit)

    async def read(self, key: str, offset: int, length_bytes: int) -> bytes:
        """A blob: the index or the text of a batch."""
        kind, _, batch_id = key.partition(" ")
        batch = self._batches[BatchId(batch_id)]
        each = batch.line_bytes
        size = INDEX_RECORD_BYTES if kind == "index" else each
        ordinals = range(offset // size, (offset + length_bytes) // size)
        if kind == "index":
            return b"".join(pack_line(ordinal * each, each, ordinal) for ordinal in ordinals)
        return b"".join(batch.line(ordinal) for ordinal in ordinals)


def run_worker(
    server: Server,
    batches: Sequence[SimulatedBatch],
    *,
    until_s: float,
    slots: int = 64,
    stop: asyncio.Event | None = None,
) -> list[Event]:
    """Runs a worker from virtual time 0 on, until `stop` is set; returns its events. The server has the
    calls.
    """
    found: list[Event] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        store = cast("Any", _Store(batches))
        granted = Slots("sim", concurrency_limit=slots, ttl_s=1e9, ask_every_s=1.0)
        worker = Worker(
            storage=Storage(store, store, cast("Any", _Parts())),
            upstreams=UpstreamRegistry(
                UpstreamRuntime(
                    offer=Offer(name="default", accepts_any=True),
                    client=cast("Any", server),
                    slots_of=lambda _: granted,
                    rates=RateLimits(requests_per_minute=0, tokens_per_minute=0),
                    attempt_timeout_s=600.0,
                    max_attempts=8,
                )
            ),
            settings=WorkerSettings(),
            worker_id=WorkerId("worker"),
            request_prefix="0" * 24,
            notifier=Notifier(),
            emit=found.append,
            clocks=Clocks(wall=loop.time, monotonic=loop.time, random=random.Random(1).random),
        )
        running = asyncio.create_task(worker.run(stop or asyncio.Event(), grace_s=lambda: 0.0))
        done, _ = await asyncio.wait([running], timeout=until_s)
        for task in done:
            task.result()
        running.cancel()
        await asyncio.wait([running])

    run_in_virtual_time(main())
    return found
