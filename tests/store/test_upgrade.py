"""An upgrade to the next release, with made-up steps: which step runs when, and what is refused meanwhile."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, closing, contextmanager

import pytest

from nightmill.errors import SetupError
from nightmill.store import migrate, open_store, steps
from nightmill.store.readiness import make_ready
from nightmill.store.sqlite import sqlite_library
from nightmill.store.steps import SCHEMA_VERSION, Stage
from tests.store import next_release
from tests.store.next_release import AFTER, BEFORE, NEXT_STEPS

_FILE = (
    "INSERT INTO file (id, project_id, purpose, filename, size_bytes, created_at, blob_key)"
    " VALUES ('{id}', 'p', 'batch', 'f', 10, 1, '{id}')"
)


@pytest.fixture
async def path(tmp_path):
    """A database of the present release with one row."""
    path = tmp_path / "nightmill.sqlite"
    await migrate(f"sqlite:///{path}")
    add_row(path, "file-1")
    return path


@pytest.fixture
def next_version(tmp_path):
    """A context in which this process is one of the next release."""
    module = sys.modules["nightmill.store.migrate"]
    scripts = tmp_path / "migrations"
    shutil.copytree(module._SCRIPTS, scripts)
    next_release.add_scripts(scripts)

    @contextmanager
    def running() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_SCRIPTS", scripts)
            patch.setattr(steps, "STEPS", NEXT_STEPS)
            patch.setattr(steps, "SCHEMA_VERSION", AFTER)
            patch.setattr(steps, "NEEDED_VERSION", BEFORE)
            yield

    return running


def add_row(path, file_id: str) -> None:
    run(path, _FILE.format(id=file_id))


def run(path, statement: str) -> list:
    with closing(sqlite_library().module.connect(str(path))) as connection:
        rows = connection.execute(statement).fetchall()
        connection.commit()
        return rows


@asynccontextmanager
async def opened(path):
    store = open_store(f"sqlite:///{path}")
    try:
        yield store
    finally:
        await store.close()


async def test_without_a_stage_every_step_runs_and_rows_are_kept(path, next_version):
    with next_version():
        assert await migrate(f"sqlite:///{path}") == AFTER
        async with opened(path) as store:
            await store.ping()
            (entry,) = (await store.audit.list()).items
    assert run(path, "SELECT id, note FROM file") == [("file-1", "filled in")]
    assert (entry.action, entry.subject_id, entry.detail) == (
        "schema.migrated",
        AFTER,
        f"from {SCHEMA_VERSION}",
    )


async def test_the_after_step_waits_for_the_before_step_and_sees_rows_written_meanwhile(path, next_version):
    url = f"sqlite:///{path}"
    with next_version():
        with pytest.raises(SetupError, match="run 'nightmill migrate --before'"):
            await migrate(url, stage=Stage.AFTER)
        assert await migrate(url, stage=Stage.BEFORE) == BEFORE
        async with opened(path) as store:
            await store.ping()
        assert run(path, "SELECT note FROM file") == [(None,)]
        add_row(path, "file-2")
        assert await migrate(url, stage=Stage.AFTER) == AFTER
        assert await migrate(url, stage=Stage.AFTER) == AFTER
    assert run(path, "SELECT note FROM file") == [("filled in",), ("filled in",)]


async def test_the_next_release_does_not_start_on_the_present_schema(path, next_version):
    with next_version(), pytest.raises(SetupError, match="run 'nightmill migrate --before'") as caught:
        await make_ready(f"sqlite:///{path}", clock=time.time, busy_timeout_s=1)
    assert "\n" not in str(caught.value)


async def test_the_present_release_keeps_working_after_the_before_step_but_not_after_the_after_step(
    path, next_version
):
    url = f"sqlite:///{path}"
    with next_version():
        await migrate(url, stage=Stage.BEFORE)
    assert await migrate(url) == BEFORE
    await make_ready(url, clock=time.time, busy_timeout_s=1)
    async with opened(path) as store:
        await store.ping()
    with next_version():
        await migrate(url, stage=Stage.AFTER)
    with pytest.raises(SetupError, match=f"{AFTER} is newer"):
        await migrate(url)
    with pytest.raises(SetupError, match=f"{AFTER} is newer"):
        await make_ready(url, clock=time.time, busy_timeout_s=1)
