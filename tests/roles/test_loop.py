import asyncio
from collections.abc import Callable

from nightmill.errors import UnavailableError
from nightmill.roles.loop import Notifier, keep_turning
from nightmill.telemetry import Event, RoleFailed


class Turner:
    name = "turner"

    def __init__(self, *turns: Callable[[], float]) -> None:
        self._turns = list(turns)

    async def turn(self) -> float:
        return self._turns.pop(0)()


async def turned(role: Turner, *, notifier: Notifier, stop: asyncio.Event) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(60):
        await keep_turning(role, notifier=notifier, stop=stop, emit=events.append, random=lambda: 0.5)
    return events


async def test_a_role_turns_until_it_is_stopped():
    stop = asyncio.Event()

    def last() -> float:
        stop.set()
        return 0

    assert await turned(Turner(lambda: 0, lambda: 0, last), notifier=Notifier(), stop=stop) == []


async def test_a_ring_during_a_turn_is_not_slept_over():
    stop, notifier = asyncio.Event(), Notifier()

    def rung() -> float:
        notifier.notify()
        return 3_600

    def last() -> float:
        stop.set()
        return 0

    await turned(Turner(rung, last), notifier=notifier, stop=stop)


async def test_a_role_outlives_the_errors_of_its_turns():
    stop, notifier = asyncio.Event(), Notifier()

    def away() -> float:
        raise UnavailableError("away", retry_after_s=0)

    def broken() -> float:
        stop.set()
        raise ValueError

    events = await turned(Turner(away, broken), notifier=notifier, stop=stop)
    assert [type(event) for event in events] == [RoleFailed, RoleFailed]


async def test_a_ring_reaches_other_processes_but_a_ring_from_them_does_not_go_back():
    notify_others: list[int] = []
    notifier = Notifier(lambda: notify_others.append(1))
    notifier.notify_local()
    assert (notifier.count, notify_others) == (1, [])
    notifier.notify()
    assert (notifier.count, notify_others) == (2, [1])


async def test_one_ring_wakes_every_role_that_waits():
    notifier = Notifier()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(notifier.wait(since=notifier.count, timeout_s=3_600))
        await asyncio.sleep(0)
        notifier.notify()
