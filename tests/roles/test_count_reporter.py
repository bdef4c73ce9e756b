"""A process stores what it counts; see `roles.count_reporter`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nightmill.core.batch import Batch, Status
from nightmill.core.counts import ProcessCounts
from nightmill.errors import UnavailableError
from nightmill.ids import BatchId, FileId, ProjectId, WorkerId
from nightmill.roles.count_reporter import CountReporter, counting
from nightmill.store import Store, open_store
from nightmill.store.migrate import migrate
from nightmill.telemetry import BatchMoved, WritingResumed

WORKER = WorkerId("worker_1")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    url = f"sqlite:///{tmp_path / 'nightmill.sqlite'}"
    await migrate(url)
    store = open_store(url)
    yield store
    await store.close()


def batch(status: Status, **stamps: int) -> Batch:
    return Batch(
        id=BatchId("batch_1"),
        project_id=ProjectId("p"),
        endpoint="/v1/embeddings",
        input_file_id=FileId("file-1"),
        input_blob_key="files/1",
        completion_window="24h",
        created_at=100,
        expires_at=1_000,
        status=status,
        **stamps,
    )


def test_moves_of_batches_are_counted_and_every_event_is_passed_on():
    counts, seen = ProcessCounts(), []
    emit = counting(seen.append, counts)
    emit(BatchMoved(batch(Status.IN_PROGRESS, in_progress_at=103)))
    emit(BatchMoved(batch(Status.FAILED, failed_at=101)))
    emit(BatchMoved(batch(Status.COMPLETED, in_progress_at=103, finalizing_at=200, completed_at=210)))
    emit(BatchMoved(batch(Status.CANCELLED, cancelling_at=300, cancelled_at=420)))
    emit(BatchMoved(batch(Status.FINALIZING, in_progress_at=103, finalizing_at=200)))
    emit(WritingResumed())
    assert len(seen) == 6
    assert (sum(counts.intake.buckets), counts.intake.sum_s) == (2, 4.0)
    assert (sum(counts.finalizing.buckets), counts.finalizing.sum_s) == (2, 130.0)
    assert counts.ended == {"failed": 1, "completed": 1, "cancelled": 1}


async def test_sums_are_stored_only_when_they_have_changed_or_are_old(store, monkeypatch):
    counts, now, reports = ProcessCounts(), [0.0], []
    real = store.counts.report

    async def report(*arguments: object, **named: object) -> bool:
        reports.append(named["is_first"])
        return await real(*arguments, **named)

    monkeypatch.setattr(store.counts, "report", report)
    reporter = CountReporter(store, WORKER, counts, monotonic=lambda: now[0])
    for _ in range(3):
        await reporter.report()
    counts.note_intake(1.0)
    await reporter.report()
    await reporter.report()
    now[0] = 60.0
    await reporter.report()
    assert reports == [True, False, False]
    assert sum((await store.counts.total()).intake.buckets) == 1


async def test_counts_wait_while_the_store_is_away(store, monkeypatch):
    counts = ProcessCounts()
    reporter = CountReporter(store, WORKER, counts, monotonic=lambda: 0.0)
    counts.note_intake(1.0)

    async def away(*_: object, **__: object) -> bool:
        raise UnavailableError("away", retry_after_s=1)

    with monkeypatch.context() as patched:
        patched.setattr(store.counts, "report", away)
        with pytest.raises(UnavailableError):
            await reporter.report()
    counts.note_intake(1.0)
    await reporter.report()
    assert sum((await store.counts.total()).intake.buckets) == 2


async def test_a_process_that_was_taken_for_ended_is_not_counted_twice(store):
    counts = ProcessCounts()
    reporter = CountReporter(store, WORKER, counts, monotonic=lambda: 0.0)
    counts.note_intake(1.0)
    await reporter.report()
    await store.leases.release_of_worker(WORKER)
    counts.note_intake(1.0)
    await reporter.report()
    counts.note_intake(1.0)
    await reporter.report()
    assert sum((await store.counts.total()).intake.buckets) == 3
