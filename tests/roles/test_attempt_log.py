"""Which attempts a worker records, where they lie, and when they are deleted."""

import json
from itertools import count

from nightmill.api.receipts import attempt_lines
from nightmill.core.batch_options import BatchOptions
from nightmill.core.outcome import Answered
from nightmill.errors import StorageFullError
from nightmill.roles.attempt_log import ATTEMPTS_FOLDER
from nightmill.roles.orphan_blobs import OrphanSweep
from tests.roles.conftest import PROJECT, answer, request_lines

RECORDED = BatchOptions(record_attempts=True)
BUSY = Answered(503, b'{"error": {"message": "busy", "type": "server_error", "code": "busy"}}')


async def records_of(mill, batch):
    chunks = [chunk async for chunk in attempt_lines(mill.blobs, batch)]
    return [json.loads(text) for text in b"".join(chunks).splitlines()]


async def keys(mill):
    return [key async for key in mill.blobs.keys_under(ATTEMPTS_FOLDER)]


async def test_attempts_of_all_segments_are_written_before_the_batch_ends(mill):
    batch = await mill.accepted(request_lines(12), options=RECORDED)
    numbers = count()

    async def send(*_):
        return BUSY if next(numbers) == 0 else answer()

    (ended,) = await mill.run_to_the_end(mill.worker(send), batch)
    records = await records_of(mill, ended)
    assert sorted({record["ordinal"] for record in records}) == list(range(12))
    assert len(records) == 13
    repeated = [record for record in records if record["attempt"] == 2]
    assert [record["status"] for record in repeated] == [200]
    assert repeated[0]["wait_s"] > 0
    (failed,) = [record for record in records if record["is_error"]]
    assert (failed["status"], failed["code"], failed["ordinal"]) == (503, "busy", repeated[0]["ordinal"])


async def test_a_custom_id_that_has_no_bytes_in_utf8_is_recorded(mill):
    line = request_lines(1).replace(b'"custom_id": "', b'"custom_id": "\\ud800 \\u0000', 1)
    batch = await mill.accepted(line, options=RECORDED)

    async def send(*_):
        return answer()

    (ended,) = await mill.run_to_the_end(mill.worker(send), batch)
    (record,) = await records_of(mill, ended)
    assert record["custom_id"].startswith("? \0")


async def test_nothing_is_recorded_without_the_option(mill):
    batch = await mill.accepted(request_lines(3))

    async def send(*_):
        return answer()

    await mill.run_to_the_end(mill.worker(send), batch)
    assert await keys(mill) == []


async def test_answers_are_kept_when_attempts_cannot_be_written(folder_mill, monkeypatch):
    mill = folder_mill
    batch = await mill.accepted(request_lines(3), options=RECORDED)
    open_writer = mill.blobs.open_writer

    async def full(key):
        if key.startswith(ATTEMPTS_FOLDER):
            raise StorageFullError("full")
        return await open_writer(key)

    monkeypatch.setattr(mill.blobs, "open_writer", full)

    async def send(*_):
        return answer()

    (ended,) = await mill.run_to_the_end(mill.worker(send), batch)
    assert ended.tally.completed == 3
    assert await records_of(mill, ended) == []


async def test_attempts_are_deleted_once_the_files_of_their_batch_are(mill):
    async def send(*_):
        return answer()

    kept = await mill.accepted(request_lines(1), options=RECORDED)
    deleted = await mill.accepted(request_lines(1), options=RECORDED)
    await mill.run_to_the_end(mill.worker(send), kept, deleted)
    running = await mill.accepted(request_lines(1), options=RECORDED)
    writer = await mill.blobs.open_writer(f"{ATTEMPTS_FOLDER}/{running.id}/1")
    await writer.write(b'{"ordinal": 0}\n')
    await writer.commit()
    ended = await mill.now(deleted)
    assert await mill.store.files.delete(PROJECT, ended.output_file_id)
    sweep = OrphanSweep(store=mill.store, blobs=mill.blobs, monotonic=lambda: 0.0)
    await sweep.sweep()
    assert await records_of(mill, ended) == []
    assert len(await records_of(mill, kept)) == 1
    assert len(await records_of(mill, running)) == 1
