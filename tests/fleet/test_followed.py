"""A follower of a fleet over Postgres and an object store, while its servers and workers are killed."""

import json
import os
import threading
from collections import Counter
from typing import Any

import pytest

from nightmill.client import Client
from tests.fleet.conftest import Fleet, begin, ended, until
from tests.slow import only_fleet

LINES = 300
KINDS = ("s3", "rgw") if os.environ.get("TEST_FLEET") else ("s3",)


def section(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    if kind == "rgw":
        return request.getfixturevalue("rgw").settings()
    server = request.getfixturevalue("s3")
    return server.settings(server.make_bucket())


@only_fleet
@pytest.mark.parametrize("kind", KINDS)
def test_a_follower_is_given_each_line_once_over_three_kills(
    kind, request, fleet: Fleet, upstream, links
) -> None:
    for name, value in section(kind, request).items():
        fleet.environment[f"NIGHTMILL_BLOBS__{name.upper()}"] = str(value)
    fleet.environment["NIGHTMILL_BLOBS__PART_INTERVAL_S"] = "0.1"
    source = upstream(delay_s=0.15)
    servers = [fleet.serve("--workers", "0") for _ in range(2)]
    workers = [fleet.work("--upstream", source.url, "--concurrency", "4") for _ in range(2)]
    port = links.open(lambda: servers[-1].port)
    lines: list[bytes] = []

    def follow(batch_id: str) -> None:
        with Client(f"http://127.0.0.1:{port}/v1") as client:
            lines.extend(line.text for line in client.follow(batch_id))

    made = begin(servers[-1].client(), LINES)
    follower = threading.Thread(target=follow, args=(made.id,))
    follower.start()
    until(lambda: len(lines) > 20, timeout_s=120)
    servers.pop().kill()  # the other server goes on
    until(lambda: len(lines) > 80, timeout_s=120)
    workers.pop().kill()  # the other worker takes its segments over
    until(lambda: len(lines) > 160, timeout_s=120)
    servers.append(fleet.serve("--workers", "0"))
    servers.pop(0).kill()
    batch = ended(servers[-1].client(), made.id, timeout_s=120)
    follower.join(60)
    assert not follower.is_alive()
    assert batch.status == "completed"
    names = Counter(json.loads(line)["custom_id"] for line in lines)
    assert names == Counter(f"line-{number}" for number in range(LINES))
    assert batch.output_file_id is not None
    output = servers[-1].client().files.content(batch.output_file_id).content.splitlines()
    assert sorted(lines) == sorted(output)
    assert lines != output  # in the order of the answers, so they came while the batch ran
