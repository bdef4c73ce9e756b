"""A fleet behind a pooler that runs each transaction on another connection."""

import os

import pytest

from tests.fleet.conftest import begin, each_once, ended
from tests.fleet.pooler import SERVER_CONNECTIONS, Pooler

pytestmark = pytest.mark.skipif(not os.environ.get("TEST_FLEET"), reason="needs pgbouncer: make test-fleet")
LINES = 200


def test_a_batch_is_complete_behind_a_pooler_in_transaction_mode(fleet, upstream):
    pooler = Pooler("127.0.0.1", fleet.postgres.port)
    database = fleet.store.rsplit("/", 1)[1]
    try:
        fleet.environment["NIGHTMILL_STORE"] = pooler.url(database)
        source = upstream(delay_s=0.02)
        server = fleet.serve("--workers", "0")
        flags = ("--upstream", source.url, "--concurrency", "16", "--workers", "2")
        worker_hosts = [fleet.work(*flags) for _ in range(2)]
        batch = ended(server.client(), begin(server.client(), LINES).id)
        assert batch.status == "completed"
        each_once(server.client(), batch, LINES)
        assert max(source.requests().values()) == 1
        connections = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
        assert int(fleet.sql(connections)) <= SERVER_CONNECTIONS + 1  # plus the connection of this test
        for process in (server, *worker_hosts):
            assert process.end() == 0, process.said
            assert "Traceback" not in process.said
    finally:
        for process in fleet.processes:
            process.kill()
        pooler.end()
