"""A real server as a process group with the emulator and the official client beside it."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from nightmill.blobs import FolderBlobs, PiecedBlobs
from nightmill.runtime.supervisor import free_port
from nightmill.settings import load
from nightmill.store import open_store
from nightmill.store.migrate import migrate
from nightmill_torture.load import Load
from nightmill_torture.member import Member, clean_environment, serve_command
from nightmill_torture.plan import Plan
from nightmill_torture.proof import Found, Proof, prove, repeated
from nightmill_torture.record import Record
from nightmill_torture.run import all_found, rows_of
from nightmill_torture.upstream import emulator
from nightmill_torture.watch import Watch
from tests.roles.conftest import Mill

LIMIT_S = 60.0
"""Generous because a shared machine may stall; every wait here should take less than a tenth of it."""
SMALL = {
    "NIGHTMILL_WORKER__LINES_PER_SEGMENT": "20",
    "NIGHTMILL_WORKER__BEAT_S": "0.1",
    "NIGHTMILL_RETENTION__SWEEP_S": "0.2",
    "NIGHTMILL_API__DRAIN_S": "10",
}


@dataclass
class Stand:
    """One data folder and the server on it."""

    folder: Path
    port: int
    url: str
    server: Member
    record: Record
    client: AsyncOpenAI
    watch: Watch
    load: Load
    proof: Proof = field(default_factory=Proof)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def serve(self, **environment: str) -> None:
        self.server.start(**environment)

    async def until_it_answers(self) -> float:
        """Seconds from the start of the server to its first answer."""
        async with asyncio.timeout(LIMIT_S):
            return await self.watch.answer_after(self.server.started) - self.server.started

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not holds():  # noqa: ASYNC110 - it looks at other processes
                await asyncio.sleep(0.005)

    async def found(self) -> dict[str, Found]:
        return await all_found(self.client, self.watch)

    async def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        return await rows_of(self.client, file_id)

    async def prove(self, *, settled: Mapping[str, str] | None = None) -> Proof:
        """Waits until every batch of the load has ended, and checks the answers."""
        async with asyncio.timeout(LIMIT_S):
            for batch in self.load.expected:
                await self.watch.end_of(batch.batch_id)
        self.record.take()
        prove(
            self.proof,
            self.load.expected,
            await self.found(),
            markers=self.record.markers,
            settled=settled or {},
        )
        return self.proof

    @property
    def repeated(self) -> int:
        self.record.take()
        return repeated(self.record.markers)


MakeStand = Callable[..., Awaitable[Stand]]


@pytest.fixture
async def stand_of(tmp_path: Path) -> AsyncIterator[MakeStand]:
    """Makes a `Stand` on which only the emulator and the poller run yet."""
    async with AsyncExitStack() as stack:

        async def make(
            *, workers: int = 1, concurrency: int = 8, delay_s: float = 0.02, **environment: str
        ) -> Stand:
            url, record = await stack.enter_async_context(emulator(tmp_path, delay_s=delay_s))
            port = free_port()
            folder = {"NIGHTMILL_FOLDER": str(tmp_path / "data")}
            server = Member(
                serve_command(port, upstream=url, workers=workers, concurrency=concurrency),
                environment=clean_environment(os.environ) | SMALL | folder | environment,
                log=tmp_path / "serve.log",
            )
            stack.push_async_callback(server.close)
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=30)
            stack.push_async_callback(client.close)
            proof = Proof()
            watch = Watch(client, proof)
            plan = Plan(folder=tmp_path, seed=secrets.randbits(30))
            load = Load(client, watch, plan)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            background = [
                group.create_task(record.keep_taking()),
                group.create_task(watch.keep_polling()),
            ]
            stack.callback(lambda: [task.cancel() for task in background])
            return Stand(tmp_path, port, url, server, record, client, watch, load, proof)

        yield make


@pytest.fixture
async def mill(tmp_path: Path) -> AsyncIterator[Mill]:
    """The roles without processes, over the data folder that a `Stand` would serve."""
    flags = {
        "folder": tmp_path / "data",
        "worker": {"lines_per_segment": 20, "beat_s": 0.1, "lease_ttl_s": 1.0},
        "retention": {"sweep_s": 0.05, "free_bytes": 0},
    }
    settings = load(flags=flags, environment={})
    settings.folder.mkdir()
    await migrate(settings.store_url)
    store = open_store(settings.store_url)
    root = settings.folder / "blobs"
    yield Mill(root, store, PiecedBlobs(FolderBlobs(root, watermark_bytes=0)), settings)
    await store.close()
