"""Grants in the database: they add up to the limit, expire by its clock, and end with their worker."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import Connection, select, update

from nightmill.core.adaptive_limit import Bounds, Observed
from nightmill.core.concurrency import Grant, SlotRequest
from nightmill.core.load_share import LoadShare
from nightmill.ids import WorkerId
from nightmill.store.upstream_schema import upstream

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


def adaptive(worker: str, *, in_flight: int = 0, wanted: int = 500, **seen: object) -> SlotRequest:
    return SlotRequest(
        upstream="u",
        worker_id=WorkerId(worker),
        concurrency_limit=16,
        held=in_flight,
        wanted=wanted,
        in_flight=in_flight,
        observed=Observed(**({"lacking": True, "over_s": 1.0} | seen)),  # type: ignore[arg-type]
        bounds=Bounds(start=16, most=64),
    )


async def granted(store, request: SlotRequest) -> tuple[int, int, int, str]:
    """Slots, target, limit and rule of the grant."""
    grant = await store.grants.request(request, ttl_s=TTL_S)
    return grant.slots, grant.target, grant.limit, grant.rule


def _set_state(connection: Connection, text: str | None) -> None:
    connection.execute(update(upstream).values(limit_state=text))


def _state(connection: Connection) -> str | None:
    return connection.execute(select(upstream.c.limit_state)).scalar_one()


async def test_an_adaptive_limit_grows_with_the_answers_of_all_workers(world, store, other_store):
    assert await granted(store, adaptive("a")) == (16, 16, 16, "start")
    assert await granted(other_store, adaptive("b")) == (0, 8, 16, "start")
    world.clock.step(1)
    assert await granted(store, adaptive("a", in_flight=8, answered=8, busy_s=8.0)) == (8, 8, 16, "start")
    assert await granted(other_store, adaptive("b", in_flight=8, answered=8, busy_s=8.0)) == (
        16,
        16,
        32,
        "grow",
    )
    assert await granted(store, adaptive("a", in_flight=8)) == (16, 16, 32, "grow")


async def test_after_a_cut_no_worker_starts_an_attempt_that_the_limit_has_no_room_for(world, store):
    await granted(store, adaptive("a"))
    await granted(store, adaptive("b"))
    assert await granted(store, adaptive("a", in_flight=8)) == (8, 8, 16, "start")
    assert await granted(store, adaptive("b")) == (8, 8, 16, "start")
    world.clock.step(1)
    # 8 attempts of a, 2 of b; b had 6 refused.
    assert await granted(store, adaptive("b", in_flight=2, refused=6)) == (2, 5, 10, "cut: refused")
    assert await granted(store, adaptive("a", in_flight=8, refused=4)) == (8, 3, 6, "cut: refused")
    assert await granted(store, adaptive("a", in_flight=4)) == (4, 3, 6, "cut: refused")


async def test_an_adaptive_limit_continues_in_another_process_and_after_all_grants_are_gone(
    world, store, other_store
):
    await granted(store, adaptive("a"))
    world.clock.step(1)
    await granted(store, adaptive("a", in_flight=16, answered=16, busy_s=16.0))
    await store.leases.release_all()
    world.clock.step(600)
    assert await granted(other_store, adaptive("b")) == (32, 32, 32, "grow")
    world.clock.step(4_000)
    assert await granted(other_store, adaptive("b")) == (16, 16, 16, "start")


async def test_the_state_of_a_limit_is_written_only_when_it_changes(world, store):
    await granted(store, adaptive("a"))
    before = await store.database.read(_state)
    world.clock.step(1)
    await granted(store, adaptive("a"))
    assert await store.database.read(_state) == before
    await granted(store, adaptive("a", answered=1, busy_s=1.0))
    assert await store.database.read(_state) != before


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"limit": "many"}'])
async def test_a_state_that_cannot_be_read_starts_anew(world, store, text):
    await granted(store, adaptive("a"))
    await store.database.write(_set_state, text)
    assert await granted(store, adaptive("a")) == (16, 16, 16, "start")


async def test_a_fixed_limit_keeps_no_state(world, store):
    grant = await store.grants.request(slot_request("a"), ttl_s=TTL_S)
    assert (grant.limit, grant.rule, grant.advice) == (0, "", None)
    assert await store.database.read(_state) is None


async def test_the_grants_of_all_workers_add_up_to_the_share_and_attempts_in_flight_may_end(
    world, store, other_store
):
    by_night = {"load_share": LoadShare(1.0)}
    by_day = {"load_share": LoadShare(0.5)}
    await granted(store, replace(adaptive("a"), **by_night))
    await granted(other_store, replace(adaptive("b"), **by_night))
    assert await granted(store, replace(adaptive("a", in_flight=8), **by_night)) == (8, 8, 16, "start")
    assert await granted(other_store, replace(adaptive("b"), **by_night)) == (8, 8, 16, "start")
    world.clock.step(1)
    # By day 8 slots are left: none is used again before both workers are down to 4.
    assert await granted(store, replace(adaptive("a", in_flight=8), **by_day)) == (8, 0, 8, "hold: share")
    assert await granted(other_store, replace(adaptive("b", in_flight=8), **by_day)) == (
        8,
        0,
        8,
        "hold: share",
    )
    assert await granted(store, replace(adaptive("a", in_flight=4), **by_day)) == (4, 0, 8, "hold: share")
    assert await granted(other_store, replace(adaptive("b", in_flight=4), **by_day)) == (
        4,
        4,
        8,
        "hold: share",
    )
    assert await granted(store, replace(adaptive("a", in_flight=4), **by_day)) == (4, 4, 8, "hold: share")
    world.clock.step(1)
    assert await granted(store, replace(adaptive("a", in_flight=4), **by_night)) == (8, 8, 16, "start")
