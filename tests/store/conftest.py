"""A store of each kind over a fresh database, a clock that a test moves, and makers of rows."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nightmill.batch import Batch, Event, Status, Tally, Usage
from nightmill.file import File, Purpose, Upload, UploadPart
from nightmill.ids import BatchId, FileId, PartId, ProjectId, UploadId, WorkerId
from nightmill.segment import Lease, PinnedPart, Report, cut_segments
from nightmill.store import Duty, SqlStore, migrate, open_store

KINDS = ("sqlite",)
_PROJECT, _OTHER_PROJECT = ProjectId("proj_a"), ProjectId("proj_b")
_WORKER, _OTHER_WORKER = WorkerId("worker-1"), WorkerId("worker-2")


@dataclass
class Clock:
    now: float = 1_760_000_000.0

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class World:
    """One database, the stores over it, and rows in the making."""

    url: str
    stack: AsyncExitStack
    clock: Clock = field(default_factory=Clock)
    numbers: "count[int]" = field(default_factory=lambda: count(1))
    project: ProjectId = _PROJECT
    other_project: ProjectId = _OTHER_PROJECT
    worker: WorkerId = _WORKER
    other_worker: WorkerId = _OTHER_WORKER
    ttl_s: float = 30.0

    def open(self, *, busy_timeout_s: float = 10.0) -> SqlStore:
        """One more store over the same database, as another process would have it."""
        store = open_store(self.url, clock=self.clock, busy_timeout_s=busy_timeout_s)
        self.stack.push_async_callback(store.close)
        return store

    # --- rows ---

    def file(self, **changes: Any) -> File:
        number = next(self.numbers)
        made = File(
            id=FileId(f"file-{number}"),
            project_id=self.project,
            purpose=Purpose.BATCH,
            filename="in.jsonl",
            size_bytes=10,
            created_at=int(self.clock()),
            expires_at=None,
            blob_key=f"files/{number}",
        )
        return replace(made, **changes)

    def upload(self, **changes: Any) -> Upload:
        made = Upload(
            id=UploadId(f"upload_{next(self.numbers)}"),
            project_id=self.project,
            purpose=Purpose.BATCH,
            filename="in.jsonl",
            mime_type="application/jsonl",
            size_bytes=10,
            created_at=int(self.clock()),
            expires_at=int(self.clock()) + 3_600,
        )
        return replace(made, **changes)

    def upload_part(self, upload: Upload, **changes: Any) -> UploadPart:
        number = next(self.numbers)
        key = f"uploads/{number}"
        return replace(UploadPart(PartId(f"part_{number}"), upload.id, 5, int(self.clock()), key), **changes)

    def batch(self, **changes: Any) -> Batch:
        made = Batch(
            id=BatchId(f"batch_{next(self.numbers)}"),
            project_id=self.project,
            endpoint="/v1/chat/completions",
            input_file_id=FileId("file-in"),
            input_blob_key="files/in",
            completion_window="24h",
            created_at=int(self.clock()),
            expires_at=int(self.clock()) + 86_400,
        )
        return replace(made, **changes)

    @staticmethod
    def tally(completed: int, failed: int = 0) -> Tally:
        usage = Usage(7 * completed, completed, 3 * completed, completed, 10 * completed)
        return Tally(completed, failed, usage)

    @staticmethod
    def report(lease: Lease, answered: Tally) -> Report:
        return Report(lease.segment.batch_id, lease.segment.number, lease.token, answered)

    @staticmethod
    def part(lease: Lease, length_bytes: int = 100) -> PinnedPart:
        segment = lease.segment
        return PinnedPart(f"parts/{segment.batch_id}/{segment.number}/{lease.token}", length_bytes)

    # --- what roles do ---

    async def duty(self, store: SqlStore, worker: WorkerId | None = None) -> Duty:
        duty = await store.lease_duty((Status.VALIDATING,), worker or self.worker, ttl_s=self.ttl_s)
        assert duty is not None
        return duty

    async def last_duty(self, store: SqlStore, worker: WorkerId | None = None) -> Duty | None:
        statuses = (Status.FINALIZING, Status.CANCELLING)
        return await store.lease_duty(statuses, worker or self.worker, ttl_s=self.ttl_s)

    async def accept(
        self, store: SqlStore, duty: Duty, *, total: int = 10, lines_per_segment: int = 5
    ) -> bool:
        after = replace(duty.batch.after(Event.ACCEPTED, now=self.clock()), model="tiny", total=total)
        segments = list(cut_segments(duty.batch.id, total=total, lines_per_segment=lines_per_segment))
        key = f"indexes/{duty.batch.id}"
        return await store.accept_batch(duty, after, index_blob_key=key, segments=segments)

    async def start(
        self, store: SqlStore, *, total: int = 10, lines_per_segment: int = 5, **changes: Any
    ) -> Batch:
        """A batch that is in progress."""
        made = await store.create_batch(self.batch(**changes))
        duty = await self.duty(store)
        assert duty.batch == made
        assert await self.accept(store, duty, total=total, lines_per_segment=lines_per_segment)
        return await self.again(store, made)

    async def lease(
        self, store: SqlStore, *, limit: int = 100, worker: WorkerId | None = None
    ) -> Sequence[Lease]:
        return await store.lease_segments(worker or self.worker, limit=limit, ttl_s=self.ttl_s)

    async def complete(self, store: SqlStore, leases: Sequence[Lease]) -> None:
        for lease in leases:
            report = self.report(lease, self.tally(lease.segment.count))
            assert await store.complete_segment(lease, report, [self.part(lease)])

    async def happen(self, store: SqlStore, batch: Batch, event: Event) -> Batch:
        """Moves the batch as a role would, and reads it again."""
        before = await self.again(store, batch)
        after = before.after(event, now=self.clock())
        assert await store.move_batch(after, expected=before.status)
        return await self.again(store, batch)

    async def again(self, store: SqlStore, batch: Batch) -> Batch:
        found = await store.batch(batch.project_id, batch.id)
        assert found is not None
        return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy: migrating costs more than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "nightmill.sqlite"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
async def world(kind: str, migrated: Path, tmp_path: Path) -> AsyncIterator[World]:
    shutil.copy(migrated, tmp_path)
    url = f"sqlite:///{tmp_path / migrated.name}"
    async with AsyncExitStack() as stack:
        yield World(url, stack)


@pytest.fixture
def store(world: World) -> SqlStore:
    return world.open()


@pytest.fixture
def other_store(world: World) -> SqlStore:
    """A second process on the same database."""
    return world.open()
