"""The real dispatcher against scripted model servers, in virtual time.

A script is a function of the request and of the virtual time. The dispatcher, the judgement and the leased
segments are those of the product; only the network, the disk and the clock are replaced.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from nightmill.core.batch import Status, Tally
from nightmill.core.clocks import Clocks
from nightmill.core.outcome import Answered, Outcome, TimedOut
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import IndexedLine, Lease, Segment
from nightmill.ids import BatchId
from nightmill.parts import Parts, PartWriter
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.telemetry import Event
from tests.simulation.upstreams import (
    CheckedDispatcher,
    Network,
    SimulatedUpstream,
    grant_slots,
    registry,
)
from tests.simulation.virtual_time import run_in_virtual_time

ENDPOINT = "/v1/chat/completions"
CHEAP = "Hi"
"""What the product's own cheap request says."""

GOOD_BODY = b'{"choices": [{"message": {"content": "ok"}}]}'


def good() -> Answered:
    return Answered(200, GOOD_BODY)


def error(status: int, *, code: str | None = None, retry_after_s: float | None = None) -> Answered:
    body = {"error": {"message": "secret", "type": "some_error", "code": code}}
    return Answered(status, json.dumps(body).encode(), None, retry_after_s)


@dataclass(frozen=True)
class Call:
    """A request as a script sees it."""

    at: float
    model: str
    content: str

    @property
    def is_cheap(self) -> bool:
        return self.content == CHEAP


Script = Callable[["Server", Call], Awaitable[Outcome]]


@dataclass
class Server:
    """A scripted model server.

    Args:
        script: the outcome of a request; may sleep, in virtual time.
        slots: requests that are computed at once; others queue inside.
        latency_s: duration of one computation.
    """

    script: Script
    slots: int = 1_000
    latency_s: float = 0.1
    calls: list[Call] = field(default_factory=list)
    calls_of: Counter[str] = field(default_factory=Counter)
    _free: asyncio.Semaphore | None = None

    async def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Outcome:  # noqa: ARG002
        document = json.loads(body)
        now = asyncio.get_running_loop().time()
        call = Call(now, document.get("model"), document["messages"][0]["content"])
        self.calls.append(call)
        self.calls_of[call.content] += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await self.script(self, call)
        except TimeoutError:
            return TimedOut(timeout_s)

    async def compute(self) -> Outcome:
        """A good answer, after the queue and the computation."""
        if self._free is None:
            self._free = asyncio.Semaphore(self.slots)
        async with self._free:
            await asyncio.sleep(self.latency_s)
        return good()

    async def models(self) -> bytes | None:
        return None

    async def close(self) -> None:
        return


@dataclass
class Writer:
    """A part in memory."""

    rows: dict[int, OutputLine] = field(default_factory=dict)
    settled_at: dict[int, float] = field(default_factory=dict)
    pinned: None = None
    durable_tally: Tally = field(default_factory=Tally)

    def append(self, ordinal: int, row: OutputLine) -> None:
        assert ordinal not in self.rows, "a line was settled twice"
        self.rows[ordinal] = row
        self.settled_at[ordinal] = asyncio.get_running_loop().time()


class _Parts:
    stalled = None
    is_full = False

    async def room(self) -> None:
        return


@dataclass
class Lines:
    """One batch in the simulation.

    Args:
        contents: the content of each line, by which scripts tell lines apart.
        at: virtual time at which the batch arrives.
        deadline_s: virtual time at which the batch ends.
    """

    contents: Sequence[str]
    model: str = "m"
    at: float = 0.0
    deadline_s: float = 86_400.0
    models: Sequence[str] | None = None
    writer: Writer = field(default_factory=Writer)
    segment: LeasedSegment | None = None

    def _lease(self, number: int) -> LeasedSegment:
        texts: list[bytes] = []
        for ordinal, content in enumerate(self.contents):
            model = self.models[ordinal] if self.models else self.model
            body = {"model": model, "messages": [{"role": "user", "content": content}]}
            texts.append(json.dumps({"custom_id": content, "body": body}).encode())
        lines: list[IndexedLine] = []
        offset = 0
        for ordinal, text in enumerate(texts):
            lines.append(IndexedLine(offset, len(text), ordinal))
            offset += len(text)
        batch_id = BatchId(f"batch_{number:032x}")
        lease = Lease(
            segment=Segment(batch_id, 0, 0, len(lines)),
            token=1,
            pinned=(),
            tally=Tally(),
            endpoint=ENDPOINT,
            model=None if self.models else self.model,
            input_blob_key="",
            index_blob_key="",
            deadline=int(self.deadline_s),
            ttl_s=30.0,
        )
        self.segment = LeasedSegment(
            lease,
            writer=cast("PartWriter", self.writer),
            text=b"".join(texts),
            offset=0,
            lines=lines,
            pinned=(),
            earlier=Tally(),
            confirmed_until=float("inf"),
        )
        return self.segment

    @property
    def is_over(self) -> bool:
        return self.segment is not None and self.segment.is_over

    def is_error(self, content: str) -> bool | None:
        """Whether the line is in the error file; None while it is in neither file."""
        row = self.writer.rows.get(list(self.contents).index(content))
        return None if row is None else row.is_error

    @property
    def answered(self) -> int:
        return sum(not row.is_error for row in self.writer.rows.values())

    @property
    def failed(self) -> int:
        return sum(row.is_error for row in self.writer.rows.values())

    @property
    def settled(self) -> int:
        return len(self.writer.rows)

    def answered_at(self) -> list[float]:
        """Virtual times of the answers, in order."""
        rows = self.writer.rows
        return sorted(at for ordinal, at in self.writer.settled_at.items() if not rows[ordinal].is_error)


@dataclass
class Result:
    """What a simulation ended with."""

    ended_at: float
    events: list[Event]


def simulate(
    server: Server | Sequence[SimulatedUpstream],
    batches: Iterable[Lines],
    *,
    slots: int = 64,
    timeout_s: float = 600.0,
    until_s: float = 86_400.0,
    seed: int = 1,
    cancel: Sequence[tuple[float, int]] = (),
    lose: Sequence[tuple[float, int]] = (),
    changes: Sequence[tuple[float, Sequence[SimulatedUpstream]]] = (),
) -> Result:
    """Sends every line of the batches until all are settled, or given up at their deadline.

    Args:
        server: the only upstream, or all upstreams with their settings.
        slots: of the only upstream, as `timeout_s`.
        cancel: virtual times and numbers of batches to cancel.
        lose: virtual times and numbers of batches whose lease is lost.
        changes: virtual times from which on these are all upstreams.
    """
    found: list[Event] = []
    known = list(batches)
    contents = [content for batch in known for content in batch.contents]
    network = Network(is_checked=len(set(contents)) == len(contents))
    if isinstance(server, Server):
        only = SimulatedUpstream(
            server, "default", models=None, accepts_any=True, slots=slots, timeout_s=timeout_s
        )
        server = [only.connected()]
    is_adaptive = any(
        it.slots is None for state in (server, *(later for _, later in changes)) for it in state
    )

    async def main() -> float:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        dispatcher = CheckedDispatcher(
            registry(server, network),
            parts=cast("Parts", _Parts()),
            request_prefix="0" * 24,
            notify=changed.set,
            emit=found.append,
            clocks=Clocks(wall=loop.time, monotonic=loop.time, random=random.Random(seed).random),
        )

        async def arrive(number: int, batch: Lines) -> None:
            await asyncio.sleep(batch.at)
            dispatcher.add(batch._lease(number))
            await asyncio.sleep(max(0.0, batch.deadline_s - loop.time()))
            stop(batch, Status.FINALIZING)

        def stop(batch: Lines, status: Status) -> None:
            segment = batch.segment
            if segment is not None and segment.stopped_by is None:
                segment.stop(status, at=loop.time())
                dispatcher.forget_waiting(segment)
                dispatcher.abort(segment)
                dispatcher.count_unsent()
            changed.set()

        async def cancelled(at: float, number: int) -> None:
            await asyncio.sleep(at)
            stop(known[number], Status.CANCELLING)

        async def lost(at: float, number: int) -> None:
            await asyncio.sleep(at)
            segment = known[number].segment
            if segment is not None and not segment.is_over:
                segment.lose()
                dispatcher.abort(segment)
                dispatcher.count_unsent()
            changed.set()

        async def change(at: float, upstreams: Sequence[SimulatedUpstream]) -> None:
            await asyncio.sleep(at)
            dispatcher.set_upstreams(registry(upstreams, network))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(dispatcher.run())]
            tasks += [group.create_task(arrive(number, batch)) for number, batch in enumerate(known)]
            tasks += [group.create_task(cancelled(at, number)) for at, number in cancel]
            tasks += [group.create_task(lost(at, number)) for at, number in lose]
            tasks += [group.create_task(change(at, upstreams)) for at, upstreams in changes]
            if is_adaptive:
                tasks.append(group.create_task(grant_slots(dispatcher)))
            while not (is_over := all(batch.is_over for batch in known)):
                changed.clear()
                try:
                    async with asyncio.timeout(until_s - loop.time()):
                        await changed.wait()
                except TimeoutError:
                    break
            if is_over:
                dispatcher.check_end()
            for task in tasks:
                task.cancel()
        return loop.time()

    return Result(run_in_virtual_time(main()), found)
