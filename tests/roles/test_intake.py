"""Intake against the real store and folder: all lines good and the batch goes on, or it fails with why."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from nightmill.blobs import Blobs, FolderBlobs
from nightmill.core.batch import Batch, LineError, Status
from nightmill.core.file import File, Purpose
from nightmill.core.request_line import slice_line
from nightmill.core.segment import INDEX_RECORD_BYTES, unpack_lines
from nightmill.errors import StorageFullError
from nightmill.ids import FileId, ProjectId, WorkerId
from nightmill.roles import intake as intake_module
from nightmill.roles.intake import Intake
from nightmill.runtime.components import intake_options
from nightmill.settings import load
from nightmill.telemetry import BatchMoved

PROJECT = ProjectId("default")


def request(custom_id: str, model: str = "m") -> bytes:
    return (
        b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions",'
        b'"body":{"model":"%b","messages":[{"role":"user","content":"%b"}]}}\n'
    ) % (custom_id.encode(), model.encode(), custom_id.encode())


def requests(count: int) -> bytes:
    return b"".join(request(f"line-{number}") for number in range(count))


class SlowBlobs:
    """Holds each read until the test has done something."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.reading = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    async def read(self, key: str, start: int, length_bytes: int) -> bytes:
        self.reading.set()
        await self.go_on.wait()
        return await self._blobs.read(key, start, length_bytes)


def intake(mill: Any, *, blobs: Any = None, name: str = "intake_1", **flags: Any) -> Intake:
    return Intake(
        store=mill.store,
        blobs=blobs or mill.blobs,
        options=intake_options(
            load(flags={"worker": {"lines_per_segment": 5}, **flags}, environment={}), store=mill.store
        ),
        worker_id=WorkerId(name),
        notifier=mill.notifier,
        emit=mill.events.append,
        clock=time.time,
    )


async def failed(mill: Any, text: bytes, **flags: Any) -> tuple[LineError, ...]:
    batch = await mill.batch_of(text)
    assert await intake(mill, **flags).turn() == 0
    batch = await mill.now(batch)
    assert batch.status is Status.FAILED
    assert await index_keys(mill, batch) == []
    return batch.errors


async def index_keys(mill: Any, batch: Batch) -> list[str]:
    return [key async for key in mill.blobs.keys_under(f"lines/{batch.id}") if "/report." not in key]


async def test_a_good_batch_goes_on_with_an_index_and_segments(mill: Any):
    text = b"\xef\xbb\xbf" + requests(5) + b"\r\n" + requests(12)[len(requests(5)) :].rstrip()
    batch = await mill.batch_of(text)
    count_before = mill.notifier.count
    assert await intake(mill).turn() == 0
    batch = await mill.now(batch)
    assert (batch.status, batch.total, batch.model) == (Status.IN_PROGRESS, 12, "m")
    assert batch.in_progress_at is not None
    assert [event.batch.status for event in mill.events if isinstance(event, BatchMoved)] == [
        Status.IN_PROGRESS
    ]
    assert mill.notifier.count > count_before
    leases = await mill.store.segments.lease(WorkerId("worker_1"), limit=9, ttl_s=5)
    assert [lease.segment.count for lease in leases] == [5, 5, 2]
    records = await mill.blobs.read(leases[0].index_blob_key, 0, 1 << 20)
    assert len(records) == 12 * INDEX_RECORD_BYTES
    cut = [slice_line(text[line.offset : line.offset + line.length_bytes]) for line in unpack_lines(records)]
    assert [line.custom_id_json for line in cut] == [b'"line-%d"' % number for number in range(12)]


async def test_without_a_batch_there_is_nothing_to_do_for_a_while(mill: Any):
    assert await intake(mill).turn() > 0


async def test_one_bad_line_fails_the_batch_and_every_bad_line_is_told(mill: Any):
    errors = await failed(mill, request("a") + b"bad\n\n" + request("a") + request("b", "other"))
    assert [(error.code, error.line) for error in errors] == [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 4),
        ("mismatched_model", 5),
    ]


async def test_a_file_of_many_chunks_is_read_as_one(mill: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake_module, "_CHUNK_BYTES", 100)
    batch = await mill.accepted(requests(40))
    assert batch.total == 40
    errors = await failed(mill, requests(40) + request("line-39") + b"bad")
    assert [(error.code, error.line) for error in errors] == [
        ("duplicate_custom_id", 41),
        ("invalid_json_line", 42),
    ]


async def test_an_empty_file(mill: Any):
    message = "The input file is empty. Please ensure that the batch contains at least one request."
    assert await failed(mill, b"\n\n") == (LineError("empty_file", message),)


async def test_limits_and_models_come_from_the_settings(mill: Any):
    flags = {"limits": {"listed_errors": 1}, "upstream": {"models": ["other"]}}
    errors = await failed(mill, requests(3), **flags)
    assert [error.code for error in errors] == ["model_not_found", "too_many_errors"]
    [error] = await failed(mill, requests(3), limits={"lines_per_file": 2})
    assert error.code == "too_many_tasks"


@pytest.mark.parametrize(
    ("quota", "code"),
    [({"enqueued_tokens": 10}, "batch_too_large"), ({"open_lines": 6}, "batch_too_large")],
)
async def test_a_batch_beyond_what_its_project_may_have_fails_and_leaves_no_index(
    mill: Any, quota: dict[str, int], code: str
):
    [error] = await failed(mill, requests(7), quota=quota)
    assert error.code == code


async def test_a_file_over_the_limit_is_not_read(mill: Any):
    [error] = await failed(mill, requests(9), limits={"input_file_bytes": 100})
    assert (
        error.message
        == "The batch input file is larger than the 100 maximum. Please try again with a smaller batch."
    )


CANNOT_FIND = LineError(
    "invalid_request", "Cannot find file file-1, or project default does not have access to it.", "file_id"
)


async def test_an_input_file_that_was_not_found(mill: Any):
    batch = await mill.batch_of(b"")
    await mill.blobs.delete(batch.input_blob_key)
    await intake(mill).turn()
    assert (await mill.now(batch)).errors == (CANNOT_FIND,)


async def batch_without_bytes(mill: Any) -> Batch:
    made = await mill.batch_of(b"", status=Status.FAILED, failed_at=int(time.time()))
    fields = {
        name: getattr(made, name) for name in ("project_id", "endpoint", "input_file_id", "completion_window")
    }
    fields |= {"created_at": made.created_at, "expires_at": made.expires_at}
    return await mill.store.batches.create(
        Batch(id=type(made.id)(f"{made.id}x"), input_blob_key="", **fields)
    )


async def test_an_input_file_unknown_at_creation(mill: Any):
    batch = await batch_without_bytes(mill)
    await intake(mill).turn()
    assert (await mill.now(batch)).errors == (CANNOT_FIND,)


async def test_an_input_file_of_another_purpose(mill: Any):
    now = int(time.time())
    await mill.store.files.add(
        File(FileId("file-1"), PROJECT, Purpose.VISION, "a.png", 1, now, None, "files/1")
    )
    batch = await batch_without_bytes(mill)
    await intake(mill).turn()
    [error] = (await mill.now(batch)).errors
    assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)
    assert "purpose 'vision'" in error.message


async def test_a_file_deleted_after_creation_is_still_read(mill: Any):
    batch = await mill.batch_of(requests(2))
    now = int(time.time())
    key = batch.input_blob_key
    await mill.store.files.add(File(FileId("file-1"), PROJECT, Purpose.BATCH, "a.jsonl", 1, now, None, key))
    await mill.store.files.delete(PROJECT, FileId("file-1"))
    await intake(mill).turn()
    assert (await mill.now(batch)).status is Status.IN_PROGRESS


async def test_a_batch_cancelled_while_it_is_read_is_let_go(mill: Any):
    batch = await mill.batch_of(requests(5))
    blobs = SlowBlobs(mill.blobs)
    turn = asyncio.create_task(intake(mill, blobs=blobs).turn())
    await blobs.reading.wait()
    await mill.cancel(batch)
    blobs.go_on.set()
    assert await turn == 0
    assert (await mill.now(batch)).status is Status.CANCELLING
    assert await index_keys(mill, batch) == []
    assert not [event for event in mill.events if isinstance(event, BatchMoved)]


async def test_who_lost_the_duty_neither_accepts_nor_disturbs_who_took_it(mill: Any):
    batch = await mill.batch_of(requests(5))
    blobs = SlowBlobs(mill.blobs)
    late = asyncio.create_task(intake(mill, blobs=blobs, name="intake_late").turn())
    await blobs.reading.wait()
    await mill.store.leases.release_all()  # as if the late one's duty had lapsed
    assert await intake(mill, name="intake_2").turn() == 0
    blobs.go_on.set()
    await late
    batch = await mill.now(batch)
    assert batch.status is Status.IN_PROGRESS
    assert await index_keys(mill, batch) == [f"lines/{batch.id}/2"]
    assert len([event for event in mill.events if isinstance(event, BatchMoved)]) == 1


async def test_a_duty_is_kept_while_a_long_file_is_read(mill: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake_module, "_CHUNK_BYTES", 1_000)
    begun = asyncio.Event()

    class Trickle(SlowBlobs):
        async def read(self, key: str, start: int, length_bytes: int) -> bytes:
            begun.set()
            await asyncio.sleep(0.3)  # in all twice as long as the lease
            return await mill.blobs.read(key, start, length_bytes)

    batch = await mill.batch_of(requests(80))
    blobs = Trickle(mill.blobs)
    reading = asyncio.create_task(intake(mill, blobs=blobs, worker={"lease_ttl_s": 2.0}).turn())
    await begun.wait()
    while not reading.done():
        assert (
            await mill.store.batch_leases.lease((Status.VALIDATING,), WorkerId("intake_2"), ttl_s=5) is None
        )
        await asyncio.wait([reading], timeout=0.05)
    assert await reading == 0
    assert (await mill.now(batch)).total == 80


async def test_an_intake_that_is_stopped_gives_the_batch_back_at_once(mill: Any):
    batch = await mill.batch_of(requests(5))
    blobs = SlowBlobs(mill.blobs)
    stopped = asyncio.create_task(intake(mill, blobs=blobs).turn())
    await blobs.reading.wait()
    stopped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopped
    assert await mill.blobs.sweep_unfinished() == 0
    assert await intake(mill, name="intake_2").turn() == 0
    assert (await mill.now(batch)).status is Status.IN_PROGRESS


async def test_what_a_dead_intake_left_is_swept_by_the_next(mill: Any):
    batch = await mill.batch_of(requests(5))
    duty = await mill.store.batch_leases.lease((Status.VALIDATING,), WorkerId("intake_dead"), ttl_s=5)
    assert duty is not None
    writer = await mill.blobs.open_writer(f"lines/{batch.id}/{duty.token}")
    await writer.write(b"half an index")
    await writer.commit()
    await mill.store.leases.release_all()
    await intake(mill).turn()
    assert (await mill.now(batch)).status is Status.IN_PROGRESS
    assert await index_keys(mill, batch) == [f"lines/{batch.id}/2"]


async def test_without_room_for_the_index_the_batch_waits(folder_mill: Any, tmp_path: Path):
    mill = folder_mill
    batch = await mill.batch_of(requests(5))
    with pytest.raises(StorageFullError):
        await intake(mill, blobs=FolderBlobs(tmp_path, watermark_bytes=1 << 60)).turn()
    assert (await mill.now(batch)).status is Status.VALIDATING
    assert await intake(mill, name="intake_2").turn() == 0
    assert (await mill.now(batch)).status is Status.IN_PROGRESS
