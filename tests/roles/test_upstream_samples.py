"""The observer samples what workers have stored of each upstream."""

import msgspec
import pytest

from nightmill.core.counts import ProcessCounts
from nightmill.core.upstream_report import ModelReport, UpstreamReport
from nightmill.core.upstream_sample import KEPT_S, UpstreamSample
from nightmill.ids import WorkerId
from nightmill.roles.upstream_samples import UpstreamSampleWatch
from nightmill.store import open_store
from nightmill.store.migrate import migrate

BEGIN = 1_760_000_400.0


class Fleet:
    """A store with what two workers say of the upstream `gpu`."""

    def __init__(self) -> None:
        self.now = BEGIN
        self.answered = 0

    async def open(self, url: str) -> None:
        await migrate(url)
        self.store = open_store(url, clock=lambda: self.now)
        self.watch = self.watching()

    def watching(self) -> UpstreamSampleWatch:
        return UpstreamSampleWatch(self.store, wall=lambda: self.now)

    async def report(self, *, answered: int = 0, limit: int = 64) -> None:
        self.answered += answered
        for number in (1, 2):
            models = (ModelReport("m", limit=limit, rule="grow", in_flight=4),)
            made = UpstreamReport("gpu", self.now, in_flight=4, per_model=models)
            worker = WorkerId(f"worker-{number}")
            await self.store.upstreams.report(worker, {"gpu": msgspec.json.encode(made).decode()})
            counts = ProcessCounts()
            counts.of_upstream("gpu").attempts = {"answered": self.answered}
            await self.store.counts.report(worker, counts, is_first=self.now == BEGIN)

    async def samples(self) -> list[UpstreamSample]:
        return list(await self.store.upstream_samples.of("gpu", since=0))


@pytest.fixture
async def fleet(tmp_path):
    fleet = Fleet()
    await fleet.open(f"sqlite:///{tmp_path / 'store.sqlite'}")
    yield fleet
    await fleet.store.close()


async def test_the_sums_of_all_workers_are_sampled_on_a_grid(fleet):
    for _ in range(12):
        await fleet.report(answered=3)
        await fleet.watch.look()
        fleet.now += 1
    samples = await fleet.samples()
    assert [int(one.at - BEGIN) for one in samples] == [0, 5, 10]
    assert [one.answered for one in samples] == [6, 36, 66]
    assert {(one.in_flight, one.concurrency_limit, one.rule) for one in samples} == {(8, 64, "grow")}


async def test_an_upstream_at_rest_is_sampled_once_a_minute(fleet):
    for _ in range(25):
        await fleet.report()
        await fleet.watch.look()
        fleet.now += 5
    assert [int(one.at - BEGIN) for one in await fleet.samples()] == [0, 60, 120]


async def test_a_new_limit_is_sampled_at_once(fleet):
    for limit in (64, 64, 128, 128):
        await fleet.report(limit=limit)
        await fleet.watch.look()
        fleet.now += 5
    assert [one.concurrency_limit for one in await fleet.samples()] == [64, 128]


async def test_two_observers_store_a_sample_once(fleet):
    other = fleet.watching()
    await fleet.report(answered=1)
    await fleet.watch.look()
    await other.look()
    assert len(await fleet.samples()) == 1


async def test_nothing_is_sampled_without_a_worker_and_old_samples_are_deleted(fleet):
    await fleet.report()
    await fleet.watch.look()
    fleet.now += KEPT_S + 400
    await fleet.watch.look()
    assert await fleet.samples() == []
