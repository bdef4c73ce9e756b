"""A half-done batch is moved from a data folder to Postgres and S3 and completed there, every line once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import serving
from tests.fleet.conftest import begin, each_once, ended, until
from tests.slow import only_fleet

LINES = 200
# A folder that all machines share is the simpler case: make test-fleet.
KINDS = ("s3", "folder") if os.environ.get("TEST_FLEET") else ("s3",)


def _move(fleet, source: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "nightmill", "move", "--from", str(source)],
        env=os.environ | fleet.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def upload_in_pieces(client) -> tuple[str, bytes]:
    """Uploads a file whose parts are too large to be copied; returns its id and its bytes."""
    content = os.urandom(3 << 20)
    upload = client.uploads.create(
        bytes=len(content), filename="pieces", mime_type="text/plain", purpose="evals"
    )
    parts = [
        client.uploads.parts.create(upload.id, data=content[start:][: 2 << 20]) for start in (0, 2 << 20)
    ]
    done = client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    return done.file.id, content


@only_fleet
@pytest.mark.parametrize("kind", KINDS)
def test_a_half_done_batch_is_completed_after_the_move(fleet, upstream, s3, tmp_path, kind):
    source = upstream(delay_s=0.1)
    flags = ("--upstream", source.url, "--concurrency", "8")
    folder = tmp_path / "old"
    embedded = {"NIGHTMILL_STORE": f"sqlite:///{folder}/nightmill.sqlite", "NIGHTMILL_FOLDER": str(folder)}
    old = fleet.serve(*flags, environment=embedded)
    finished = ended(old.client(), begin(old.client(), 5, name="first").id)
    pieced, content = upload_in_pieces(old.client())
    # Of an event that never happens, so that nothing is sent.
    endpoint = old.client().webhooks.create(
        name="n", url="https://1.1.1.1/hook", event_types=["response.completed"]
    )
    made = begin(old.client(), LINES)
    until(lambda: old.client().batches.retrieve(made.id).request_counts.completed > 40)
    old.kill()
    asked = sum(source.requests().values())
    if kind == "s3":
        for name, value in s3.settings(s3.make_bucket()).items():
            fleet.environment[f"NIGHTMILL_BLOBS__{name.upper()}"] = str(value)
    moving = _move(fleet, folder)
    assert moving.returncode == 0, moving.stderr
    assert "answers" in moving.stdout
    assert not (folder / "nightmill.sqlite").exists()

    server = fleet.serve("--workers", "0")
    fleet.work(*flags)
    client = server.client()
    batch = ended(client, made.id)
    assert batch.status == "completed"
    each_once(client, batch, LINES)
    assert batch.created_at == made.created_at
    each_once(client, client.batches.retrieve(finished.id), 5, name="first")
    assert client.files.content(pieced).content == content
    assert [one.id for one in client.webhooks.list().data] == [endpoint.id]
    # Sent twice: at most the lines in flight at the kill, and the lines answered just before it.
    assert sum(source.requests().values()) <= LINES + 5 + 8 + 8
    assert sum(source.requests().values()) > asked
    later = begin(client, 3, name="later")  # new rows get higher numbers than the moved rows
    assert ended(client, later.id).status == "completed"
    assert [one.id for one in client.batches.list()] == [later.id, made.id, finished.id]


def test_a_store_that_is_not_empty_is_refused_and_the_folder_is_unchanged(migrated, tmp_path):
    with serving(tmp_path / "old", "--emulate") as old:
        ended(old.client(), begin(old.client(), 2).id)
    migrated.sql(
        "INSERT INTO api_key (id, project_id, name, digest, hint, created_at, scope)"
        " VALUES ('k', 'p', 'n', 'd', 'h', 1, 'project')"
    )
    refused = _move(migrated, old.folder)
    assert refused.returncode == 78
    assert (
        refused.stderr.splitlines()[-1]
        == "nightmill: the store to move to is not empty: it has rows of api_key"
    )
    assert (old.folder / "nightmill.sqlite").exists()
    assert migrated.sql("SELECT count(*) FROM batch") == "0"
    migrated.sql("DELETE FROM api_key")
    assert _move(migrated, old.folder).returncode == 0  # the same command resumes the move
    assert migrated.sql("SELECT count(*) FROM batch") == "1"


def test_a_folder_in_use_or_without_a_database_is_refused(migrated, tmp_path):
    with serving(tmp_path / "old", "--emulate") as old:
        refused = _move(migrated, old.folder)
        assert refused.returncode == 78
        assert "in use" in refused.stderr
    refused = _move(migrated, tmp_path / "nowhere")
    assert refused.returncode == 78
    assert "no nightmill database" in refused.stderr
