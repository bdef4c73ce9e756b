"""Long request lines and long answers are bounded in memory, not only in number."""

import asyncio
import json

import pytest

from nightmill.core.outcome import Answered, Outcome
from tests.roles.conftest import Mill, answer, request_line

LINE_BYTES = 4_000
TEXT_BYTES = 1 << 16


def number_in(body: bytes) -> int:
    return int(json.loads(body)["messages"][0]["content"].removeprefix("line-"))


async def test_long_lines_are_leased_only_while_their_text_has_room(mill: Mill):
    settings = mill.settings.worker.model_copy(update={"text_bytes": TEXT_BYTES, "lines_per_segment": 2})
    mill.settings = mill.settings.model_copy(update={"worker": settings})
    in_flight = most_in_flight = 0

    async def send(_endpoint: str, body: bytes) -> Outcome:
        nonlocal in_flight, most_in_flight
        assert len(body) > LINE_BYTES
        in_flight += 1
        most_in_flight = max(most_in_flight, in_flight)
        await asyncio.sleep(0.3)  # long enough to lease all lines, if nothing held the worker back
        in_flight -= 1
        return answer()

    picture = "x" * LINE_BYTES
    lines = b"".join(request_line(f"line-{number}", picture=picture) for number in range(60))
    [ended] = await mill.run_to_the_end(mill.worker(send, slots=60), await mill.accepted(lines))
    assert ended.tally.completed == 60
    assert 1 < most_in_flight <= TEXT_BYTES // LINE_BYTES
    assert len(await mill.rows(ended.output_file_id)) == 60


async def test_a_line_longer_than_the_room_for_text_is_answered(mill: Mill):
    settings = mill.settings.worker.model_copy(update={"text_bytes": TEXT_BYTES})
    mill.settings = mill.settings.model_copy(update={"worker": settings})

    async def send(_endpoint: str, body: bytes) -> Outcome:
        await asyncio.sleep(0)
        return answer(str(len(body)))

    lines = b"".join(request_line(f"line-{number}", picture="x" * 2 * TEXT_BYTES) for number in range(5))
    [ended] = await mill.run_to_the_end(mill.worker(send), await mill.accepted(lines))
    assert ended.tally.completed == 5


@pytest.mark.parametrize("kept_bytes", [0, 250_000])
async def test_long_answers_are_joined_in_order_without_all_of_them_in_memory(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
):
    monkeypatch.setattr("nightmill.roles.join._READ_BYTES", kept_bytes)
    length_of = {number: 100_000 if number % 3 else 10 for number in range(12)}

    async def send(_endpoint: str, body: bytes) -> Outcome:
        number = number_in(body)
        await asyncio.sleep(0.002 * (number % 5))
        text = chr(ord("a") + number) * length_of[number]
        return answer(text) if number % 4 else Answered(400, json.dumps({"error": text}).encode())

    lines = b"".join(request_line(f"line-{number}") for number in range(12))
    [ended] = await mill.run_to_the_end(mill.worker(send), await mill.accepted(lines))
    assert (ended.tally.completed, ended.tally.failed) == (9, 3)
    found = {}
    for file_id in (ended.output_file_id, ended.error_file_id):
        rows = await mill.rows(file_id)
        numbers = [int(row["custom_id"].removeprefix("line-")) for row in rows]
        assert numbers == sorted(numbers)
        for number, row in zip(numbers, rows, strict=True):
            body = row["response"]["body"]
            found[number] = body["error"] if "error" in body else body["choices"][0]["message"]["content"]
    assert found == {number: chr(ord("a") + number) * length for number, length in length_of.items()}
