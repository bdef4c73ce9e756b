"""A figure, its target, and the samples behind it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Better(StrEnum):
    LOW = "at most"
    HIGH = "at least"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the table. A figure with `target` None is information and is neither met nor missed.

    `samples` has the data of each round, including rejected rounds (`foreign_share`: CPU of other processes).
    """

    row: str
    name: str
    value: float
    unit: str
    target: float | None = None
    better: Better = Better.LOW
    note: str = ""
    samples: Sequence[Any] = field(default=())

    @property
    def ratio(self) -> float | None:
        """Figure over target."""
        return None if not self.target else self.value / self.target

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.better is Better.LOW else self.value >= self.target

    @property
    def verdict(self) -> str:
        return {True: "met", False: "NOT MET", None: ""}[self.is_met]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work each row does."""

    rounds: int
    batch_lines: int
    many_lines: tuple[int, ...]
    """For memory and for what a line costs when there are many."""
    long_answer_lines: int
    busy_s: float
    small_batches: int
    intake_mib: int
    intake_lines: int
    stored_batches: int
    polls: int
    starts: int
    peer_lines: int
    fleet_rounds: int
    fleet_lines: int
    fleet_many_lines: tuple[int, ...]
    waiting_segments: int
    hammered_s: float
    engine_rounds: int
    engine_lines: int
    online_requests: int
    online_pause_s: float
    adaptive_s: float
    """Of a run with one limit on one stub engine."""
    adaptive_rounds: int
    large_lines: int
    """Of the batch that small ones wait behind."""
    online_s: float


FULL = Sizes(
    rounds=5,
    batch_lines=50_000,
    many_lines=(50_000, 1_000_000),
    long_answer_lines=20_000,
    busy_s=8.0,
    small_batches=30,
    intake_mib=200,
    intake_lines=10_000_000,
    stored_batches=100_000,
    polls=3_000,
    starts=7,
    peer_lines=2_000,
    fleet_rounds=3,
    fleet_lines=50_000,
    fleet_many_lines=(50_000, 1_000_000),
    waiting_segments=1_000_000,
    hammered_s=4.0,
    engine_rounds=3,
    engine_lines=160,
    online_requests=60,
    online_pause_s=1.0,
    adaptive_s=18.0,
    adaptive_rounds=2,
    large_lines=100_000,
    online_s=15.0,
)
QUICK = Sizes(
    rounds=2,
    batch_lines=20_000,
    many_lines=(20_000, 100_000),
    long_answer_lines=4_000,
    busy_s=3.0,
    small_batches=10,
    intake_mib=50,
    intake_lines=500_000,
    stored_batches=10_000,
    polls=500,
    starts=3,
    peer_lines=500,
    fleet_rounds=1,
    fleet_lines=20_000,
    fleet_many_lines=(20_000, 100_000),
    waiting_segments=50_000,
    hammered_s=2.0,
    engine_rounds=1,
    engine_lines=60,
    online_requests=15,
    online_pause_s=1.0,
    adaptive_s=9.0,
    adaptive_rounds=1,
    large_lines=20_000,
    online_s=6.0,
)
LONG = Sizes(
    **{name: getattr(FULL, name) for name in FULL.__slots__} | {"many_lines": (50_000, 1_000_000, 10_000_000)}
)


@dataclass(frozen=True, slots=True)
class Bench:
    """The parameters of every row: folder and sizes.

    `source` is another copy of the code to measure, `before` an earlier version to compare with.
    """

    folder: Path
    sizes: Sizes
    source: Path | None = None
    before: Path | None = None


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quiet_first(samples: Sequence[dict[str, Any]], *, foreign_share: float = 0.15) -> list[dict[str, Any]]:
    """The samples with little foreign CPU; all samples if there are fewer than two of those."""
    quiet = [sample for sample in samples if sample.get("foreign_share", 0.0) <= foreign_share]
    return quiet if len(quiet) >= 2 else list(samples)
