"""Samples of upstreams: stored once, thinned as they grow older, and summed up over the last minutes."""

from nightmill.core.upstream_sample import KEPT_S, MOST_SAMPLES, UpstreamSample
from nightmill.store.upstream_samples import Recent

NOW = 1_760_000_400


def sample(at: float, **counts: int) -> UpstreamSample:
    return UpstreamSample(at=at, concurrency_limit=64, rule="grow", kv_use=0.5, engine_running=60, **counts)


async def test_the_sample_of_a_time_is_stored_once(store, other_store):
    await store.upstream_samples.add({"a": sample(100, answered=1), "b": UpstreamSample(at=100)})
    await other_store.upstream_samples.add({"a": sample(100, answered=2), "b": UpstreamSample(at=105)})
    assert await store.upstream_samples.of("a", since=0) == [sample(100, answered=1)]
    assert [one.at for one in await store.upstream_samples.of("b", since=0)] == [100, 105]
    assert [one.at for one in await store.upstream_samples.of("b", since=101)] == [105]


async def test_older_samples_stay_on_coarser_grids_and_the_oldest_are_deleted(store):
    times = [*range(NOW - 1_200, NOW, 5), *range(NOW - KEPT_S - 3_600, NOW - 1_200, 300)]
    for at in times:
        await store.upstream_samples.add({"a": sample(at)})
    await store.upstream_samples.thin(now=NOW)
    left = [one.at for one in await store.upstream_samples.of("a", since=0)]
    dense = [at for at in left if at >= NOW - 600]
    middle = [at for at in left if NOW - 6 * 3_600 <= at < NOW - 600]
    old = [at for at in left if at < NOW - 6 * 3_600]
    assert len(dense) == 120
    assert {int(at) % 60 for at in middle} == {0}
    assert {int(at) % 900 for at in old} == {0}
    assert left[0] >= NOW - KEPT_S
    assert len(left) < MOST_SAMPLES


async def test_what_was_counted_lately_is_the_growth_between_the_first_and_the_last_sample(store):
    for at, answered in ((0, 5), (100, 10), (105, 30), (110, 60)):
        await store.upstream_samples.add(
            {"a": sample(at, answered=answered, refused=answered // 10, output_tokens=10 * answered)}
        )
    await store.upstream_samples.add({"b": sample(105, answered=7)})
    recent = await store.upstream_samples.recent(since=100)
    assert recent["a"] == Recent(10.0, 50, 5, 0, 500)
    assert recent["b"] == Recent(0.0, 0, 0, 0, 0)
    assert await store.upstream_samples.recent(since=200) == {}
