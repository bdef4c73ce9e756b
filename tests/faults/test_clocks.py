"""Clocks that step: stamps stay in order, deadlines don't pass early, and leases cost nothing but time."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.batch import Batch, Status
from nightmill.core.outcome import Outcome
from nightmill.runtime.steady_clock import SteadyClock
from nightmill.store import open_store
from tests.faults.conftest import FaultyMill
from tests.roles.conftest import answer, request_lines

HOUR_S = 3_600.0
DAY_S = 24 * HOUR_S
DOUBT_S = 60.0


class Hands:
    """A wall clock whose hands a test moves, and the steady clock that looks at it."""

    def __init__(self, *, doubt_s: float) -> None:
        self.ahead_s = 0.0
        self.clock = SteadyClock(wall=self.wall, monotonic=time.monotonic, doubt_s=doubt_s)

    def wall(self) -> float:
        return time.time() + self.ahead_s


Mills = Callable[[Callable[[], float]], FaultyMill]


@pytest.fixture
async def stepping(mill: FaultyMill) -> AsyncIterator[Mills]:
    stores = []

    def with_clock(clock: Callable[[], float]) -> FaultyMill:
        """The roles, all on one movable clock."""
        store = open_store(mill.settings.store_url, clock=clock)
        stores.append(store)
        moved = FaultyMill(mill.folder, store, mill.blobs, mill.settings)
        moved.clock = clock
        return moved

    yield with_clock
    for store in stores:
        await store.close()


def assert_in_order(batch: Batch) -> None:
    stamps = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert None not in stamps
    assert stamps == sorted(stamps)  # type: ignore[type-var]


async def run_through_a_step(
    mill: FaultyMill, hands: Hands, *, step_s: float, back_after_s: float | None
) -> tuple[Batch, Counter[bytes]]:
    """A batch of a second or so, in the middle of which the clock steps, and perhaps back again."""
    sent = Counter[bytes]()

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent[body] += 1
        if len(sent) == 30:
            asyncio.get_running_loop().create_task(step())
        await asyncio.sleep(0.02)
        return answer()

    async def step() -> None:
        hands.ahead_s += step_s
        if back_after_s is not None:
            await asyncio.sleep(back_after_s)
            hands.ahead_s -= step_s

    batch = await mill.accepted(request_lines(200), window_s=1_800)
    [ended] = await mill.run_to_the_end(mill.worker(send, slots=4), batch)
    return ended, sent


@pytest.mark.parametrize("step_s", [HOUR_S, 30 * DAY_S, -HOUR_S, -30 * DAY_S])
async def test_a_step_that_is_taken_back_changes_nothing(stepping: Mills, step_s: float):
    hands = Hands(doubt_s=DOUBT_S)
    ended, sent = await run_through_a_step(stepping(hands.clock), hands, step_s=step_s, back_after_s=0.4)
    assert (ended.status, ended.tally.completed) == (Status.COMPLETED, 200)
    assert set(sent.values()) == {1}
    assert_in_order(ended)
    assert abs((ended.completed_at or 0) - time.time()) < 10


async def test_a_step_back_that_lasts_keeps_the_stamps_in_order_and_loses_nothing(stepping: Mills):
    hands = Hands(doubt_s=0.2)
    ended, sent = await run_through_a_step(stepping(hands.clock), hands, step_s=-DAY_S, back_after_s=None)
    assert (ended.status, ended.tally.completed) == (Status.COMPLETED, 200)
    assert set(sent.values()) == {1}
    assert_in_order(ended)


async def test_a_step_ahead_that_lasts_is_followed_and_the_batch_ends_by_its_deadline(stepping: Mills):
    hands = Hands(doubt_s=0.2)
    mill = stepping(hands.clock)
    ended, sent = await run_through_a_step(mill, hands, step_s=HOUR_S, back_after_s=None)
    assert ended.status is Status.EXPIRED
    assert 0 < ended.tally.completed < 200
    assert max(sent.values()) == 1
    rows = [*await mill.rows(ended.output_file_id), *await mill.rows(ended.error_file_id)]
    assert len({row["custom_id"] for row in rows}) == len(rows) == 200


async def test_without_the_doubt_a_moment_ahead_would_have_expired_the_batch(stepping: Mills):
    """That the tests above would see it."""
    hands = Hands(doubt_s=DOUBT_S)
    ended, _ = await run_through_a_step(stepping(hands.wall), hands, step_s=HOUR_S, back_after_s=0.4)
    assert ended.status is not Status.COMPLETED or ended.completed_at is None


async def test_a_lasting_step_ahead_while_idle_takes_no_lease_from_a_worker_for_good(stepping: Mills):
    """Maintenance follows the step before the worker does: the leases look lapsed, and are taken again."""
    hands = Hands(doubt_s=0.0)
    mill = stepping(hands.clock)
    slow = SteadyClock(wall=hands.wall, doubt_s=DOUBT_S)
    sent = Counter[bytes]()

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent[body] += 1
        if len(sent) == 20:
            hands.ahead_s = 120.0
        await asyncio.sleep(0.01)
        return answer()

    batch = await mill.accepted(request_lines(100))
    worker = mill.worker(send, slots=4, clock=slow)
    [ended] = await mill.run_to_the_end(worker, batch)
    assert (ended.status, ended.tally.completed) == (Status.COMPLETED, 100)
    assert sum(sent.values()) <= 100 + 2 * 4 + 5
    rows = await mill.rows(ended.output_file_id)
    assert len({row["custom_id"] for row in rows}) == len(rows) == 100


class Moment:
    """Both clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        self.monotonic_s = 1_000.0
        self.ahead_s = 1_700_000_000.0

    def wall(self) -> float:
        return self.monotonic_s + self.ahead_s

    def monotonic(self) -> float:
        return self.monotonic_s


steps = st.lists(
    st.tuples(st.floats(0.0, 40.0), st.sampled_from([0.0, 0.4, -0.4, HOUR_S, -HOUR_S, DAY_S, 2.0, -2.0])),
    max_size=30,
)


@given(steps=steps)
def test_the_clock_goes_on_as_time_does_or_shows_the_wall_and_believes_what_lasts(
    steps: list[tuple[float, float]],
):
    moment = Moment()
    clock = SteadyClock(wall=moment.wall, monotonic=moment.monotonic, doubt_s=DOUBT_S)
    shown = clock()
    for passed_s, step_s in steps:
        moment.monotonic_s += passed_s
        moment.ahead_s += step_s
        before, shown = shown, clock()
        # It either went on as time does, give or take drift, or it shows what the wall shows.
        assert shown == moment.wall() or abs(shown - before - passed_s) < 1e-3
    clock()
    moment.monotonic_s += DOUBT_S + 1
    assert clock() == moment.wall()


def test_two_steps_in_a_row_are_each_doubted_for_the_whole_time():
    moment = Moment()
    clock = SteadyClock(wall=moment.wall, monotonic=moment.monotonic, doubt_s=DOUBT_S)
    began = clock()
    for _ in range(5):
        moment.ahead_s += HOUR_S
        for _ in range(5):
            assert clock() == pytest.approx(began + moment.monotonic_s - 1_000.0)
            moment.monotonic_s += 10.0
    moment.monotonic_s += 20.0
    assert clock() == moment.wall()
