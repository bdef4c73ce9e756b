"""A data folder of a killed server, made once and copied for each test, and the roles to continue it."""

import asyncio
import hashlib
import json
import secrets
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nightmill.admin.check import Checked, Depth, check, check_and_repair
from nightmill.blobs import Piece
from nightmill.blobs.pieces import dump_pieces
from nightmill.core.batch import Batch
from nightmill.core.file import File, Purpose, Upload, UploadPart
from nightmill.core.outcome import Answered, Outcome
from nightmill.ids import FileId, PartId, ProjectId, UploadId, new_batch_id, new_file_id
from nightmill.roles.loop import Notifier, Role, keep_turning
from nightmill.runtime.components import Components, open_components
from nightmill.settings import Settings, UpstreamSettings, load
from nightmill.store.migrate import migrate
from nightmill.upstream.registry import UpstreamRegistry, start_upstream

PROJECT = ProjectId("default")
ENDPOINT = "/v1/chat/completions"
LINES = 40
LINES_PER_SEGMENT = 5
ANSWERED_BEFORE = 22


def request_lines(count: int) -> bytes:
    rows = (
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": ENDPOINT,
            "body": {"model": "m", "messages": [{"role": "user", "content": f"line-{number}"}]},
        }
        for number in range(count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@dataclass
class Upstream:
    """An upstream that counts the requests for each line; after `most` answers further requests hang."""

    most: int = 1 << 30
    asked: Counter[str] = field(default_factory=Counter)
    answered: int = 0

    async def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Outcome:  # noqa: ARG002 - the port asks for it
        if self.answered >= self.most:
            await asyncio.Event().wait()
        self.answered += 1
        content = json.loads(body)["messages"][0]["content"]
        self.asked[content] += 1
        text = f"{content} {'x' * (self.answered % 7)}"
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return Answered(
            200, json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()
        )

    async def models(self) -> bytes | None:
        return None

    async def close(self) -> None:
        return


@dataclass
class DataFolder:
    """The data folder of a server that is not running."""

    path: Path

    @property
    def settings(self) -> Settings:
        flags = {
            "folder": self.path,
            "worker": {"lines_per_segment": LINES_PER_SEGMENT, "beat_s": 0.02, "commit_interval_s": 0.002},
            "retention": {"sweep_s": 0.02, "free_bytes": 0},
        }
        return load(flags=flags, environment={})

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    def check(self, *, depth: Depth = Depth.USUAL, **more: Any) -> Checked:
        return check(self.path, self.settings.store_url, depth=depth, **more)

    def repair(self, *, depth: Depth = Depth.USUAL) -> Checked:
        return check_and_repair(self.path, self.settings.store_url, depth=depth)

    @contextmanager
    def rows(self) -> Iterator[sqlite3.Connection]:
        """A connection to the SQLite database, to read rows or to damage them."""
        connection = sqlite3.connect(self.path / "nightmill.sqlite")
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.rows() as connection:
            return connection.execute(query, values).fetchall()

    def parts(self) -> list[Path]:
        return sorted((self.blobs / "parts").glob("*/*.part"))

    @asynccontextmanager
    async def open_components_of_folder(self) -> AsyncIterator[Components]:
        self.path.mkdir(exist_ok=True)
        await migrate(self.settings.store_url)
        async with open_components(self.settings, emit=lambda _: None, notifier=Notifier()) as components:
            yield components

    def new_upstream(self) -> Upstream:
        return Upstream()

    async def run_without_finalizer(
        self, upstream: Upstream, until: Callable[[Components], Awaitable[bool]]
    ) -> None:
        await self._run(
            upstream, until, roles=lambda components: (components.intake(), components.maintenance())
        )

    def run(
        self, upstream: Upstream, *, until: Callable[[Components], Awaitable[bool]] | None = None
    ) -> None:
        """Runs the roles of a server until all batches have ended or `until` is true; then cancels them."""
        asyncio.run(self._run(upstream, until or _all_ended))

    async def _run(
        self,
        upstream: Upstream,
        until: Callable[[Components], Awaitable[bool]],
        roles: Callable[[Components], tuple[Role, ...]] = lambda components: (
            components.intake(),
            components.finalizer(),
            components.maintenance(),
        ),
    ) -> None:
        async with self.open_components_of_folder() as components:
            await components.store.leases.release_all()
            stop = asyncio.Event()
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                runtime = start_upstream(
                    upstream,
                    settings=UpstreamSettings(concurrency=4),
                    worker=components.settings.worker,
                    shared_name="upstream",
                )
                worker = components.worker(UpstreamRegistry(runtime))
                tasks = [group.create_task(worker.run(stop, grace_s=lambda: 0.0))]
                for role in roles(components):
                    turning = keep_turning(
                        role,
                        notifier=components.notifier,
                        stop=stop,
                        emit=components.emit,
                        random=lambda: 0.5,
                    )
                    tasks.append(group.create_task(turning))
                while not await until(components):
                    await components.notifier.wait(since=components.notifier.count, timeout_s=0.01)
                for task in tasks:
                    task.cancel()

    def outputs(self, batch_id: str) -> list[dict[str, Any]]:
        """Every line of the output and error file of the batch; checks the file sizes in the database."""
        found: list[dict[str, Any]] = []
        ids = self.ask("SELECT output_file_id, error_file_id FROM batch WHERE id = ?", batch_id)[0]
        for file_id in filter(None, ids):
            key, size_bytes = self.ask("SELECT blob_key, size_bytes FROM file WHERE id = ?", file_id)[0]
            text = (self.blobs / key).read_bytes()
            assert len(text) == size_bytes
            found += [json.loads(line) for line in text.split(b"\n")[:-1]]
        return found

    def batch_ids(self) -> list[str]:
        return [batch_id for (batch_id,) in self.ask("SELECT id FROM batch ORDER BY sequence")]

    def finish_without_sweeping(self) -> None:
        """Runs until all batches have ended; used while a lock on the folder prevents deletions."""
        self.run(Upstream())

    def run_to_successful_end(self) -> Upstream:
        """Runs until all batches have ended; checks that each has every line once, with a 2xx answer."""
        upstream = Upstream()

        async def is_swept(components: Components) -> bool:
            return await _all_ended(components) and not await components.parts.batches()

        self.run(upstream, until=is_swept)
        for batch_id, status, total, completed in self.ask("SELECT id, status, total, completed FROM batch"):
            assert status == "completed"
            assert total == completed
            custom_ids = Counter(row["custom_id"] for row in self.outputs(batch_id))
            assert custom_ids == Counter(f"line-{number}" for number in range(total))
        checked = self.check(depth=Depth.DEEP, clock=lambda: time.time() + 7_200)
        assert checked.found == ()
        return upstream


async def _all_ended(components: Components) -> bool:
    batches = (await components.store.batches.list(PROJECT, limit=100)).items
    return all(batch.status.is_terminal for batch in batches)


async def add_batch(components: Components, count: int = LINES, **fields: Any) -> Batch:
    """Adds an uploaded file and a batch of it."""
    file_id = new_file_id(secrets.token_bytes(16))
    await put(components, f"files/{file_id}", request_lines(count))
    now = int(time.time())
    size_bytes = len(request_lines(count))
    await components.store.files.add(
        File(file_id, PROJECT, Purpose.BATCH, "in.jsonl", size_bytes, now, now + 86_400, f"files/{file_id}")
    )
    batch = Batch(
        id=new_batch_id(secrets.token_bytes(16)),
        project_id=PROJECT,
        endpoint=ENDPOINT,
        input_file_id=FileId(file_id),
        input_blob_key=f"files/{file_id}",
        completion_window="24h",
        created_at=now,
        expires_at=now + 3_600,
    )
    return await components.store.batches.create(batch, **fields)


async def put(components: Components, key: str, text: bytes) -> None:
    writer = await components.blobs.open_writer(key)
    await writer.write(text)
    await writer.commit()


async def add_upload(components: Components) -> None:
    """Adds an unfinished upload with one part."""
    now = int(time.time())
    upload_id = UploadId("upload_" + hashlib.sha256(secrets.token_bytes(8)).hexdigest()[:32])
    await components.store.uploads.add(
        Upload(upload_id, PROJECT, Purpose.BATCH, "in.jsonl", "text/plain", 10, now, now + 3_600)
    )
    key = f"uploads/{upload_id}/part_1"
    await put(components, key, b"12345")
    assert await components.store.uploads.add_part(UploadPart(PartId("part_1"), upload_id, 5, now, key))


@pytest.fixture(scope="session")
def half_finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a killed server: one batch done, one half answered, and an unfinished upload."""
    folder = DataFolder(tmp_path_factory.mktemp("made") / "data")

    async def add_first_batch() -> None:
        async with folder.open_components_of_folder() as components:
            await add_batch(components, 12)

    async def add_second_batch_and_upload() -> None:
        async with folder.open_components_of_folder() as components:
            await add_batch(components)
            await add_upload(components)

    async def is_half_answered(components: Components) -> bool:
        newest = (await components.store.batches.list(PROJECT, limit=1)).items[0]
        return newest.tally.answered >= ANSWERED_BEFORE

    asyncio.run(add_first_batch())
    folder.run(Upstream())
    asyncio.run(add_second_batch_and_upload())
    folder.run(Upstream(ANSWERED_BEFORE), until=is_half_answered)
    # The next lease holder pins the parts of the killed server.
    folder.run(Upstream(0), until=_is_pinned)
    return folder.path


async def _is_pinned(components: Components) -> bool:
    newest = (await components.store.batches.list(PROJECT, limit=1)).items[0]
    results = await components.store.segments.results(newest.id)
    return sum(result.tally.answered for result in results if result.pinned) == ANSWERED_BEFORE


@pytest.fixture
def data(half_finished_folder: Path, tmp_path: Path) -> DataFolder:
    shutil.copytree(half_finished_folder, tmp_path / "data")
    return DataFolder(tmp_path / "data")


def cut_into_pieces(data: DataFolder, key: str, count: int = 3) -> list[str]:
    """Splits the blob into pieces, as a completed upload stores it; returns the keys of the pieces."""
    text = (data.blobs / key).read_bytes()
    length = -(-len(text) // count)
    keys = [f"uploads/of_{Path(key).name}/part_{number}" for number in range(count)]
    pieces = [
        Piece(piece, len(text[number * length : (number + 1) * length])) for number, piece in enumerate(keys)
    ]
    for number, piece in enumerate(keys):
        (data.blobs / piece).parent.mkdir(parents=True, exist_ok=True)
        (data.blobs / piece).write_bytes(text[number * length : (number + 1) * length])
    (data.blobs / f"{key}.pieces").write_bytes(dump_pieces(pieces))
    (data.blobs / key).unlink()
    with data.rows() as rows:
        rows.execute("UPDATE file SET blob_key = ? WHERE blob_key = ?", [f"{key}.pieces", key])
        rows.execute("UPDATE batch SET input_blob_key = ? WHERE input_blob_key = ?", [f"{key}.pieces", key])
        rows.executemany("INSERT INTO piece VALUES (?, ?)", [(piece, f"{key}.pieces") for piece in keys])
    return keys


@pytest.fixture
def unfinished(data: DataFolder) -> str:
    return data.ask("SELECT id FROM batch WHERE status = 'in_progress'")[0][0]
