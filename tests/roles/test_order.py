"""The order between batches, over a real worker: a small batch does not wait behind a large one."""

import asyncio
import json

import pytest

from nightmill.core.batch import Status
from nightmill.core.outcome import Outcome
from nightmill.core.steering import SetPriority
from tests.roles.conftest import Mill, answer, request_line

LARGE, SMALL = 6_000, 10


@pytest.fixture
def mill(folder_mill: Mill) -> Mill:
    worker = folder_mill.settings.worker.model_copy(update={"lines_per_segment": 500})
    folder_mill.settings = folder_mill.settings.model_copy(update={"worker": worker})
    return folder_mill


def lines(name: str, count: int) -> bytes:
    return b"".join(request_line(f"{name}-{number}") for number in range(count))


def name_of(body: bytes) -> str:
    return str(json.loads(body)["messages"][0]["content"]).split("-")[0]


async def test_a_small_batch_passes_a_large_one_that_was_created_first(mill: Mill):
    sent: list[str] = []

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent.append(name_of(body))
        await asyncio.sleep(0)
        return answer()

    large = await mill.accepted(lines("large", LARGE))
    small = await mill.accepted(lines("small", SMALL))

    async def small_is_completed() -> bool:
        return (await mill.now(small)).status is Status.COMPLETED

    await mill.run(mill.worker(send), until=small_is_completed)
    last = max(place for place, name in enumerate(sent) if name == "small")
    assert sent.count("small") == SMALL
    assert last < 1_000
    assert (await mill.now(large)).status is Status.IN_PROGRESS


async def test_a_small_batch_passes_leased_segments_of_a_large_one_while_all_slots_are_in_use(mill: Mill):
    sent: list[str] = []
    is_small_leased = asyncio.Event()
    sent_at_lease = 0

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent.append(name_of(body))
        if len(sent) > 100:
            await is_small_leased.wait()
        await asyncio.sleep(0)
        return answer()

    large = await mill.accepted(lines("large", LARGE))
    worker = mill.worker(send, slots=8)
    small = None

    async def small_is_completed() -> bool:
        nonlocal small, sent_at_lease
        if worker.in_flight == 8 and small is None:
            assert worker._dispatcher.supply.lacking_lines == 0
            small = await mill.accepted(lines("small", SMALL))
        if small is None:
            return False
        if not is_small_leased.is_set() and small.id in {
            batch.id for batch in worker._dispatcher.supply.batches
        }:
            sent_at_lease = len(sent)
            is_small_leased.set()
        return (await mill.now(small)).status is Status.COMPLETED

    await mill.run(worker, until=small_is_completed)
    last = max(place for place, name in enumerate(sent) if name == "small")
    assert last - sent_at_lease < 60
    assert (await mill.now(large)).status is Status.IN_PROGRESS


async def test_long_lines_are_sent_first_and_the_output_keeps_the_order_of_the_input(mill: Mill):
    sent: list[str] = []

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent.append(str(json.loads(body)["messages"][0]["content"]))
        await asyncio.sleep(0)
        return answer()

    text = b"".join(
        request_line(f"line-{number}", user="x" * (20_000 if number in (30, 77) else 10))
        for number in range(100)
    )
    batch = await mill.accepted(text)
    [batch] = await mill.run_to_the_end(mill.worker(send, slots=1), batch)
    assert sent == [f"line-{number}" for number in (30, 77, *(n for n in range(100) if n not in (30, 77)))]
    rows = await mill.rows(batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"line-{number}" for number in range(100)]


async def test_a_worker_takes_over_a_changed_priority_of_a_batch_that_it_holds(mill: Mill):
    async def send(_endpoint: str, _body: bytes) -> Outcome:
        await asyncio.sleep(0.001)
        return answer()

    batches = [await mill.accepted(lines(name, 3_000)) for name in ("one", "two")]
    worker = mill.worker(send, slots=2)

    async def is_taken_over() -> bool:
        held = {batch.id: batch.priority for batch in worker._dispatcher.supply.batches}
        if set(held) == {batch.id for batch in batches} and not any(held.values()):
            await mill.store.steering.change(batches[1].project_id, batches[1].id, [SetPriority(7)])
            mill.notifier.notify()
        return held.get(batches[1].id) == 7

    await mill.run(worker, until=is_taken_over)


async def test_batches_of_many_sizes_all_end(mill: Mill):
    async def send(_endpoint: str, _body: bytes) -> Outcome:
        await asyncio.sleep(0)
        return answer()

    counts = (700, 3, 900, 1, 40, 40, 40, 40, 40, 40, 5)
    batches = [await mill.accepted(lines("x", count)) for count in counts]
    ended = await mill.run_to_the_end(mill.worker(send), *batches)
    assert [batch.tally.completed for batch in ended] == list(counts)
