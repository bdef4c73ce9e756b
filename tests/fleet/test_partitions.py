"""A host in its own network namespace loses its link to Postgres or to the bucket, below TCP."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from urllib.parse import urlsplit

import pytest

from tests.fleet.conftest import begin, each_once, ended, until

pytestmark = pytest.mark.skipif(not os.environ.get("TEST_FLEET"), reason="needs root: make test-fleet")
LINES = 400
SLOTS = 8
LEASE_S = 3
_numbers = count(1)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Host:
    """A network namespace with a separate cable to each server."""

    def __init__(self, links) -> None:
        self.name = f"nightmill-{os.getpid()}"
        self._links = links
        self._cables: dict[str, str] = {}
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "set", "lo", "up")

    def cable_to(self, place: str, port: int) -> str:
        """Connects the host to `place`; returns the address and port that the host must use."""
        number = next(_numbers)
        here, there = f"nm{os.getpid()}-{number}", f"nm{number}"
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
        ip("address", "add", f"10.213.{number}.1/30", "dev", here)
        ip("-n", self.name, "address", "add", f"10.213.{number}.2/30", "dev", there)
        ip("link", "set", here, "up")
        ip("-n", self.name, "link", "set", there, "up")
        self._cables[place] = here
        address = f"10.213.{number}.1"
        return f"{address}:{self._links.open(lambda: port, host=address)}"

    def pull(self, place: str) -> None:
        ip("link", "set", self._cables[place], "down")

    def plug(self, place: str) -> None:
        ip("link", "set", self._cables[place], "up")

    @property
    def within(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def end(self) -> None:
        for cable in self._cables.values():
            ip("link", "del", cable)
        ip("netns", "del", self.name)


@pytest.fixture
def host(links) -> Iterator[Host]:
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    try:
        made = Host(links)
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"no network namespaces here: {refused.stderr.strip()}")
    yield made
    made.end()


@pytest.fixture
def apart(fleet, host, s3, upstream):
    """A server outside the namespace, a worker host inside it, and the flags for a second one outside."""
    section = s3.settings(s3.make_bucket())
    for name in ("url", "endpoint", "access_key_id", "secret_access_key", "allow_http"):
        fleet.environment[f"NIGHTMILL_BLOBS__{name.upper()}"] = str(section[name])
    fleet.environment |= {"NIGHTMILL_BLOBS__PART_INTERVAL_S": "0.1", "NIGHTMILL_BLOBS__RETRY_S": "1"}
    source = upstream(delay_s=0.2)
    store, bucket, asked = (urlsplit(url) for url in (fleet.store, section["endpoint"], source.url))
    by_cable = {
        "NIGHTMILL_STORE": f"postgresql://postgres@{host.cable_to('store', store.port)}{store.path}",
        "NIGHTMILL_BLOBS__ENDPOINT": f"http://{host.cable_to('bucket', bucket.port)}",
    }
    server = fleet.serve("--workers", "0")
    flags = ("--concurrency", str(SLOTS), "--workers", "1")
    url = f"http://{host.cable_to('upstream', asked.port)}/v1"
    far = fleet.work("--upstream", url, *flags, environment=by_cable, within=host.within)
    return server, far, ("--upstream", source.url, *flags), source


def test_a_host_that_was_cut_off_from_postgres_changes_nothing_after_it_reconnects(fleet, host, apart):
    server, far, flags, source = apart
    fleet.work(*flags)
    client = server.client()
    made = begin(client, LINES)
    leased_to = "SELECT DISTINCT worker_id FROM segment WHERE state = 'leased'"
    until(lambda: len(fleet.sql(leased_to).split()) == 2)
    until(lambda: len(source.requests()) > 2 * SLOTS)
    host.pull("store")
    batch = ended(client, made.id)
    each_once(client, batch, LINES)
    requests = source.requests()
    # Repeated: lines in flight when the lease expired, and lines answered just before the cut.
    assert sum(requests.values()) <= LINES + 2 * SLOTS
    host.plug("store")
    assert far.end() == 0, far.said
    assert source.requests() == requests
    each_once(client, client.batches.retrieve(made.id), LINES)


def test_a_host_cut_off_from_the_bucket_keeps_its_answers_and_uploads_them_later(host, apart):
    server, far, _, source = apart
    client = server.client()
    made = begin(client, LINES)
    until(lambda: len(source.requests()) > 2 * SLOTS)
    host.pull("bucket")
    time.sleep(2 * LEASE_S)
    assert client.batches.retrieve(made.id).status == "in_progress"
    host.plug("bucket")
    batch = ended(client, made.id)
    each_once(client, batch, LINES)
    assert max(source.requests().values()) == 1
    assert far.end() == 0, far.said
