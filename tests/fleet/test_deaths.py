"""The crash tests over Postgres and S3: roles killed at every failpoint, and runs without a fence."""

import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightmill.blobs.connect import connect
from nightmill.core.batch import Batch, Status
from nightmill.failpoints import Failpoint
from nightmill.runtime.storage import open_storage
from nightmill.settings import load
from nightmill.store import open_store
from nightmill.store.migrate import migrate
from nightmill_torture.proof import NOT_ENDED, SETTLED_CHANGED
from tests.crash.dying import Die, deaths, turn
from tests.crash.test_deaths import FINALIZER, INTAKE, LINES, settled
from tests.crash.test_fence import ignoring_tokens, late_writer_after_takeover
from tests.fleet.conftest import Postgres
from tests.roles.conftest import ENDPOINT, Mill, request_lines
from tests.s3_server import S3Server

BLOB: tuple[Failpoint, ...] = ("blob.opened", "blob.written", "blob.named")


@pytest.fixture(scope="module")
def die() -> Iterator[Die]:
    with deaths() as die:
        yield die


@pytest.fixture
async def mill(postgres: Postgres, s3: S3Server, tmp_path: Path) -> AsyncIterator[Mill]:
    """The roles over a fresh database and a fresh bucket."""
    flags = {
        "folder": tmp_path / "data",
        "store": postgres.fresh(),
        "worker": {"lines_per_segment": 20, "beat_s": 0.1, "lease_ttl_s": 1.0},
        "retention": {"sweep_s": 0.05},
        "blobs": {**s3.settings(s3.make_bucket()), "part_interval_s": 0.0},
    }
    settings = load(flags=flags, environment={})
    await migrate(settings.store_url)
    store = open_store(settings.store_url)
    blobs, parts = open_storage(settings)
    await parts.close()
    made = Mill(settings.folder, store, blobs, settings, bucket=connect(settings.blobs))
    yield made
    for opened in made.opened:
        await opened.close()
    await blobs.close()
    await store.close()


async def rows_of(mill: Mill, batch: Batch) -> list[list[tuple[str, Any]]]:
    """The rows of the output file and the error file: custom_id, and the answer of the upstream."""
    files = [await mill.rows(file_id) for file_id in (batch.output_file_id, batch.error_file_id)]
    return [[(row["custom_id"], json.dumps(row["response"]["body"])) for row in rows] for rows in files]


async def test_after_a_finalizer_is_killed_at_any_failpoint_the_next_one_writes_the_same_files(
    mill: Mill, die: Die
) -> None:
    right: list[list[tuple[str, Any]]] = []
    for point, nth in [
        *((point, 1) for point in FINALIZER),
        *((point, nth) for point in BLOB for nth in (1, 2)),
    ]:
        batch = await settled(mill)
        assert die("finalizer", mill.settings, point, nth) == -signal.SIGKILL, point
        at_death = await mill.now(batch)
        assert at_death.status.is_terminal == (point == "finalizer.published"), point
        await mill.store.leases.release_all()
        await turn("finalizer", mill.settings)
        found = await mill.now(batch)
        assert found.status is Status.COMPLETED, point
        assert (found.tally.completed, found.tally.failed) == (LINES - 7, 7), point
        assert at_death.finalizing_at in (None, found.finalizing_at), point
        rows = await rows_of(mill, found)
        right = right or rows
        assert rows == right, point
    assert sorted(custom_id for rows in right for custom_id, _ in rows) == sorted(
        f"line-{number}" for number in range(LINES)
    )


async def test_after_an_intake_is_killed_at_any_failpoint_the_next_one_accepts_every_line_once(
    mill: Mill, die: Die
) -> None:
    for point in (*INTAKE, *BLOB):
        batch = await mill.batch_of(request_lines(LINES))
        assert die("intake", mill.settings, point, 1) == -signal.SIGKILL, point
        await mill.store.leases.release_all()
        await turn("intake", mill.settings)
        found = await mill.now(batch)
        assert (found.status, found.total, found.endpoint) == (Status.IN_PROGRESS, LINES, ENDPOINT), point
        segments = [result.segment for result in await mill.store.segments.results(batch.id)]
        assert [(one.first, one.count) for one in segments] == [(0, 20), (20, 20), (40, 20), (60, 10)], point


async def test_a_worker_that_writes_after_a_takeover_adds_nothing(mill: Mill) -> None:
    proof = await late_writer_after_takeover(mill, store=mill.store, reader=mill.parts())
    assert proof.is_kept, proof.examples


async def test_the_proof_fails_when_tokens_are_ignored(mill: Mill) -> None:
    store = ignoring_tokens(mill.store)
    proof = await late_writer_after_takeover(mill, store=store, reader=mill.parts())
    assert proof.breaches[NOT_ENDED] or proof.breaches[SETTLED_CHANGED]
