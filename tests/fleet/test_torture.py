"""Kills and freezes machines and restarts Postgres while batches run: no line is lost, none is doubled."""

import random
import signal
import time

import pytest

from tests.fleet.conftest import begin, each_once, ended

BATCHES = 4
LINES = 150
BLOWS = 8
SLOTS = 8


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_line_is_lost_or_doubled_whoever_dies(fleet, upstream, s3):
    for name, value in s3.settings(s3.make_bucket()).items():
        fleet.environment[f"NIGHTMILL_BLOBS__{name.upper()}"] = str(value)
    fleet.environment["NIGHTMILL_BLOBS__PART_INTERVAL_S"] = "0.1"
    source = upstream(delay_s=0.25)
    dice = random.Random(7)
    flags = ("--upstream", source.url, "--concurrency", str(SLOTS))
    servers = [fleet.serve("--workers", "0") for _ in range(2)]
    crews = [fleet.work(*flags, "--workers", "2") for _ in range(2)]
    made = [begin(servers[0].client(), LINES, name=f"batch{number}") for number in range(BATCHES)]
    killed = 0
    for blow in range(BLOWS):
        time.sleep(dice.uniform(0.5, 2.0))
        place = dice.randrange(2)
        match ("crew", "freeze", "postgres", "api")[blow % 4]:
            case "crew":
                crews[place].kill()
                killed += 1
                crews[place] = fleet.work(*flags, "--workers", "2")
            case "freeze":
                crews[place].send(signal.SIGSTOP)
                time.sleep(4)  # longer than a lease: it wakes as a zombie
                crews[place].send(signal.SIGCONT)
                killed += 1
            case "postgres":
                fleet.postgres.stop()
                time.sleep(dice.uniform(0.0, 2.0))
                fleet.postgres.start()
            case _:
                servers[place].kill()
                servers[place] = fleet.serve("--workers", "0")
    client = servers[1].client()
    for number, batch in enumerate(made):
        whole = ended(client, batch.id, timeout_s=120)
        assert whole.status == "completed"
        each_once(client, whole, LINES, name=f"batch{number}")
    # Each time a crew fell: what it had in flight, and as much again that was answered but not yet durable.
    asked = sum(source.requests().values())
    assert asked - BATCHES * LINES <= killed * 2 * SLOTS
    for process in [*servers, *crews]:
        assert process.end() == 0, process.said
        assert "Traceback" not in process.said
