"""What a worker reports of its lines while a client asks for them, and that an older report replaces none."""

import asyncio
import json

from nightmill.core.outcome import Answered
from nightmill.ids import WorkerId
from nightmill.store import LineReport
from tests.roles.conftest import answer, request_lines

BUSY = Answered(503, b'{"error": {"message": "busy", "type": "server_error", "code": "busy"}}')


def prompt_of(body: bytes) -> str:
    return json.loads(body)["messages"][0]["content"]


async def document_of(mill, batch, number=0, *, token=1, since=0.0):
    text = await mill.store.line_reports.get(batch.id, number, token=token, since=since)
    return None if text is None else json.loads(text)


async def test_lines_in_flight_and_lines_to_be_sent_again_are_reported(folder_mill):
    mill = folder_mill
    batch = await mill.accepted(request_lines(3))
    may_answer = asyncio.Event()

    async def send(_, body):
        if prompt_of(body) == "line-0":
            return BUSY if not may_answer.is_set() else answer()
        await may_answer.wait()
        return answer()

    asked_at = await mill.store.line_reports.want(batch.id, wanted_s=60)
    seen = {}

    async def is_reported() -> bool:
        document = await document_of(mill, batch, since=asked_at)
        if document and document["retries"] and len(document["in_flight"]) == 2:
            seen.update(document)
        return bool(seen)

    await mill.run(mill.worker(send), until=is_reported)
    may_answer.set()
    assert sorted(line[0] for line in seen["in_flight"]) == [1, 2]
    ((ordinal, upstream, _, reason),) = seen["retries"]
    assert (ordinal, upstream) == (0, "default")
    assert "failed" in reason


async def test_nothing_is_reported_while_no_client_asks(folder_mill):
    mill = folder_mill
    batch = await mill.accepted(request_lines(3))
    other = await mill.accepted(request_lines(1))
    await mill.store.line_reports.want(other.id, wanted_s=-1)

    async def send(*_):
        await asyncio.sleep(0.2)  # several heartbeats
        return answer()

    await mill.run_to_the_end(mill.worker(send), batch, other)
    assert await document_of(mill, batch) is None
    assert await document_of(mill, other) is None


async def test_the_report_of_an_older_lease_changes_nothing(folder_mill):
    reports = folder_mill.store.line_reports
    batch = await folder_mill.accepted(request_lines(1))
    for token, document in ((2, '"new"'), (1, '"old"')):
        await reports.put([LineReport(batch.id, 0, token, document)])
    assert await document_of(folder_mill, batch, token=2) == "new"
    assert await document_of(folder_mill, batch, token=1) is None


async def test_the_reports_of_a_batch_end_with_it(folder_mill):
    mill = folder_mill
    batch = await mill.accepted(request_lines(1))
    (lease,) = await mill.store.segments.lease(WorkerId("w"), limit=1, ttl_s=0.01)
    await mill.store.line_reports.put([LineReport(batch.id, 0, lease.token, "{}")])

    async def send(*_):
        return answer()

    await mill.store.segments.release_expired()
    await asyncio.sleep(0.02)
    await mill.store.segments.release_expired()
    await mill.run_to_the_end(mill.worker(send), batch)
    assert await document_of(mill, batch, token=lease.token) is None
