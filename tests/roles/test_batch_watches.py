"""The watches of the observer: samples on a grid, and an entry in the history for each other limit."""

from dataclasses import replace

import msgspec
import pytest

from nightmill.core.batch import Batch, Event, Status
from nightmill.core.history import EventKind
from nightmill.core.segment import Segment
from nightmill.core.upstream_report import BatchLines, ModelHold, ModelReport, UpstreamReport
from nightmill.core.upstream_setting import UpstreamState
from nightmill.ids import BatchId, FileId, ProjectId, WorkerId
from nightmill.roles.batch_watches import SampleWatch, WhyWatch, grid_s
from nightmill.settings import Settings
from nightmill.store import open_store
from nightmill.store.migrate import migrate
from nightmill.telemetry import BatchLimited

WORKER = WorkerId("worker-1")
SETTINGS = Settings.model_validate(
    {"upstreams": [{"name": "gpu", "url": "http://127.0.0.1:9/v1", "models": ["m"]}]}
)


class Scene:
    """A store with one batch in progress of which a worker has leased a segment."""

    def __init__(self, store) -> None:
        self.store = store
        self.now = 1_760_000_000.0
        self.events: list[BatchLimited] = []

    def wall(self) -> float:
        return self.now

    def watch(self) -> WhyWatch:
        return WhyWatch(self.store, SETTINGS, emit=self.events.append, wall=self.wall)

    async def start(self) -> Batch:
        new = Batch(
            id=BatchId("batch_1"),
            project_id=ProjectId("p"),
            endpoint="/v1/chat/completions",
            input_file_id=FileId("file-1"),
            input_blob_key="blob",
            completion_window="24h",
            created_at=int(self.now),
            expires_at=int(self.now) + 86_400,
        )
        await self.store.batches.create(new)
        lease = await self.store.batch_leases.lease((Status.VALIDATING,), WORKER, ttl_s=30.0)
        after = replace(lease.batch.after(Event.ACCEPTED, now=self.now), model="m", total=10)
        segments = [Segment(new.id, 0, 0, 10)]
        await self.store.batch_leases.accept(lease, after, index_blob_key="index", segments=segments)
        await self.store.segments.lease(WORKER, limit=1, ttl_s=1e6)
        return after

    async def report(self, **fields) -> None:
        entry = ModelReport("m", limit=4, rule="", in_flight=4, held=fields.pop("held", None))
        report = UpstreamReport(
            "gpu", self.now, per_model=(entry,), batches=(BatchLines("batch_1", 4),), **fields
        )
        await self.store.upstreams.report(WORKER, {"gpu": msgspec.json.encode(report).decode()})

    async def limits(self) -> list[str]:
        events = await self.store.batch_events.list(BatchId("batch_1"))
        return [event.detail["code"] for event in events if event.kind is EventKind.LIMITED]


@pytest.fixture
async def scene(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    await migrate(url)
    made: list[Scene] = []
    store = open_store(url, clock=lambda: made[0].now if made else 1_760_000_000.0)
    made.append(Scene(store))
    yield made[0]
    await store.close()


async def test_another_limit_is_recorded_once_and_logged(scene):
    await scene.start()
    watch, second = scene.watch(), scene.watch()
    for _ in range(3):
        await scene.report()
        await watch.look()
        await second.look()
        scene.now += 5
    await scene.store.upstreams.put("gpu", document=None, state=UpstreamState.PAUSED, revision=None)
    for _ in range(3):
        await scene.report()
        await watch.look()
        await second.look()
        scene.now += 5
    assert await scene.limits() == ["concurrency_limit", "upstream_paused"]
    assert [event.code for event in scene.events] == ["concurrency_limit", "upstream_paused"]
    assert "paused by an operator" in scene.events[-1].sentence


async def test_a_hold_is_recorded_with_its_reason(scene):
    await scene.start()
    await scene.report(held=ModelHold("it refuses our key (401)", scene.now, needs_operator=True))
    await scene.watch().look()
    assert await scene.limits() == ["upstream_held"]
    assert "it refuses our key (401)" in scene.events[0].sentence


async def test_a_batch_that_no_worker_holds_is_looked_at_in_its_turn(scene):
    await scene.start()
    await scene.store.leases.release_of_worker(WORKER)
    watch = scene.watch()
    scene.now += 30
    await watch.look()
    assert await scene.limits() == ["no_worker"]


async def test_a_worker_that_starts_beside_the_watch_is_not_said_to_be_missing(scene):
    await scene.start()
    watch = scene.watch()
    await watch.look()
    assert await scene.limits() == []
    await scene.report()
    scene.now += 5
    await watch.look()
    assert await scene.limits() == ["concurrency_limit"]


async def test_samples_are_taken_on_a_grid_and_count_the_attempts_in_flight(scene):
    await scene.start()
    watch = SampleWatch(scene.store, SETTINGS, wall=scene.wall)
    for _ in range(20):
        await scene.report()
        await watch.look()
        scene.now += 1
    samples = (await scene.store.batch_watch.around(BatchId("batch_1"))).samples
    assert [int(one.at) % 5 for one in samples] == [0, 0, 0, 0]
    assert {one.in_flight for one in samples} == {4}


async def test_the_samples_of_a_long_batch_are_few(scene):
    batch = await scene.start()
    begin = int(scene.now)
    days_s = 3 * 86_400
    for at in range(begin, begin + days_s, 300):
        await scene.store.batch_watch.add_samples([(batch, 0)], at=at)
    for at in range(begin + days_s - 600, begin + days_s, 5):
        await scene.store.batch_watch.add_samples([(batch, 0)], at=at)
    scene.now = begin + days_s
    await SampleWatch(scene.store, SETTINGS, wall=scene.wall).look()
    assert 60 < len((await scene.store.batch_watch.around(batch.id)).samples) < 200


@pytest.mark.parametrize(("age_s", "expected"), [(0, 5), (500, 5), (501, 10), (86_400, 1_280)])
def test_the_grid_of_older_samples_grows_with_the_age(age_s, expected):
    assert grid_s(age_s) == expected
