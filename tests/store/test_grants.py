"""Grants in the database: they add up to the limit, expire by its clock, and end with their worker."""

import asyncio

from nightmill.core.concurrency import Grant, SlotRequest
from nightmill.ids import WorkerId

TTL_S = 30.0


def slot_request(
    worker: str, *, held: int = 0, wanted: int = 64, limit: int = 64, upstream: str = "u"
) -> SlotRequest:
    return SlotRequest(
        upstream=upstream, worker_id=WorkerId(worker), concurrency_limit=limit, held=held, wanted=wanted
    )


async def test_the_first_worker_gets_all_slots_and_the_second_waits_for_the_first_to_give_some_up(
    world, store
):
    assert await store.grants.request(slot_request("a"), ttl_s=TTL_S) == Grant(64, 64)
    assert await store.grants.request(slot_request("b"), ttl_s=TTL_S) == Grant(0, 32)
    assert await store.grants.request(slot_request("a", held=40), ttl_s=TTL_S) == Grant(40, 32)
    assert await store.grants.request(slot_request("b"), ttl_s=TTL_S) == Grant(24, 32)
    assert await store.grants.request(slot_request("a", held=32), ttl_s=TTL_S) == Grant(32, 32)
    assert await store.grants.request(slot_request("b", held=24), ttl_s=TTL_S) == Grant(32, 32)


async def test_grants_of_two_upstreams_are_independent(world, store):
    assert await store.grants.request(slot_request("a"), ttl_s=TTL_S) == Grant(64, 64)
    assert await store.grants.request(slot_request("b", upstream="v"), ttl_s=TTL_S) == Grant(64, 64)


async def test_the_slots_of_an_expired_grant_go_to_other_workers(world, store):
    await store.grants.request(slot_request("a"), ttl_s=TTL_S)
    world.clock.step(TTL_S - 1)
    assert await store.grants.request(slot_request("b"), ttl_s=TTL_S) == Grant(0, 32)
    world.clock.step(1)
    assert await store.grants.request(slot_request("b"), ttl_s=TTL_S) == Grant(64, 64)


async def test_slots_of_a_finished_or_dead_worker_are_free_immediately(world, store):
    await store.grants.request(slot_request("a"), ttl_s=TTL_S)
    assert await store.grants.request(slot_request("a", wanted=0), ttl_s=TTL_S) == Grant(0, 0)
    assert await store.grants.request(slot_request("b"), ttl_s=TTL_S) == Grant(64, 64)
    await store.leases.release_of_worker(WorkerId("b"))
    assert await store.grants.request(slot_request("c"), ttl_s=TTL_S) == Grant(64, 64)
    await store.leases.release_all()
    assert await store.grants.request(slot_request("d"), ttl_s=TTL_S) == Grant(64, 64)


async def test_concurrent_requests_are_never_granted_more_than_the_limit(world, store, other_store):
    grants = await asyncio.gather(
        *(
            (store, other_store)[number % 2].grants.request(slot_request(f"w{number}"), ttl_s=TTL_S)
            for number in range(12)
        )
    )
    assert sum(grant.slots for grant in grants) == 64
