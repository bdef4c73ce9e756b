"""A batch whose lines are answered as the test says: the real store, parts, intake and finalizer."""

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from nightmill.core.batch import Event, Tally
from nightmill.core.clocks import Clocks
from nightmill.core.output_line import answered
from nightmill.core.request_line import slice_line
from nightmill.core.segment import Lease, PinnedPart, SegmentReport
from nightmill.ids import BatchId, ProjectId, WorkerId, output_line_id
from nightmill.parts import PartWriter
from nightmill.roles.finalizer import Finalizer
from nightmill.roles.intake import Intake
from nightmill.roles.join import Joiner
from nightmill.roles.loop import Notifier
from nightmill.runtime.components import finalizer_options, intake_options
from tests.api.conftest import Answer, Server

ENDPOINT = "/v1/chat/completions"
LINES_PER_SEGMENT = 3
SETTINGS = {"worker": {"lines_per_segment": LINES_PER_SEGMENT, "lease_ttl_s": 600.0}}
CLOCKS = Clocks(wall=time.time, monotonic=time.monotonic, random=lambda: 0.5)


def request(number: int) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    row = {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(row).encode() + b"\n"


@dataclass
class Holder:
    """A worker that holds one segment and answers what the test says."""

    lease: Lease
    writer: PartWriter
    earlier: Tally = field(default_factory=Tally)
    pinned: Sequence[PinnedPart] = ()

    @property
    def report(self) -> SegmentReport:
        segment = self.lease.segment
        tally = self.earlier.plus(self.writer.durable_tally)
        return SegmentReport(segment.batch_id, segment.number, self.lease.token, tally)


@dataclass
class FollowedBatch:
    server: Server
    id: BatchId

    @staticmethod
    def of(server: Server, lines: int, **fields: Any) -> "FollowedBatch":
        client = server.client()
        content = fields.pop("content", None) or b"".join(map(request, range(lines)))
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        made = client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **fields
        )
        context = server.context
        intake = Intake(
            store=context.store,
            blobs=context.blobs,
            options=intake_options(context.settings, store=context.store),
            worker_id=WorkerId("intake"),
            notifier=Notifier(),
            emit=lambda _: None,
            clock=time.time,
        )
        server.do(intake.turn())
        return FollowedBatch(server, BatchId(made.id))

    @property
    def project(self) -> ProjectId:
        return ProjectId("default")

    def lease(self) -> Holder:
        """The next segment of the batch."""
        context = self.server.context
        (lease,) = self.server.do(
            context.store.segments.lease(WorkerId("worker"), limit=0, ttl_s=600, preferred=[(self.id, 1)])
        )

        async def opened() -> PartWriter:
            return context.parts.open(lease.segment, lease.token)

        return Holder(lease, self.server.do(opened()))

    def answer(self, holder: Holder, *ordinals: int, failed: Sequence[int] = ()) -> None:
        """Answers lines, and reports them as a heartbeat does."""

        async def write() -> None:
            for ordinal in (*ordinals, *failed):
                holder.writer.append(ordinal, self.row(ordinal, is_failed=ordinal in failed))
            await holder.writer.flush()

        self.server.do(write())
        self.beat(holder)

    def row(self, ordinal: int, *, is_failed: bool = False, text: str = "ok") -> Any:
        body = {"error": {"code": "too_long"}} if is_failed else {"choices": [{"text": text}]}
        return answered(
            output_line_id(self.id, ordinal).encode(),
            slice_line(request(ordinal)),
            endpoint=ENDPOINT,
            status=400 if is_failed else 200,
            request_id=b'"r"',
            body=json.dumps(body).encode(),
        )

    def beat(self, holder: Holder) -> None:
        renew = self.server.context.store.segments.renew
        self.server.do(renew(WorkerId("worker"), [holder.report], ttl_s=600))

    def complete(self, holder: Holder) -> None:
        self.server.do(holder.writer.close())
        parts = [*holder.pinned, *([holder.writer.pinned] if holder.writer.pinned else [])]
        assert self.server.do(self.server.context.store.segments.complete(holder.lease, holder.report, parts))

    def move(self, event: Event) -> None:
        store = self.server.context.store
        batch = self.server.do(store.batches.get(self.project, self.id))
        assert batch is not None
        assert self.server.do(store.batches.move(batch.after(event, now=time.time()), expected=batch.status))

    def answer_all(self, lines: int, *, failed: Sequence[int] = ()) -> None:
        """Every segment that is not leased yet."""
        for _ in range(0, lines, LINES_PER_SEGMENT):
            holder = self.lease()
            segment = holder.lease.segment
            ordinals = range(segment.first, segment.first + segment.count)
            self.answer(
                holder,
                *(it for it in ordinals if it not in failed),
                failed=[it for it in ordinals if it in failed],
            )
            self.complete(holder)

    def finalize(self) -> None:
        context = self.server.context
        finalizer = Finalizer(
            store=context.store,
            blobs=context.blobs,
            joiner=Joiner(
                store=context.store, blobs=context.blobs, parts=context.parts, monotonic=time.monotonic
            ),
            options=finalizer_options(context.settings),
            worker_id=WorkerId("finalizer"),
            notifier=Notifier(),
            emit=lambda _: None,
            clocks=CLOCKS,
        )
        self.server.do(finalizer.turn())
        self.server.do(context.parts.delete(self.id))

    def path(self, **query: Any) -> str:
        return f"/nightmill/v1/batches/{self.id}/results?{urlencode(query, doseq=True)}"

    def page(self, **query: Any) -> Answer:
        return self.server.send("GET", self.path(**query))

    def pages(self, **query: Any) -> list[dict[str, Any]]:
        """All lines that are there now, page by page."""
        found: list[dict[str, Any]] = []
        while (page := self.page(**query).json())["data"]:
            found += page["data"]
            query["after"] = page["cursor"]
        return found

    @contextmanager
    def following(
        self, *, headers: dict[str, str] | None = None, **query: Any
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request("GET", self.path(follow=1, **query), headers=headers or {})
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()


def next_document(response: http.client.HTTPResponse) -> dict[str, Any] | None:
    """The next document of a followed batch; None at the end."""
    while line := response.readline():
        if line.strip():
            return json.loads(line)
    return None


def ids(documents: Sequence[dict[str, Any]]) -> list[str]:
    return [document["line"]["custom_id"] for document in documents]
