"""Grants in the database: they add up, they lapse by its clock, and end with their worker."""

import asyncio

from nightmill.core.concurrency import Grant, SlotRequest
from nightmill.ids import WorkerId

TTL_S = 30.0


def claim(
    worker: str, *, held: int = 0, wanted: int = 64, window: int = 64, upstream: str = "u"
) -> SlotRequest:
    return SlotRequest(
        upstream=upstream, worker_id=WorkerId(worker), concurrency_limit=window, held=held, wanted=wanted
    )


async def test_the_first_gets_all_and_the_second_waits_until_it_shrinks(world, store):
    assert await store.grants.request(claim("a"), ttl_s=TTL_S) == Grant(64, 64)
    assert await store.grants.request(claim("b"), ttl_s=TTL_S) == Grant(0, 32)
    assert await store.grants.request(claim("a", held=40), ttl_s=TTL_S) == Grant(40, 32)
    assert await store.grants.request(claim("b"), ttl_s=TTL_S) == Grant(24, 32)
    assert await store.grants.request(claim("a", held=32), ttl_s=TTL_S) == Grant(32, 32)
    assert await store.grants.request(claim("b", held=24), ttl_s=TTL_S) == Grant(32, 32)


async def test_upstreams_do_not_share(world, store):
    assert await store.grants.request(claim("a"), ttl_s=TTL_S) == Grant(64, 64)
    assert await store.grants.request(claim("b", upstream="v"), ttl_s=TTL_S) == Grant(64, 64)


async def test_a_grant_lapses_and_leaves_its_slots_to_others(world, store):
    await store.grants.request(claim("a"), ttl_s=TTL_S)
    world.clock.step(TTL_S - 1)
    assert await store.grants.request(claim("b"), ttl_s=TTL_S) == Grant(0, 32)
    world.clock.step(1)
    assert await store.grants.request(claim("b"), ttl_s=TTL_S) == Grant(64, 64)


async def test_what_a_worker_gives_back_or_dies_with_is_free_at_once(world, store):
    await store.grants.request(claim("a"), ttl_s=TTL_S)
    assert await store.grants.request(claim("a", wanted=0), ttl_s=TTL_S) == Grant(0, 0)
    assert await store.grants.request(claim("b"), ttl_s=TTL_S) == Grant(64, 64)
    await store.leases.release_of_worker(WorkerId("b"))
    assert await store.grants.request(claim("c"), ttl_s=TTL_S) == Grant(64, 64)
    await store.leases.release_all()
    assert await store.grants.request(claim("d"), ttl_s=TTL_S) == Grant(64, 64)


async def test_claims_at_the_same_instant_are_granted_no_more_than_there_is(world, store, other_store):
    grants = await asyncio.gather(
        *(
            (store, other_store)[number % 2].grants.request(claim(f"w{number}"), ttl_s=TTL_S)
            for number in range(12)
        )
    )
    assert sum(grant.slots for grant in grants) == 64
