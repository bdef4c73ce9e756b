"""Postgres is lost during a batch, and its replica is promoted."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.fleet.conftest import Postgres, begin, each_once, ended, until
from tests.slow import only_fleet

pytestmark = only_fleet
LINES = 300


@pytest.fixture
def pair() -> Iterator[tuple[Postgres, Postgres]]:
    """A primary and a synchronous replica: the replica has every commit before the commit is confirmed."""
    folders = [Path(tempfile.mkdtemp(prefix="nightmill-fleet-")) for _ in range(2)]
    servers: list[Postgres] = []
    try:
        for folder in folders:
            folder.chmod(0o755)
            server = Postgres(folder, copy_of=servers[0] if servers else None)
            servers.append(server)
            server.start()
        first, second = servers
        first.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'")
        first.sql("postgres", "SELECT pg_reload_conf()")
        until(lambda: first.sql("postgres", "SELECT sync_state FROM pg_stat_replication") == "sync")
        yield first, second
    finally:
        for server in servers:
            server.end()
        for folder in folders:
            shutil.rmtree(folder)


def test_a_batch_continues_on_the_replica_and_no_line_is_sent_twice(fleet, upstream, pair, links):
    first, second = pair
    now = first
    first.sql("postgres", "CREATE DATABASE nightmill")
    port = links.open(lambda: now.port)
    fleet.environment["NIGHTMILL_STORE"] = f"postgresql://postgres@127.0.0.1:{port}/nightmill"
    source = upstream(delay_s=0.1)
    server = fleet.serve("--workers", "0")
    worker_hosts = [fleet.work("--upstream", source.url, "--concurrency", "8") for _ in range(2)]
    client = server.client()
    made = begin(client, LINES)
    until(lambda: len(source.requests()) > 30)
    first.stop()
    with pytest.raises(openai.InternalServerError) as refused:
        client.batches.retrieve(made.id)
    assert refused.value.status_code == 503
    second.promote()
    now = second
    batch = ended(client, made.id)
    assert batch.status == "completed"
    each_once(client, batch, LINES)
    assert max(source.requests().values()) == 1  # answers were kept, and no lease was released
    for process in (server, *worker_hosts):
        assert process.end() == 0, process.said
        assert "Traceback" not in process.said
