"""What is killed when. Pure: the same seed gives the same rounds.

A round is one start of the server. Points of the children are armed together, for their processes die and are
started again by themselves; a point that the API passes stands alone, for the API is the parent and its death
ends the round. A round without one ends with a kill of everything or of the API alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random

from nightmill.failpoints import FAILPOINTS, Failpoint

_OFTEN_PASSED = ("part.", "worker.before_beat", "worker.beaten", "worker.before_lease", "worker.leased")
_EARLY = 0.25
_START_S = 1.5


class Target(StrEnum):
    """Who gets the SIGKILL."""

    ALL = "all"
    API = "api"
    WORKER = "worker"
    KEEPER = "keeper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for. `folder` must be empty or missing."""

    folder: Path
    kills: int = 100
    seed: int = 0
    lines: int = 400
    batches: int = 4
    workers: int = 2
    concurrency: int = 32
    delay_s: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """A kill at a random instant: so long after the server answers, or after its start if `is_early`."""

    target: Target
    after_s: float
    is_early: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One start of the server.

    `points` of children are armed for their n-th pass; `front` is one that the API passes; `blows` come after
    all points were struck, the last of them ends the round.
    """

    points: tuple[tuple[Failpoint, int], ...] = ()
    front: Failpoint | None = None
    blows: tuple[Blow, ...] = ()

    @property
    def kills(self) -> int:
        return len(self.points) + (self.front is not None) + len(self.blows)

    @property
    def armed(self) -> str:
        front = () if self.front is None else ((self.front, 1),)
        return ",".join(f"{name}:{number}" for name, number in (*self.points, *front))


def is_of_the_front(name: Failpoint) -> bool:
    """Whether the API process passes it. So does everybody else who writes or deletes a blob."""
    return name.startswith(("api.", "serve.", "blob."))


def rounds(plan: Plan, points: Sequence[Failpoint] = FAILPOINTS) -> Iterator[Round]:
    """Rounds with at least `plan.kills` kills in all, named points first among them as far as they fit."""
    random = Random(plan.seed)  # noqa: S311 - a run that can be repeated is the very aim
    played = list(rounds_of(points, random))
    random.shuffle(played)
    left = plan.kills
    for one in played:
        if one.kills <= left:
            left -= one.kills
            yield one
    while left > 0:
        one = Round(blows=_blows(random, children=min(random.randrange(3), left - 1)))
        left -= one.kills
        yield one


def rounds_of(points: Sequence[Failpoint], random: Random) -> Iterator[Round]:
    """Rounds that play each of the points once."""
    front: list[Failpoint] = [name for name in points if is_of_the_front(name)]
    worker: list[Failpoint] = [name for name in points if name.startswith(("worker.", "part."))]
    keeper: list[Failpoint] = [name for name in points if name not in front and name not in worker]
    for names in (front, worker, keeper):
        random.shuffle(names)
    for name in front:
        yield Round(front=name)
    while worker or keeper:
        together: list[Failpoint] = [names.pop() for names in (worker, worker, keeper, keeper) if names]
        armed: list[tuple[Failpoint, int]] = [(name, _pass_number(random, name)) for name in together]
        yield Round(points=tuple(armed), blows=(_last_blow(random),))


def _pass_number(random: Random, name: Failpoint) -> int:
    return random.randint(1, 5) if name.startswith(_OFTEN_PASSED) else 1


def _blows(random: Random, *, children: int) -> tuple[Blow, ...]:
    child_blows = [_blow(random, Target.WORKER, Target.KEEPER) for _ in range(children)]
    if not child_blows and random.random() < _EARLY:
        return (Blow(target=Target.ALL, after_s=random.uniform(0.0, _START_S), is_early=True),)
    return (*child_blows, _last_blow(random))


def _last_blow(random: Random) -> Blow:
    return _blow(random, Target.ALL, Target.ALL, Target.API)


def _blow(random: Random, *targets: Target) -> Blow:
    return Blow(target=random.choice(targets), after_s=random.uniform(0.0, 0.8))
