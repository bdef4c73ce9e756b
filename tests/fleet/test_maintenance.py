"""When maintenance takes leases back: only after the store has answered for the length of a lease."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from nightmill.core.clocks import Clocks
from nightmill.errors import UnavailableError
from nightmill.roles.loop import Notifier
from nightmill.roles.maintenance import Maintenance, MaintenanceOptions

TTL_S = 30.0


class Watched:
    """A store of which only the leases matter."""

    def __init__(self) -> None:
        self.reaped = 0
        self.is_away = False
        self.segments = SimpleNamespace(release_expired=self.release_expired)
        self.batches = SimpleNamespace(overdue=self.nothing, ended=self.nothing)
        self.uploads = SimpleNamespace(expire=self.nothing)
        self.files = SimpleNamespace(delete_expired=self.nothing)
        self.blob_references = SimpleNamespace(unused=self.nothing)

    async def release_expired(self) -> int:
        self._touch()
        self.reaped += 1
        return 0

    async def nothing(self, *_: Any) -> list[Any]:
        self._touch()
        return []

    def _touch(self) -> None:
        if self.is_away:
            raise UnavailableError("away")


class Nothing:
    async def batches(self) -> list[Any]:
        return []


class World:
    def __init__(self) -> None:
        self.now = 1_000.0
        self.store = Watched()
        store: Any = self.store
        nothing: Any = Nothing()
        self.maintenance = Maintenance(
            store=store,
            blobs=nothing,
            parts=nothing,
            options=MaintenanceOptions(
                sweep_s=1e9, audit_ttl_s=0, lease_ttl_s=TTL_S, deliveries_kept_s=86_400
            ),
            notifier=Notifier(),
            emit=lambda _: None,
            clocks=Clocks(wall=time.time, monotonic=lambda: self.now, random=lambda: 0.5),
        )
        self.maintenance._next_sweep = 1e12

    async def look(self, *, every_s: float, for_s: float) -> int:
        """How often leases were taken back."""
        before, until = self.store.reaped, self.now + for_s
        while self.now < until:
            await self.maintenance.turn()
            self.now += every_s
        return self.store.reaped - before


@pytest.fixture
def world() -> World:
    return World()


async def test_a_new_process_waits_as_long_as_a_lease_lasts(world):
    assert await world.look(every_s=1, for_s=TTL_S) == 0
    assert await world.look(every_s=1, for_s=5) == 5


async def test_after_an_outage_it_waits_again(world):
    await world.look(every_s=1, for_s=TTL_S + 5)
    world.store.is_away = True
    with pytest.raises(UnavailableError):
        await world.maintenance.turn()
    world.store.is_away = False
    world.now += 3
    assert await world.look(every_s=1, for_s=TTL_S) == 0
    assert await world.look(every_s=1, for_s=5) == 5


async def test_a_process_that_was_frozen_may_have_missed_an_outage(world):
    await world.look(every_s=1, for_s=TTL_S + 5)
    world.now += TTL_S + 1
    assert await world.look(every_s=1, for_s=TTL_S) == 0
    assert await world.look(every_s=1, for_s=5) == 5
