"""Webhooks in the store: endpoints, the outbox, and the leases of couriers."""

import asyncio
import json

import pytest

from nightmill.core.audit import Actor
from nightmill.core.batch import Event
from nightmill.core.webhook import (
    OLD_SECRET_KEPT_S,
    RETRY_S,
    SENT_EVENT_TYPES,
    DeliveryAttempt,
    DeliveryState,
    WebhookEndpoint,
)
from nightmill.errors import NotFoundError, RequestError
from nightmill.ids import ProjectId

ANSWERED = DeliveryAttempt(at=1.5, duration_s=0.25, status_code=200)
REFUSED = DeliveryAttempt(at=1.5, duration_s=0.25, status_code=503)


def endpoint(world, number=1, **fields):
    given = {
        "id": f"whe_{number}",
        "project_id": world.project,
        "name": f"hook {number}",
        "url": f"https://example.com/{number}",
        "event_types": SENT_EVENT_TYPES,
        "created_at": int(world.clock()),
        "updated_at": int(world.clock()),
        "signing_secret": "whsec_bmV3",
    }
    return WebhookEndpoint(**given | fields)


async def added(world, store, number=1, **fields):
    made = endpoint(world, number, **fields)
    await store.webhook_endpoints.add(made, most=100)
    return made


async def failed_batch(world, store, **fields):
    batch = await store.batches.create(world.batch(**fields))
    return await world.apply(store, batch, Event.REJECTED)


async def lease(world, store, *, worker=None, most=100, per_endpoint=100):
    return await store.webhook_deliveries.lease(
        worker or world.worker, most=most, per_endpoint=per_endpoint, ttl_s=world.ttl_s
    )


async def finish(store, leased, state, *, next_at=0.0, attempt=ANSWERED):
    return await store.webhook_deliveries.finish(leased, state=state, next_at=next_at, attempt=attempt)


async def listed(store, endpoint_id="whe_1", **options):
    return (await store.webhook_deliveries.list(endpoint_id, **options)).items


# --- the outbox ------------------------------------------------------------------------------------------


async def test_the_end_of_a_batch_is_to_be_delivered_to_each_endpoint_that_asks_for_it(world, store):
    await added(world, store, 1)
    await added(world, store, 2, event_types=("batch.completed",))
    await added(world, store, 3, event_types=("response.failed", "batch.failed"))
    await added(world, store, 4, project_id=world.other_project)
    batch = await failed_batch(world, store)
    assert [len(await listed(store, f"whe_{number}")) for number in (1, 2, 3, 4)] == [1, 0, 1, 0]
    (first,), (third,) = await listed(store, "whe_1"), await listed(store, "whe_3")
    assert first.state is DeliveryState.PENDING
    assert first.event_id == third.event_id
    assert first.id != third.id
    assert json.loads(first.payload) == {
        "id": first.event_id,
        "object": "event",
        "type": "batch.failed",
        "created_at": batch.failed_at,
        "data": {"id": batch.id},
    }
    assert first.retry_until == pytest.approx(world.clock() + RETRY_S)


async def test_every_end_has_its_event_and_no_other_move_has_one(world, store):
    await added(world, store)
    await failed_batch(world, store)
    started = await world.start(store)
    assert len(await listed(store)) == 1
    for event in (Event.CANCEL_REQUESTED, Event.CANCELLED):
        started = await world.apply(store, started, event)
    assert {one.event_type for one in await listed(store)} == {"batch.failed", "batch.cancelled"}


async def test_a_move_that_did_not_happen_is_not_delivered(world, store):
    await added(world, store)
    batch = await store.batches.create(world.batch())
    after = batch.after(Event.REJECTED, now=world.clock())
    assert await store.batches.move(after, expected=batch.status)
    assert not await store.batches.move(after, expected=batch.status)
    assert len(await listed(store)) == 1


# --- leases ----------------------------------------------------------------------------------------------


async def test_a_delivery_is_leased_to_one_courier_until_the_lease_lapses(world, store, other_store):
    await added(world, store)
    await failed_batch(world, store)
    assert await store.webhook_deliveries.any_due()
    (first,) = await lease(world, store)
    assert first.endpoint.url == "https://example.com/1"
    assert not await store.webhook_deliveries.any_due()
    assert await lease(world, other_store, worker=world.other_worker) == ()
    world.clock.step(world.ttl_s + 1)
    (second,) = await lease(world, other_store, worker=world.other_worker)
    assert second.delivery.id == first.delivery.id
    assert not await finish(store, first, DeliveryState.FAILED), "the first courier is late"
    assert await finish(other_store, second, DeliveryState.DELIVERED)
    (one,) = await listed(store)
    assert (one.state, one.attempt_count, one.attempts) == (DeliveryState.DELIVERED, 1, (ANSWERED,))
    assert not await store.webhook_deliveries.any_due()


async def test_couriers_that_lease_at_once_never_share_a_delivery(world, store):
    await added(world, store)
    for _ in range(20):
        await failed_batch(world, store)
    stores = [world.open() for _ in range(4)]
    taken = await asyncio.gather(*(lease(world, one, most=7) for one in stores))
    ids = [leased.delivery.id for some in taken for leased in some]
    assert len(ids) == len(set(ids))
    while more := await lease(world, store):
        ids += [leased.delivery.id for leased in more]
    assert len(ids) == len(set(ids)) == 20


async def test_an_endpoint_has_no_more_in_flight_than_its_bound_and_the_others_are_served(world, store):
    await added(world, store, 1)
    for _ in range(10):
        await failed_batch(world, store)
    await added(world, store, 2)
    await failed_batch(world, store)
    first = await lease(world, store, most=5, per_endpoint=2)
    assert sorted(one.delivery.endpoint_id for one in first) == ["whe_1", "whe_1", "whe_2"]
    assert await lease(world, store, worker=world.other_worker, per_endpoint=2) == ()
    assert await finish(
        store, next(one for one in first if one.endpoint.id == "whe_1"), DeliveryState.DELIVERED
    )
    assert len(await lease(world, store, worker=world.other_worker, per_endpoint=2)) == 1


async def test_a_failed_attempt_waits_until_its_time(world, store):
    await added(world, store)
    await failed_batch(world, store)
    (first,) = await lease(world, store)
    later = world.clock() + 60
    assert await finish(store, first, DeliveryState.PENDING, next_at=later, attempt=REFUSED)
    assert await lease(world, store) == ()
    world.clock.step(61)
    (second,) = await lease(world, store)
    assert second.delivery.id == first.delivery.id
    assert (second.delivery.attempt_count, second.delivery.attempts) == (1, (REFUSED,))


@pytest.mark.parametrize("of_all", [True, False])
async def test_the_leases_of_a_dead_courier_are_released(world, store, of_all):
    await added(world, store)
    await failed_batch(world, store)
    assert await lease(world, store)
    if of_all:
        await store.leases.release_all()
    else:
        await store.leases.release_of_worker(world.other_worker)
        assert await lease(world, store) == ()
        await store.leases.release_of_worker(world.worker)
    assert len(await lease(world, store)) == 1


async def test_a_delivery_is_sent_again_on_request_whatever_became_of_it(world, store):
    await added(world, store)
    await failed_batch(world, store)
    (first,) = await lease(world, store)
    in_flight = await store.webhook_deliveries.resend(world.project, first.delivery.id)
    assert in_flight.state is DeliveryState.PENDING
    assert await lease(world, store) == (), "an attempt in flight is not doubled"
    assert await finish(store, first, DeliveryState.FAILED, attempt=REFUSED)
    world.clock.step(RETRY_S + 1)
    again = await store.webhook_deliveries.resend(world.project, first.delivery.id)
    assert (again.state, again.attempt_count, again.attempts) == (DeliveryState.PENDING, 0, (REFUSED,))
    assert again.retry_until == pytest.approx(world.clock() + RETRY_S)
    assert len(await lease(world, store)) == 1
    assert await store.webhook_deliveries.resend(world.other_project, first.delivery.id) is None


async def test_the_log_is_paged_newest_first_and_by_state(world, store):
    await added(world, store)
    batches = [await failed_batch(world, store) for _ in range(3)]
    (first,) = await lease(world, store, most=1)
    assert await finish(store, first, DeliveryState.DELIVERED)
    assert [one.batch_id for one in await listed(store)] == [batch.id for batch in reversed(batches)]
    page = await store.webhook_deliveries.list("whe_1", limit=2)
    assert page.has_more
    rest = await store.webhook_deliveries.list("whe_1", after=page.items[-1].id)
    assert [one.batch_id for one in rest.items] == [batches[0].id]
    assert not rest.has_more
    (delivered,) = await listed(store, state=DeliveryState.DELIVERED)
    assert delivered.id == first.delivery.id
    with pytest.raises(NotFoundError):
        await listed(store, after="wh_unknown")


async def test_old_deliveries_that_have_ended_leave_the_log(world, store):
    await added(world, store)
    for _ in range(2):
        await failed_batch(world, store)
    (first,) = await lease(world, store, most=1)
    assert await finish(store, first, DeliveryState.DELIVERED)
    assert await store.webhook_deliveries.delete_old(kept_s=100) == 0
    world.clock.step(101)
    assert await store.webhook_deliveries.delete_old(kept_s=100) == 1
    (left,) = await listed(store)
    assert left.state is DeliveryState.PENDING


# --- endpoints -------------------------------------------------------------------------------------------


async def test_an_endpoint_is_changed_and_its_time_moves_only_with_a_change(world, store):
    made = await added(world, store)
    world.clock.step(10)
    same = await store.webhook_endpoints.change(world.project, made.id, name=made.name)
    assert same == made
    changed = await store.webhook_endpoints.change(
        world.project, made.id, url="https://example.com/new", event_types=("batch.failed",)
    )
    assert (changed.name, changed.url, changed.event_types) == (
        made.name,
        "https://example.com/new",
        ("batch.failed",),
    )
    assert changed.updated_at == made.updated_at + 10
    assert await store.webhook_endpoints.change(world.other_project, made.id, name="x") is None


async def test_a_rotation_keeps_the_old_secret_for_a_day_or_ends_it_at_once(world, store):
    made = await added(world, store)
    kept = await store.webhook_endpoints.rotate(world.project, made.id, "whsec_dHdv", keeps_old=True)
    now = world.clock()
    assert kept.secrets_at(now) == ("whsec_dHdv", "whsec_bmV3")
    assert kept.secrets_at(now + OLD_SECRET_KEPT_S) == ("whsec_dHdv",)
    ended = await store.webhook_endpoints.rotate(world.project, made.id, "whsec_dHJl", keeps_old=False)
    assert ended.secrets_at(now) == ("whsec_dHJl",)
    assert await store.webhook_endpoints.rotate(world.other_project, made.id, "x", keeps_old=True) is None


async def test_a_deleted_endpoint_gets_nothing_more_and_its_secrets_are_forgotten(world, store):
    made = await added(world, store)
    await store.webhook_endpoints.rotate(world.project, made.id, "whsec_dHdv", keeps_old=True)
    await failed_batch(world, store)
    (held,) = await lease(world, store)
    assert not await store.webhook_endpoints.delete(world.other_project, made.id)
    assert await store.webhook_endpoints.delete(world.project, made.id)
    assert not await store.webhook_endpoints.delete(world.project, made.id)
    assert not await finish(store, held, DeliveryState.PENDING, attempt=REFUSED)
    await failed_batch(world, store)
    assert [one.state for one in await listed(store)] == [DeliveryState.FAILED]
    assert await store.webhook_endpoints.get(world.project, made.id) is None
    rows = await store.database.read(_everything)
    assert "whsec_" not in rows
    assert "example.com" not in rows


def _everything(connection):
    return str(connection.exec_driver_sql("SELECT * FROM webhook_endpoint").all())


async def test_a_project_has_no_more_endpoints_than_it_may(world, store):
    await store.webhook_endpoints.add(endpoint(world, 1), most=1)
    with pytest.raises(RequestError, match="1 is the most"):
        await store.webhook_endpoints.add(endpoint(world, 2), most=1)
    await store.webhook_endpoints.add(endpoint(world, 3, project_id=world.other_project), most=1)
    await store.webhook_endpoints.delete(world.project, "whe_1")
    await store.webhook_endpoints.add(endpoint(world, 4), most=1)


async def test_endpoints_are_paged_newest_first(world, store):
    for number in (1, 2, 3):
        await added(world, store, number)
    await added(world, store, 4, project_id=world.other_project)
    page = await store.webhook_endpoints.list(world.project, limit=2)
    assert [one.id for one in page.items] == ["whe_3", "whe_2"]
    assert page.has_more
    await store.webhook_endpoints.delete(world.project, "whe_2")
    rest = await store.webhook_endpoints.list(world.project, after="whe_2")
    assert [one.id for one in rest.items] == ["whe_1"]
    with pytest.raises(NotFoundError):
        await store.webhook_endpoints.list(world.project, after="whe_4")


async def test_a_disabled_endpoint_gets_no_events_until_it_is_enabled(world, store):
    await added(world, store)
    await failed_batch(world, store)
    disabled = await store.webhook_endpoints.disable(world.project, "whe_1")
    assert disabled is not None
    assert disabled.disabled_at is not None
    assert [it.state for it in await listed(store)] == [DeliveryState.FAILED]
    await failed_batch(world, store)
    assert len(await listed(store)) == 1
    enabled = await store.webhook_endpoints.enable(world.project, "whe_1")
    assert enabled is not None
    assert enabled.disabled_at is None
    await failed_batch(world, store)
    assert [it.state for it in await listed(store)] == [DeliveryState.PENDING, DeliveryState.FAILED]


async def test_only_a_change_is_recorded_when_an_endpoint_is_disabled_or_enabled(world, store):
    await added(world, store)
    by = Actor("key_1")
    for _ in range(2):
        await store.webhook_endpoints.disable(world.project, "whe_1", by=by)
    for _ in range(2):
        await store.webhook_endpoints.enable(world.project, "whe_1", by=by)
    entries = (await store.audit.list()).items
    assert [it.detail for it in entries] == ["enabled", "disabled"]
    assert await store.webhook_endpoints.disable(world.project, "whe_2") is None
    assert await store.webhook_endpoints.enable(ProjectId("another"), "whe_1") is None
