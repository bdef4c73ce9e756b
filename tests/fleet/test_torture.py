"""`nightmill torture --store`: no line of a fleet is lost or doubled by a kill, a freeze or a cut."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightmill.errors import SetupError
from nightmill_torture.plan import LEASE_TTL_S, Fault, Plan, injections
from nightmill_torture.record import Request
from nightmill_torture.repeats import SLACK_S, RepeatBound, unexplained
from nightmill_torture.storage import Storage
from tests.fleet.rgw import missing_programs
from tests.slow import only_fleet


def tortured(
    store: str, section: dict[str, object], folder: Path, *words: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    given = {
        f"NIGHTMILL_BLOBS__{name.upper()}": str(section[name])
        for name in ("endpoint", "access_key_id", "secret_access_key", "allow_http")
    }
    return subprocess.run(
        [
            *(sys.executable, "-m", "nightmill", "torture", "--store", store, "--blobs", str(section["url"])),
            *("--folder", str(folder), "--json", *words),
        ],
        env=os.environ | given | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def kept(ended: "subprocess.CompletedProcess[str]") -> dict:
    assert ended.returncode == 0, ended.stderr[-4_000:] + ended.stdout
    report = json.loads(ended.stdout)
    assert report["kept"]
    assert set(report["breaches"].values()) == {0}
    assert {"lines lost", "lines doubled", "repeated above the bound"} <= report["breaches"].keys()
    assert report["repeated"] <= report["repeated_bound"]
    assert report["settled_answers"] > 0
    assert "Traceback" not in ended.stderr
    return report


@only_fleet
@pytest.mark.slow
@pytest.mark.timeout(240)  # half a minute on two quiet cores
def test_no_line_is_lost_or_doubled_by_a_few_faults(postgres, s3, tmp_path):
    sizes = ("--kills", "6", "--lines", "60", "--batches", "3", "--seed", "5")
    store, bucket = postgres.fresh(), s3.make_bucket()
    report = kept(tortured(store, s3.settings(bucket), tmp_path, *sizes))
    assert sum(report["faults"].values()) == 6
    assert not report["restart_was_real"]
    assert report["lines"] > 150
    assert list(tmp_path.iterdir()) == [], "the run removes its folder"
    tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    assert postgres.of(store, tables) == "0"
    s3.remove_bucket(bucket)  # S3 removes empty ones only


def test_a_database_in_use_is_refused_in_one_line_and_left_alone(migrated, s3, tmp_path):
    refused = tortured(migrated.store, s3.settings(s3.make_bucket()), tmp_path)
    assert refused.returncode == 78
    assert len(refused.stderr.splitlines()) == 1
    assert "needs a database of its own" in refused.stderr
    assert migrated.sql("SELECT count(*) FROM batch") == "0"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("sqlite:///some.sqlite", "names the Postgres of a fleet"),
        ("postgresql://a,b/x", "name one host"),
        ("postgresql://a/x?sslmode=verify-full", "use sslmode=require"),
    ],
)
def test_a_url_that_links_can_not_stand_before_is_refused(store, message):
    with pytest.raises(SetupError, match=message):
        Storage(plan_of(store=store), {})


# --- the plan and the bound ------------------------------------------------------------------------------


def plan_of(**changes: object) -> Plan:
    return Plan(**{"folder": Path("x"), "store": "postgresql://x/y", "blobs": "s3://b"} | changes)


def test_a_seed_repeats_the_choices_and_another_makes_others():
    assert list(injections(plan_of(seed=1))) == list(injections(plan_of(seed=1)))
    assert list(injections(plan_of(seed=1))) != list(injections(plan_of(seed=2)))


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_every_fault_is_injected_before_any_is_repeated(engine):
    faults = plan_of(engine=engine).faults
    injected = [injection.fault for injection in injections(plan_of(engine=engine, kills=len(faults)))]
    assert Counter(injected) == Counter(faults)
    costly = {fault for fault in faults if plan_of(engine=engine).may_repeat(fault)}
    of_workers = {Fault.WORKER_KILLED, Fault.WORKER_FROZEN, Fault.HOST_CUT_FROM_STORE}
    of_hosts = {Fault.HOST_KILLED, Fault.HOST_ORPHANED, Fault.HOST_FROZEN}
    of_ray = {Fault.NODE_KILLED, Fault.NODE_FROZEN, Fault.HEAD_KILLED}
    of_all = {Fault.UPSTREAM_KILLED}
    assert costly == of_workers | of_all | (of_ray if engine == "ray" else of_hosts)


def test_only_what_the_fleet_has_is_a_target():
    of_one_machine = {Fault.FAILPOINT, Fault.SERVER_ORPHANED}
    assert set(plan_of(engine="ray").faults) == set(Fault) - of_one_machine
    assert not any("Ray" in fault.title for fault in plan_of().faults)
    assert not any("bucket" in fault.title for fault in plan_of(blobs=None).faults)


def test_a_freeze_outlasts_the_lease():
    planned = injections(plan_of(kills=200))
    freezes = [injection for injection in planned if injection.fault.action == "freeze"]
    assert min(injection.for_s for injection in freezes) > LEASE_TTL_S


@pytest.mark.parametrize(("workers", "hosts", "each"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (8, 4, 2)])
def test_workers_come_in_hosts(workers, hosts, each):
    plan = plan_of(workers=workers)
    assert (plan.worker_hosts, plan.workers_per_member) == (hosts, each)


def sent_twice(*, first: float, again: float, sender: str = "host-1") -> list[Request]:
    return [Request("a", sender, first), Request("b", sender, first), Request("a", "host-2", again)]


def unexplained_by(bound: RepeatBound, requests: list[Request]) -> list[str]:
    repeatable = bound.repeatable(requests, durable_after_s=lambda _: 0.5)
    return [request.marker for request in unexplained(requests, repeatable)]


def test_only_what_was_in_flight_or_not_durable_may_be_repeated():
    bound = RepeatBound()
    bound.add_fault("host-1", 100.0, 100.0)
    assert unexplained_by(bound, sent_twice(first=99.8, again=104.0)) == []
    assert unexplained_by(bound, sent_twice(first=99.4 - SLACK_S, again=104.0)) == ["a"]
    assert unexplained_by(bound, sent_twice(first=99.8, again=104.0, sender="host-2")) == ["a"]
    assert unexplained_by(RepeatBound(), sent_twice(first=99.8, again=104.0)) == ["a"]


def test_since_the_bucket_stalled_nothing_was_durable():
    bound = RepeatBound()
    bound.add_stall("host-1", 90.0, 96.0)
    bound.add_fault("host-1", 100.0, 100.0)
    assert unexplained_by(bound, sent_twice(first=90.0, again=104.0)) == []
    other = RepeatBound()
    other.add_stall("host-2", 90.0, 96.0)
    other.add_fault("host-1", 100.0, 100.0)
    assert unexplained_by(other, sent_twice(first=90.0, again=104.0)) == ["a"]


# --- on real services: make test-fleet ---------------------------------------------------------------------


@pytest.fixture
def restarted(postgres, tmp_path) -> Iterator[str]:
    """A command that restarts Postgres as after a loss of power."""
    asked, done, is_over = tmp_path / "restart-asked", tmp_path / "restart-done", threading.Event()

    def restart() -> None:
        while not is_over.wait(0.05):
            if asked.exists():
                postgres.stop()
                time.sleep(1)
                postgres.start()
                asked.unlink()
                done.touch()

    restarting = threading.Thread(target=restart)
    restarting.start()
    yield f"touch {asked}; while [ ! -e {done} ]; do sleep 0.05; done; rm {done}"
    is_over.set()
    restarting.join()


@pytest.fixture
def real_bucket(request) -> dict[str, object]:
    """Ceph's, or moto's where Ceph is not installed."""
    if missing_programs():
        s3 = request.getfixturevalue("s3")
        return s3.settings(s3.make_bucket())
    return request.getfixturevalue("rgw").settings()


@only_fleet
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_fault_over_a_real_postgres_and_a_real_bucket(postgres, real_bucket, tmp_path, restarted, seed):
    faults = plan_of().faults
    sizes = ("--kills", str(2 * len(faults)), "--seed", str(seed), "--restart-store", restarted)
    report = kept(tortured(postgres.fresh(), real_bucket, tmp_path / "run", *sizes))
    assert report["faults"] == {fault.title: 2 for fault in faults}
    assert report["restart_was_real"]


@only_fleet
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_fault_of_workers_on_a_ray_cluster_of_several_nodes(postgres, real_bucket, tmp_path, restarted):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    faults = plan_of(engine="ray").faults
    sizes = ("--kills", str(len(faults)), "--engine", "ray", "--restart-store", restarted)
    report = kept(tortured(postgres.fresh(), real_bucket, tmp_path / "run", *sizes))
    assert report["faults"] == {fault.title: 1 for fault in faults}


_FORGETFUL = """
from nightmill.parts import FolderParts


async def find(self, segment, *, below, pinned=()):
    return list(pinned)


FolderParts.find = find
"""


@only_fleet
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_proof_fails_when_a_takeover_forgets_what_is_durable(postgres, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(_FORGETFUL)
    # Over a folder: nothing stalls there, so there is little that may be repeated.
    words = ("torture", "--store", postgres.fresh(), "--folder", str(tmp_path / "run"), "--json")
    ended = subprocess.run(
        [sys.executable, "-m", "nightmill", *words, "--kills", "11", "--seed", "1"],
        env=os.environ | {"PYTHONPATH": str(broken)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr[-4_000:]
    report = json.loads(ended.stdout)
    assert not report["kept"]
    assert report["breaches"]["repeated above the bound"] > 0
    assert report["breaches"]["lines lost"] == report["breaches"]["lines doubled"] == 0
    assert "everything is kept in" in ended.stderr
