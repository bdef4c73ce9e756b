import asyncio
from collections.abc import Callable

from nightmill.errors import UnavailableError
from nightmill.roles.loop import Bell, keep_turning
from nightmill.telemetry import Event, RoleFailed


class Turner:
    name = "turner"

    def __init__(self, *turns: Callable[[], float]) -> None:
        self._turns = list(turns)

    async def turn(self) -> float:
        return self._turns.pop(0)()


async def turned(role: Turner, *, bell: Bell, stop: asyncio.Event) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(5):
        await keep_turning(role, bell=bell, stop=stop, emit=events.append, random=lambda: 0.5)
    return events


async def test_a_role_turns_until_it_is_stopped():
    stop = asyncio.Event()

    def last() -> float:
        stop.set()
        return 0

    assert await turned(Turner(lambda: 0, lambda: 0, last), bell=Bell(), stop=stop) == []


async def test_a_ring_during_a_turn_is_not_slept_over():
    stop, bell = asyncio.Event(), Bell()

    def rung() -> float:
        bell.ring()
        return 3_600

    def last() -> float:
        stop.set()
        return 0

    await turned(Turner(rung, last), bell=bell, stop=stop)


async def test_a_role_outlives_the_errors_of_its_turns():
    stop, bell = asyncio.Event(), Bell()

    def away() -> float:
        raise UnavailableError("away", retry_after_s=0)

    def broken() -> float:
        stop.set()
        raise ValueError

    events = await turned(Turner(away, broken), bell=bell, stop=stop)
    assert [type(event) for event in events] == [RoleFailed, RoleFailed]


async def test_a_ring_reaches_other_processes_but_a_ring_from_them_does_not_go_back():
    outward: list[int] = []
    bell = Bell(lambda: outward.append(1))
    bell.ring_here()
    assert (bell.rings, outward) == (1, [])
    bell.ring()
    assert (bell.rings, outward) == (2, [1])


async def test_one_ring_wakes_every_role_that_waits():
    bell = Bell()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(bell.wait(since=bell.rings, timeout_s=3_600))
        await asyncio.sleep(0)
        bell.ring()
