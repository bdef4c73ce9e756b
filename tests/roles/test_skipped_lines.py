"""`on_invalid: skip` and the validation report: which lines are sent, and where the others are."""

import json
import random
from typing import Any

import pytest

from nightmill.core.batch import Batch, Status
from nightmill.core.batch_options import BatchOptions, OnInvalid
from nightmill.core.outcome import Answered
from tests.roles.conftest import Mill, request_line

SKIP = BatchOptions(on_invalid=OnInvalid.SKIP)
BAD = (
    b"{broken\n",
    b'{"custom_id": "bad", "method": "GET", "url": "/v1/chat/completions", "body": {}}\n',
    b'{"custom_id": 7, "method": "POST", "url": "/v1/chat/completions", "body": {}}\n',
    b"[]\n",
    b"\xff\n",
)


async def answer(_: str, body: bytes) -> Answered:
    """Some requests fail, so that the error file has lines of both kinds."""
    return Answered(400 if b'3"' in body else 200, b'{"choices":[]}', "r")


async def report_of(mill: Mill, batch: Batch) -> list[dict[str, Any]]:
    assert batch.report_blob_key is not None
    text = b"".join([chunk async for chunk in mill.blobs.stream(batch.report_blob_key)])
    return [json.loads(row) for row in text.splitlines()]


def mixture(seed: int, count: int) -> tuple[bytes, dict[int, str | None], dict[int, str]]:
    """A file, the custom_ids of its invalid lines by ordinal, and those of its valid lines."""
    chance = random.Random(seed)
    lines: list[bytes] = []
    bad: dict[int, str | None] = {}
    good: dict[int, str] = {}
    for ordinal in range(count):
        kind = chance.random()
        if kind < 0.2:
            text = chance.choice(BAD)
            lines.append(text)
            bad[ordinal] = "bad" if b'"bad"' in text else None
        elif kind < 0.3 and good:
            earlier = chance.choice(list(good.values()))
            lines.append(request_line(earlier))
            bad[ordinal] = earlier
        else:
            good[ordinal] = f"line-{ordinal}"
            lines.append(request_line(good[ordinal]))
        if kind > 0.95:
            lines.append(b"\n")
    return b"".join(lines), bad, good


@pytest.mark.parametrize("seed", range(4))
async def test_valid_lines_are_answered_and_invalid_ones_are_in_the_error_file_in_order(
    mill: Mill, seed: int
) -> None:
    text, bad, good = mixture(seed, 120)
    batch = await mill.accepted(text, options=SKIP)
    assert (batch.total, batch.invalid) == (120, len(bad))
    assert (batch.tally.completed, batch.tally.failed) == (0, len(bad))
    report = await report_of(mill, batch)
    assert {row["ordinal"]: row["custom_id"] for row in report} == bad
    assert [row["line"] for row in report] == sorted(row["line"] for row in report)

    (ended,) = await mill.run_to_the_end(mill.worker(answer), batch)
    assert ended.status is Status.COMPLETED
    refused = {ordinal: name for ordinal, name in good.items() if name.endswith("3")}
    assert (ended.tally.completed, ended.tally.failed) == (len(good) - len(refused), len(bad) + len(refused))
    output, errors = await mill.rows(ended.output_file_id), await mill.rows(ended.error_file_id)
    assert [row["custom_id"] for row in output] == [
        name for ordinal, name in good.items() if ordinal not in refused
    ]
    assert [row["custom_id"] for row in errors] == [name for _, name in sorted((bad | refused).items())]
    skipped = [row for row in errors if row["response"] is None]
    assert [row["error"] for row in skipped] == [
        {"code": row["code"], "message": row["reason"]} for row in report
    ]
    assert len({row["id"] for row in output + errors}) == 120


async def test_without_the_option_one_bad_line_fails_the_batch_and_the_report_has_all(mill: Mill) -> None:
    batch = await mill.batch_of(request_line("a") + b"{\n" * 300 + request_line("a"))
    await mill.intake().turn()
    batch = await mill.now(batch)
    assert (batch.status, batch.invalid, batch.total) == (Status.FAILED, 0, 0)
    assert len(batch.errors) == 101
    report = await report_of(mill, batch)
    assert [row["line"] for row in report] == list(range(2, 303))
    assert [row["code"] for row in report[-2:]] == ["invalid_json_line", "duplicate_custom_id"]


@pytest.mark.parametrize("text", [b"{\n" * 3, b"", b"\x1f\x8b" + b"0" * 40])
async def test_a_file_without_any_valid_line_fails_although_invalid_ones_are_skipped(
    mill: Mill, text: bytes
) -> None:
    batch = await mill.batch_of(text, options=SKIP)
    await mill.intake().turn()
    batch = await mill.now(batch)
    assert batch.status is Status.FAILED
    assert batch.errors


async def test_a_valid_file_has_no_report_and_loses_nothing_by_the_option(mill: Mill) -> None:
    batch = await mill.accepted(request_line("a") + request_line("b"), options=SKIP)
    assert (batch.total, batch.invalid, batch.report_blob_key) == (2, 0, None)


async def test_lines_of_a_cancelled_batch_are_each_in_the_error_file_once(mill: Mill) -> None:
    text, bad, good = mixture(9, 60)
    batch = await mill.accepted(text, options=SKIP)
    await mill.cancel(batch)
    (ended,) = await mill.run_to_the_end(mill.worker(answer), batch)
    errors = await mill.rows(ended.error_file_id)
    assert ended.status is Status.CANCELLED
    assert [row["custom_id"] for row in errors] == [name for _, name in sorted((bad | good).items())]
    assert sum(row["error"]["code"] == "batch_cancelled" for row in errors) == len(good)
