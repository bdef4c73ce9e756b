"""Runs of the real worker in virtual time, recorded as samples of each batch, and forecasts replayed on them.

The servers differ in speed, in slots and in the length of answers; they become slower or faster by and by, or
at once; some refuse or fail a part of the requests. Other batches come and go beside the one that is looked
at. A seed makes a run, so that the runs by which the forecast was fitted are not those that test it.
"""

import asyncio
import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nightmill.core.forecast import Errors, Estimate, Sample, estimate, is_stalled, range_s
from nightmill.core.outcome import Outcome
from tests.simulation.simulator import Call, Server, error, good
from tests.simulation.worker_simulator import SimulatedBatch, run_worker

SAMPLED_EVERY_S = 5.0
_LONGEST_S = 20_000.0
PLACES = (0.03, 0.08, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93)
"""At these parts of its duration a forecast of a batch is made."""


@dataclass(frozen=True)
class Recorded:
    """One batch of a run: the virtual times at which its lines were answered, and when it began."""

    name: str
    began_at: float
    total: int
    answered_at: Sequence[float]
    started_at: Sequence[float]

    @property
    def ended_at(self) -> float:
        return self.answered_at[-1]

    def samples(self, until: float) -> list[Sample]:
        """As the observer takes them, every few seconds and at last now."""
        times = [self.began_at]
        while times[-1] + SAMPLED_EVERY_S < until:
            times.append(times[-1] + SAMPLED_EVERY_S)
        return [self._sample(at) for at in (*times, until)]

    def _sample(self, at: float) -> Sample:
        answered = bisect_right(self.answered_at, at)
        return Sample(at, answered, in_flight=max(0, bisect_right(self.started_at, at) - answered))


def record(seed: int) -> list[Recorded]:
    """The batches of one run that were answered in full."""
    chance = random.Random(seed)
    batches = list(_batches(chance))
    lines = sum(batch.count for batch in batches)
    answered: dict[str, list[float]] = {batch.name: [] for batch in batches}
    started: dict[str, list[float]] = {batch.name: [] for batch in batches}
    stop = asyncio.Event()
    answer_s = _answer_s(chance)
    failing = chance.choice([0.0, 0.0, 0.01, 0.05])
    status = chance.choice([429, 500, 503])
    seen: Counter[str] = Counter()

    async def script(_: Server, call: Call) -> Outcome:
        loop = asyncio.get_running_loop()
        name, _space, ordinal = call.content.partition(" ")
        if name not in answered:
            return good()
        seen[call.content] += 1
        if seen[call.content] == 1:
            started[name].append(call.at)
        await asyncio.sleep(answer_s(loop.time(), int(ordinal)))
        if chance.random() < failing:
            return error(status)
        answered[name].append(loop.time())
        if sum(map(len, answered.values())) == lines:
            stop.set()
        return good()

    slots = chance.choice([4, 8, 16, 32, 64])
    run_worker(Server(script), batches, until_s=_LONGEST_S, slots=slots, stop=stop)
    return [
        Recorded(batch.name, started[batch.name][0], batch.count, answered[batch.name], started[batch.name])
        for batch in batches
        if len(answered[batch.name]) == batch.count
    ]


def _batches(chance: random.Random) -> Iterator[SimulatedBatch]:
    for number in range(chance.choice([1, 1, 2, 3, 4])):
        count = int(math.exp(chance.uniform(math.log(100), math.log(2_500))))
        at = 0.0 if number == 0 else chance.uniform(0.0, 200.0)
        yield SimulatedBatch(
            f"b{number}",
            count,
            at=at,
            project=chance.choice(["default", "other"]),
            priority=chance.choice([0, 0, 1]),
        )


def _answer_s(chance: random.Random) -> Callable[[float, int], float]:
    """The time of an answer by the time of day and the place of the line in its batch."""
    mean_s = math.exp(chance.uniform(math.log(0.5), math.log(15.0)))
    spread = chance.choice([0.2, 0.5, 0.9])
    swing, period_s = chance.choice([0.0, 0.1, 0.3]), chance.uniform(60.0, 1_200.0)
    phase = chance.uniform(0.0, 2 * math.pi)
    change_at, change = chance.uniform(20.0, 600.0), chance.choice([1.0, 1.0, 1.0, 0.6, 1.7])
    growth = chance.choice([0.0, 0.0, 0.0003, -0.0001])

    def seconds(now: float, ordinal: int) -> float:
        factor = math.exp(swing * math.sin(2 * math.pi * now / period_s + phase))
        factor *= change if now > change_at else 1.0
        factor *= max(0.3, 1.0 + growth * ordinal)
        return mean_s * factor * chance.lognormvariate(-(spread**2) / 2, spread)

    return seconds


# --- replay -------------------------------------------------------------------------------------------------

EDGES = (0.05, 0.2, 0.5, 0.8, 0.95, 1.0)


@dataclass(frozen=True)
class Replayed:
    """One forecast that was made of a recorded batch, and the true time that was left."""

    found: Estimate
    left_s: float
    is_shared: bool

    @property
    def error(self) -> float:
        """As `Errors`."""
        return math.log(self.left_s / self.found.left_s) / self.found.scale

    @property
    def is_in_range(self) -> bool:
        low_s, _, high_s = range_s(self.found, is_shared=self.is_shared)
        return low_s <= self.left_s <= high_s

    @property
    def range_ratio(self) -> float:
        """How many times the earliest end the latest one is."""
        low_s, _, high_s = range_s(self.found, is_shared=self.is_shared)
        return high_s / max(low_s, 1e-3)


def replay(run: Sequence[Recorded]) -> Iterator[Replayed]:
    """Forecasts of each batch of a run, at `PLACES`."""
    for batch in run:
        for place in PLACES:
            at = batch.began_at + place * (batch.ended_at - batch.began_at)
            is_shared = any(other is not batch and other.began_at <= at < other.ended_at for other in run)
            samples = batch.samples(at)
            found = estimate(samples, batch.total, is_shared=is_shared)
            if found is not None and not is_stalled(samples):
                yield Replayed(found, batch.ended_at - at, is_shared)


def fitted(replayed: Sequence[Replayed]) -> list[Errors]:
    """The quantiles of the errors, as `core.forecast` has them."""
    found: list[Errors] = []
    for low, high in zip((0.0, *EDGES), EDGES, strict=False):
        errors = sorted(one.error for one in replayed if low < one.found.progress <= high)
        quantiles = (errors[int(part * (len(errors) - 1))] for part in (0.1, 0.5, 0.9))
        found.append(Errors(high, *(round(quantile, 2) for quantile in quantiles)))
    return found
