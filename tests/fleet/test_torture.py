"""`nightmill torture --store`: whoever dies, freezes or is cut off, no line is lost and none is doubled."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightmill.errors import SetupError
from nightmill.torture.fleet.bound import SLACK_S, Bound, unexplained
from nightmill.torture.fleet.places import Places
from nightmill.torture.fleet.plan import LEASE_TTL_S, Blow, FleetPlan, strikes
from nightmill.torture.upstream import Ask
from tests.fleet.rgw import missing_programs

only_in_fleet = pytest.mark.skipif(not os.environ.get("TEST_FLEET"), reason="long: make test-fleet")


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


@pytest.mark.slow
@pytest.mark.timeout(240)  # half a minute on two quiet cores
def test_no_line_is_lost_or_doubled_whoever_dies(postgres, s3, tmp_path):
    sizes = ("--kills", "6", "--lines", "60", "--batches", "3", "--seed", "5")
    store, bucket = postgres.fresh(), s3.make_bucket()
    report = kept(tortured(store, s3.settings(bucket), tmp_path, *sizes))
    assert sum(report["blows"].values()) == 6
    assert not report["restart_was_real"]
    assert report["lines"] > 150
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"
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
    ("store", "told"),
    [
        ("sqlite:///some.sqlite", "names the Postgres of a fleet"),
        ("postgresql://a,b/x", "name one host"),
        ("postgresql://a/x?sslmode=verify-full", "use sslmode=require"),
    ],
)
def test_what_can_not_be_tortured_is_told_in_one_line(store, told):
    with pytest.raises(SetupError, match=told):
        Places(plan_of(store=store), {})


# --- the plan and the bound ------------------------------------------------------------------------------


def plan_of(**changes: object) -> FleetPlan:
    return FleetPlan(**{"folder": Path("x"), "store": "postgresql://x/y", "blobs": "s3://b"} | changes)


def test_a_seed_repeats_the_choices_and_another_makes_others():
    assert list(strikes(plan_of(seed=1))) == list(strikes(plan_of(seed=1)))
    assert list(strikes(plan_of(seed=1))) != list(strikes(plan_of(seed=2)))


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_every_kind_of_blow_is_struck_before_any_comes_again(engine):
    kinds = plan_of(engine=engine).kinds
    struck = [strike.blow for strike in strikes(plan_of(engine=engine, kills=len(kinds)))]
    assert sorted(struck) == sorted(kinds)
    assert plan_of(engine=engine).costly < set(kinds)


def test_only_what_is_there_is_struck():
    assert set(plan_of(engine="ray").kinds) == set(Blow)
    assert not any("Ray" in blow for blow in plan_of().kinds)
    assert not any("bucket" in blow for blow in plan_of(blobs=None).kinds)


def test_a_freeze_outlasts_the_lease():
    freezes = [strike for strike in strikes(plan_of(kills=200)) if "frozen" in strike.blow]
    assert min(strike.for_s for strike in freezes) > LEASE_TTL_S


@pytest.mark.parametrize(("workers", "crews", "each"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (8, 4, 2)])
def test_workers_come_in_crews(workers, crews, each):
    plan = plan_of(workers=workers)
    assert (plan.crews, plan.workers_per_crew) == (crews, each)


def asked_twice(*, first: float, again: float, sender: str = "crew-1") -> list[Ask]:
    return [Ask("a", sender, first), Ask("b", sender, first), Ask("a", "crew-2", again)]


def told_by(bound: Bound, asks: list[Ask]) -> list[str]:
    repeatable = bound.repeatable(asks, durable_after_s=lambda _: 0.5)
    return [ask.marker for ask in unexplained(asks, repeatable)]


def test_only_what_was_in_flight_or_not_durable_may_be_repeated():
    bound = Bound()
    bound.struck("crew-1", 100.0, 100.0)
    assert told_by(bound, asked_twice(first=99.8, again=104.0)) == []
    assert told_by(bound, asked_twice(first=99.4 - SLACK_S, again=104.0)) == ["a"]
    assert told_by(bound, asked_twice(first=99.8, again=104.0, sender="crew-2")) == ["a"]
    assert told_by(Bound(), asked_twice(first=99.8, again=104.0)) == ["a"]


def test_since_the_bucket_stalled_nothing_was_durable():
    bound = Bound()
    bound.stalled("crew-1", 90.0, 96.0)
    bound.struck("crew-1", 100.0, 100.0)
    assert told_by(bound, asked_twice(first=90.0, again=104.0)) == []
    other = Bound()
    other.stalled("crew-2", 90.0, 96.0)
    other.struck("crew-1", 100.0, 100.0)
    assert told_by(other, asked_twice(first=90.0, again=104.0)) == ["a"]


# --- on real places: make test-fleet ---------------------------------------------------------------------


@pytest.fixture
def restarted(postgres, tmp_path) -> Iterator[str]:
    """A command that restarts Postgres as a machine that lost power."""
    asked, done, is_over = tmp_path / "restart-asked", tmp_path / "restart-done", threading.Event()

    def obey() -> None:
        while not is_over.wait(0.05):
            if asked.exists():
                postgres.stop()
                time.sleep(1)
                postgres.start()
                asked.unlink()
                done.touch()

    obeying = threading.Thread(target=obey)
    obeying.start()
    yield f"touch {asked}; while [ ! -e {done} ]; do sleep 0.05; done; rm {done}"
    is_over.set()
    obeying.join()


@pytest.fixture
def real_bucket(request) -> dict[str, object]:
    """Ceph's, or moto's where Ceph is not installed."""
    if missing_programs():
        s3 = request.getfixturevalue("s3")
        return s3.settings(s3.make_bucket())
    return request.getfixturevalue("rgw").settings()


@only_in_fleet
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_blow_over_a_real_postgres_and_a_real_bucket(postgres, real_bucket, tmp_path, restarted, seed):
    kinds = plan_of().kinds
    sizes = ("--kills", str(2 * len(kinds)), "--seed", str(seed), "--restart-store", restarted)
    report = kept(tortured(postgres.fresh(), real_bucket, tmp_path / "run", *sizes))
    assert report["blows"] == {blow.value: 2 for blow in kinds}
    assert report["restart_was_real"]


@only_in_fleet
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_blow_at_workers_on_a_ray_cluster_of_several_nodes(postgres, real_bucket, tmp_path, restarted):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    kinds = plan_of(engine="ray").kinds
    sizes = ("--kills", str(len(kinds)), "--engine", "ray", "--restart-store", restarted)
    report = kept(tortured(postgres.fresh(), real_bucket, tmp_path / "run", *sizes))
    assert report["blows"] == {blow.value: 1 for blow in kinds}


_FORGETFUL = """
from nightmill.parts import FolderParts


async def find(self, lease):
    return list(lease.pinned)


FolderParts.find = find
"""


@only_in_fleet
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
