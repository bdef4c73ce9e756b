"""Which blows fall on whom. Pure: the same seed gives the same blows, in the same order.

A blow is short (a kill), or lasts (a freeze, a cut). What lasts goes on beside the blows that follow it, so
that a crew may be killed while the bucket is slow and another one is cut off from Postgres.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final, Literal, TypeAlias

from nightmill.torture.load import seeded
from nightmill.torture.plan import Plan

Engine: TypeAlias = Literal["local", "ray"]

LEASE_TTL_S: Final = 3.0
_PAUSE_S = (0.1, 0.8)
_DOWN_S = (0.0, 1.0)


class Blow(StrEnum):
    """What happens to whom, as the table names it."""

    SERVER_KILLED = "API server killed"
    SERVER_FROZEN = "API server frozen"
    SERVER_CUT_FROM_STORE = "API server cut from Postgres"
    SERVER_CUT_FROM_BLOBS = "API server cut from the bucket"
    WORKER_KILLED = "worker killed"
    WORKER_FROZEN = "worker frozen"
    KEEPER_KILLED = "keeper killed"
    CREW_KILLED = "crew killed"
    CREW_ORPHANED = "crew's parent killed"
    CREW_FROZEN = "crew frozen"
    CREW_CUT_FROM_STORE = "crew cut from Postgres"
    CREW_CUT_FROM_BLOBS = "crew cut from the bucket"
    NODE_KILLED = "Ray node killed"
    NODE_FROZEN = "Ray node frozen"
    HEAD_KILLED = "Ray head killed"
    STORE_RESTARTED = "Postgres restarted"
    BLOBS_AWAY = "bucket away for all"
    BLOBS_SLOW = "bucket slow for all"


_OF_BLOBS: Final = frozenset(
    {Blow.SERVER_CUT_FROM_BLOBS, Blow.CREW_CUT_FROM_BLOBS, Blow.BLOBS_AWAY, Blow.BLOBS_SLOW}
)
_OF_SERVERS: Final = frozenset(
    {Blow.SERVER_KILLED, Blow.SERVER_FROZEN, Blow.SERVER_CUT_FROM_STORE, Blow.SERVER_CUT_FROM_BLOBS}
)
_OF_RAY: Final = frozenset({Blow.NODE_KILLED, Blow.NODE_FROZEN, Blow.HEAD_KILLED})
_FOR_ALL: Final = {
    Blow.STORE_RESTARTED: "store",
    Blow.BLOBS_AWAY: "blobs",
    Blow.BLOBS_SLOW: "blobs",
}
_KILLS: Final = frozenset(
    {
        Blow.SERVER_KILLED,
        Blow.WORKER_KILLED,
        Blow.KEEPER_KILLED,
        Blow.CREW_KILLED,
        Blow.CREW_ORPHANED,
        Blow.NODE_KILLED,
        Blow.HEAD_KILLED,
    }
)
_FREEZES: Final = frozenset({Blow.SERVER_FROZEN, Blow.WORKER_FROZEN, Blow.CREW_FROZEN, Blow.NODE_FROZEN})
_COST_ANSWERS: Final = frozenset({Blow.WORKER_KILLED, Blow.WORKER_FROZEN, Blow.CREW_CUT_FROM_STORE})
_COST_ANSWERS_LOCALLY: Final = frozenset({Blow.CREW_KILLED, Blow.CREW_ORPHANED, Blow.CREW_FROZEN})


class Manner(StrEnum):
    """How a cut link behaves."""

    REFUSED = "refused"
    """Connections break, and new ones are refused."""
    SILENT = "silent"
    """Nothing moves and nothing breaks; what was sent arrives when it is over."""
    DEAF = "deaf"
    """What is sent arrives, its answers don't; then connections break."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan(Plan):
    """What was asked for.

    Args:
        store: URL of an empty database.
        blobs: URL of a bucket and a prefix in it; None is a folder.
        restart_store: a command that restarts Postgres; None plays the restart as a cut of all connections.
        engine: `ray` starts a cluster of several nodes here, and workers live on those.
    """

    store: str
    blobs: str | None = None
    restart_store: str | None = None
    engine: Engine = "local"
    servers: int = 2
    workers: int = 4
    delay_s: float = 0.2

    @property
    def crews(self) -> int:
        """Workers come in pairs; but never all in one crew, or none would be left to take over."""
        return min(self.workers, max(2, self.workers // 2))

    @property
    def workers_per_crew(self) -> int:
        return -(-self.workers // self.crews)

    @property
    def nodes(self) -> int:
        """Of the Ray cluster, besides its head. With one of them down there still is a place for all."""
        return max(2, self.crews + 1)

    @property
    def costly(self) -> frozenset[Blow]:
        """After these a line may be asked again; all others must cost nothing.

        On Ray a crew's parent, whose death nobody there notices, has no workers of its own.
        """
        if self.engine == "ray":
            return _COST_ANSWERS | _OF_RAY
        return _COST_ANSWERS | _COST_ANSWERS_LOCALLY

    @property
    def kinds(self) -> list[Blow]:
        """The blows that can be struck at such a fleet."""
        without = frozenset[Blow]() if self.blobs is not None else _OF_BLOBS
        without |= frozenset[Blow]() if self.engine == "ray" else _OF_RAY
        return [blow for blow in Blow if blow not in without]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One blow, begun `after_s` after the one before it. `for_s` is how long it lasts, or its victim is down.

    `place` is the number of the server or crew; it means nothing where all are meant.
    """

    blow: Blow
    place: int
    after_s: float
    for_s: float
    manner: Manner

    @property
    def target(self) -> str:
        """Two blows to one target don't overlap."""
        if self.blow in _FOR_ALL:
            return _FOR_ALL[self.blow]
        if self.blow in _OF_RAY:
            return "ray"
        return f"{'server' if self.blow in _OF_SERVERS else 'crew'}-{self.place + 1}"


def strikes(plan: FleetPlan) -> Iterator[Strike]:
    """So many as the plan has kills, every kind of blow as often as any other, give or take one."""
    random = seeded(plan, "strikes")
    deck: list[Blow] = []
    for _ in range(plan.kills):
        if not deck:
            deck = random.sample(plan.kinds, len(plan.kinds))
        yield _strike(deck.pop(), plan, random)


def _strike(blow: Blow, plan: FleetPlan, random: Random) -> Strike:
    return Strike(
        blow=blow,
        place=random.randrange(plan.servers if blow in _OF_SERVERS else plan.crews),
        after_s=random.uniform(*_PAUSE_S),
        for_s=_length_s(blow, random),
        manner=random.choice(list(Manner)),
    )


def _length_s(blow: Blow, random: Random) -> float:
    """A freeze outlasts the lease, or nobody would take over. A cut may end before anybody has noticed."""
    if blow in _KILLS:
        return random.uniform(*_DOWN_S)
    if blow in _FREEZES:
        return LEASE_TTL_S * random.uniform(1.2, 1.6)
    return LEASE_TTL_S * random.choice((random.uniform(0.1, 0.5), random.uniform(1.2, 1.6)))
