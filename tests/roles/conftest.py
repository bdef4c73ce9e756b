"""Real store, blobs and parts, in a folder and in a bucket; the upstream is a function."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nightmill.blobs import Blobs, FolderBlobs
from nightmill.blobs.bucket import Bucket
from nightmill.blobs.connect import connect
from nightmill.blobs.objects import ObjectBlobs
from nightmill.core.batch import Batch, Event, Status
from nightmill.core.clocks import Clocks
from nightmill.core.outcome import Answered, Outcome
from nightmill.ids import FileId, ProjectId, WorkerId, new_batch_id
from nightmill.parts import FolderParts, Parts
from nightmill.parts.objects import ObjectParts
from nightmill.roles.finalizer import Finalizer
from nightmill.roles.intake import Intake
from nightmill.roles.join import Joiner
from nightmill.roles.loop import Notifier, keep_turning
from nightmill.roles.maintenance import Maintenance
from nightmill.roles.worker import Storage, Worker
from nightmill.runtime.components import finalizer_options, intake_options, maintenance_options
from nightmill.settings import DEFAULT_NAME, Settings, load
from nightmill.store import Store, open_store
from nightmill.store.migrate import migrate
from nightmill.upstream import Upstream
from nightmill.upstream.registry import UpstreamRegistry, start_upstream
from tests.fleet.rgw import RadosGateway
from tests.s3_server import S3Server

PROJECT = ProjectId("default")
ENDPOINT = "/v1/chat/completions"
LIMIT_S = 90.0
"""Generous because a shared machine may stall; no test measures it."""


def answer(text: str = "hello", **usage: int) -> Answered:
    body = {"choices": [{"message": {"content": text}}], "usage": usage or None}
    return Answered(200, json.dumps(body).encode())


def request_line(custom_id: str, **body: Any) -> bytes:
    message = {"role": "user", "content": custom_id}
    row = {
        "custom_id": custom_id,
        "method": "POST",
        "url": ENDPOINT,
        "body": {"model": "m", "messages": [message], **body},
    }
    return json.dumps(row).encode() + b"\n"


def request_lines(count: int) -> bytes:
    return b"".join(request_line(f"line-{number}") for number in range(count))


@dataclass
class Mill:
    """The roles of a server, driven by a test."""

    folder: Path
    store: Store
    blobs: Blobs
    settings: Settings
    bucket: Bucket | None = None
    clock: Callable[[], float] = time.time
    notifier: Notifier = field(default_factory=Notifier)
    events: list[Any] = field(default_factory=list)
    stacks: list[AsyncExitStack] = field(default_factory=list)
    opened: list[Parts] = field(default_factory=list)

    def parts(self) -> Parts:
        if self.bucket is None:
            parts = FolderParts(self.folder / "parts", commit_interval_s=0.002, buffer_bytes=1 << 20)
        else:
            parts = ObjectParts(
                self.bucket,
                interval_s=0.002,
                part_bytes=1 << 16,
                buffer_bytes=1 << 20,
                puts_at_once=4,
                retry_s=0.05,
            )
        self.opened.append(parts)
        return parts

    def worker(
        self,
        send: Callable[[str, bytes], Awaitable[Outcome]],
        *,
        parts: Parts | None = None,
        slots: int = 8,
        name: str = "worker_1",
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        store: Any = None,
    ) -> Worker:
        return self.sending(
            FunctionUpstream(send),
            parts=parts,
            slots=slots,
            name=name,
            clocks=Clocks(wall=clock or self.clock, monotonic=monotonic, random=lambda: 0.01),
            store=store,
        )

    def sending(
        self,
        *upstreams: Upstream,
        clocks: Clocks,
        parts: Parts | None = None,
        models: Sequence[str] = (),
        slots: int = 8,
        name: str = "worker_1",
        store: Any = None,
    ) -> Worker:
        """A worker that sends to clients; several are named "0", "1" and so on.

        Args:
            models: the only model of each client; without them each is sent every model.
        """
        return Worker(
            storage=Storage(store or self.store, self.blobs, parts or self.parts()),
            upstreams=UpstreamRegistry(
                *(
                    start_upstream(
                        upstream,
                        settings=self.settings.upstream.model_copy(
                            update={
                                "concurrency": slots,
                                "name": DEFAULT_NAME if len(upstreams) == 1 else str(number),
                                "models": (models[number],) if models else ("*",),
                            }
                        ),
                        worker=self.settings.worker,
                        shared_name=f"upstream {number}",
                        is_only=len(upstreams) == 1,
                    )
                    for number, upstream in enumerate(upstreams)
                )
            ),
            settings=self.settings.worker,
            worker_id=WorkerId(name),
            request_prefix="0" * 24,
            notifier=self.notifier,
            emit=self.events.append,
            clocks=clocks,
        )

    def finalizer(self) -> Finalizer:
        return Finalizer(
            store=self.store,
            blobs=self.blobs,
            joiner=Joiner(store=self.store, blobs=self.blobs, parts=self.parts(), monotonic=time.monotonic),
            options=finalizer_options(self.settings),
            worker_id=WorkerId("finalizer_1"),
            notifier=self.notifier,
            emit=self.events.append,
            clocks=Clocks(wall=self.clock, monotonic=time.monotonic, random=lambda: 0.01),
        )

    def intake(self) -> Intake:
        return Intake(
            store=self.store,
            blobs=self.blobs,
            options=intake_options(self.settings, store=self.store),
            worker_id=WorkerId("intake_1"),
            notifier=self.notifier,
            emit=self.events.append,
            clock=self.clock,
        )

    def maintenance(self) -> Maintenance:
        return Maintenance(
            store=self.store,
            blobs=self.blobs,
            parts=self.parts(),
            options=maintenance_options(self.settings),
            notifier=self.notifier,
            emit=self.events.append,
            clocks=Clocks(wall=self.clock, monotonic=time.monotonic, random=lambda: 0.01),
        )

    async def batch_of(self, text: bytes, *, window_s: int = 3_600, **fields: Any) -> Batch:
        """A batch in `validating` whose input is `text`."""
        key = f"files/{secrets.token_hex(8)}"
        writer = await self.blobs.open_writer(key)
        await writer.write(text)
        await writer.commit()
        now = int(time.time())
        batch = Batch(
            id=new_batch_id(secrets.token_bytes(16)),
            project_id=PROJECT,
            endpoint=ENDPOINT,
            input_file_id=FileId("file-1"),
            input_blob_key=key,
            input_bytes=len(text),
            completion_window="24h",
            created_at=now,
            expires_at=now + window_s,
            **fields,
        )
        return await self.store.batches.create(batch)

    async def accepted(self, text: bytes, **fields: Any) -> Batch:
        """The batch once intake has accepted it."""
        batch = await self.batch_of(text, **fields)
        await self.intake().turn()
        batch = await self.now(batch)
        assert batch.status is Status.IN_PROGRESS
        return batch

    async def now(self, batch: Batch) -> Batch:
        found = await self.store.batches.get(PROJECT, batch.id)
        assert found is not None
        return found

    async def cancel(self, batch: Batch) -> Batch:
        batch = await self.now(batch)
        after = batch.after(Event.CANCEL_REQUESTED, now=time.time())
        assert await self.store.batches.move(after, expected=batch.status)
        self.notifier.notify()
        return after

    async def run(
        self, worker: Worker, *, until: Callable[[], Awaitable[bool]], timeout_s: float = LIMIT_S
    ) -> None:
        """Runs the worker, finalizer and warden until `until` says so."""
        stop = asyncio.Event()
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            group.create_task(worker.run(stop, grace_s=lambda: 0.0))
            for role in (self.finalizer(), self.maintenance()):
                group.create_task(
                    keep_turning(
                        role, notifier=self.notifier, stop=stop, emit=self.events.append, random=lambda: 0.5
                    )
                )
            while not await until():
                await self.notifier.wait(since=self.notifier.count, timeout_s=0.02)
            stop.set()
            self.notifier.notify()

    async def run_to_the_end(
        self, worker: Worker, *batches: Batch, timeout_s: float = LIMIT_S
    ) -> list[Batch]:
        async def all_ended() -> bool:
            return all([(await self.now(batch)).status.is_terminal for batch in batches])

        await self.run(worker, until=all_ended, timeout_s=timeout_s)
        return [await self.now(batch) for batch in batches]

    async def rows(self, file_id: FileId | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        file = await self.store.files.get(PROJECT, file_id)
        assert file is not None
        text = b"".join([chunk async for chunk in self.blobs.stream(file.blob_key)])
        assert len(text) == file.size_bytes
        assert text.endswith(b"\n")
        return [json.loads(row) for row in text.split(b"\n")[:-1]]


class FunctionUpstream:
    def __init__(self, send: Callable[[str, bytes], Awaitable[Outcome]]) -> None:
        self._send = send

    async def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Outcome:  # noqa: ARG002 - the port asks for it
        return await self._send(endpoint, body)

    async def models(self) -> bytes | None:
        return None

    async def close(self) -> None:
        return


@asynccontextmanager
async def _mill(folder: Path, **sections: Any) -> AsyncGenerator[Mill]:
    flags: dict[str, Any] = {
        "folder": folder,
        "worker": {"lines_per_segment": 5, "beat_s": 0.05, "lease_ttl_s": 5.0, "cancel_grace_s": 0.2},
        "retention": {"sweep_s": 0.05, "free_bytes": 0},
        **sections,
    }
    settings = load(flags=flags, environment={})
    await migrate(settings.store_url)
    store = open_store(settings.store_url)
    mill = Mill(folder, store, FolderBlobs(folder, watermark_bytes=0), settings)
    if settings.blobs.url is not None:
        mill.bucket = connect(settings.blobs)
        mill.blobs = ObjectBlobs(mill.bucket, part_bytes=5 << 20)
    yield mill
    for parts in mill.opened:
        await parts.close()
    await store.close()


@pytest.fixture
async def folder_mill(tmp_path: Path) -> AsyncIterator[Mill]:
    async with _mill(tmp_path) as mill:
        yield mill


@pytest.fixture
def bucket_name(s3: S3Server) -> str:
    return s3.make_bucket()


@pytest.fixture
async def s3_mill(tmp_path: Path, s3: S3Server, bucket_name: str) -> AsyncIterator[Mill]:
    async with _mill(tmp_path, blobs=s3.settings(bucket_name)) as mill:
        yield mill


@pytest.fixture
async def rgw_mill(tmp_path: Path, rgw: RadosGateway) -> AsyncIterator[Mill]:
    async with _mill(tmp_path, blobs=rgw.settings()) as mill:
        yield mill


@pytest.fixture(params=["folder_mill", "s3_mill", *(["rgw_mill"] if os.environ.get("TEST_FLEET") else [])])
def mill(request: pytest.FixtureRequest) -> Mill:
    return request.getfixturevalue(request.param)
