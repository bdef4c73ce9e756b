"""Plan of a run: which faults are injected, where, and when. Pure: the same seed gives the same injections.

A run on one machine has one member, `nightmill serve` with its workers, and no links. Its injections are
kills, at failpoints first and at random instants after them. Failpoints of the children are armed together,
because the children die and are started again by themselves. A failpoint that the API process passes is armed
alone, because the API process is the parent and its death ends the server.

A fleet has API servers and worker hosts (`nightmill work`) behind links to Postgres and to the bucket. Every
fault is injected as often as any other. A fault that lasts (a freeze, a cut) overlaps the next faults.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from random import Random
from typing import Final, Literal, TypeAlias

from nightmill.failpoints import FAILPOINTS, Failpoint

Engine: TypeAlias = Literal["local", "ray"]
Scope: TypeAlias = Literal["server", "host", "ray", "store", "blobs", "upstream"]
"""What a fault meets: a member (`host` is one that holds the roles), Ray, or a service of all members."""
Action: TypeAlias = Literal[
    "failpoint", "kill", "freeze", "cut store", "cut blobs", "slow blobs", "restart store", "cut upstream"
]
Part: TypeAlias = Literal["all", "parent", "worker", "background", "node", "head"]
"""Which processes of the target; `background` is the process of intake, finalizer and maintenance."""

LEASE_TTL_S: Final = 3.0
UPSTREAMS: Final = {"first": ("shared", "one"), "second": ("shared", "two")}
"""The upstreams of a run, each with its models."""
_OFTEN_PASSED = ("part.", "worker.before_beat", "worker.beaten", "worker.before_lease", "worker.leased")
_EARLY_SHARE = 0.25
_START_S = 1.5
_KILL_AFTER_S = (0.0, 0.8)
_PAUSE_S = (0.1, 0.8)
_DOWN_S = (0.0, 1.0)
_UPSTREAM_DOWN_S = (0.2, 1.5)


class Manner(StrEnum):
    """How a cut link behaves."""

    REFUSED = "refused"
    """Connections break, and new connections are refused."""
    SILENT = "silent"
    """No byte moves and no connection breaks; what was sent arrives after the cut."""
    DEAF = "deaf"
    """Requests arrive, answers are dropped; connections break after the cut."""


class Fault(Enum):
    """A kind of fault: its title in the report, what it meets, and what is done to which processes."""

    FAILPOINT = "killed at a failpoint", "server", "failpoint"
    SERVER_KILLED = "server killed", "server", "kill"
    SERVER_ORPHANED = "server's parent killed", "server", "kill", "parent"
    SERVER_FROZEN = "server frozen", "server", "freeze"
    SERVER_CUT_FROM_STORE = "server cut from Postgres", "server", "cut store"
    SERVER_CUT_FROM_BLOBS = "server cut from the bucket", "server", "cut blobs"
    WORKER_KILLED = "worker killed", "host", "kill", "worker"
    WORKER_FROZEN = "worker frozen", "host", "freeze", "worker"
    BACKGROUND_KILLED = "background process killed", "host", "kill", "background"
    HOST_KILLED = "worker host killed", "host", "kill"
    HOST_ORPHANED = "worker host's parent killed", "host", "kill", "parent"
    HOST_FROZEN = "worker host frozen", "host", "freeze"
    HOST_CUT_FROM_STORE = "worker host cut from Postgres", "host", "cut store"
    HOST_CUT_FROM_BLOBS = "worker host cut from the bucket", "host", "cut blobs"
    NODE_KILLED = "Ray node killed", "ray", "kill", "node"
    NODE_FROZEN = "Ray node frozen", "ray", "freeze", "node"
    HEAD_KILLED = "Ray head killed", "ray", "kill", "head"
    STORE_RESTARTED = "Postgres restarted", "store", "restart store"
    BLOBS_CUT = "bucket away for all", "blobs", "cut blobs"
    BLOBS_SLOW = "bucket slow for all", "blobs", "slow blobs"
    UPSTREAM_KILLED = "upstream killed", "upstream", "cut upstream"

    def __init__(self, title: str, scope: Scope, action: Action, part: Part = "all") -> None:
        self.title = title
        self.scope: Scope = scope
        self.action: Action = action
        self.part: Part = part


_NOT_IN_A_FLEET: Final = {Fault.FAILPOINT, Fault.SERVER_ORPHANED}
_ON_ONE_MACHINE: Final = _NOT_IN_A_FLEET | {
    Fault.SERVER_KILLED,
    Fault.WORKER_KILLED,
    Fault.BACKGROUND_KILLED,
    Fault.UPSTREAM_KILLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Options of a run.

    Args:
        folder: holds the data folder and the logs; must be empty or missing.
        kills: injections in all, at least.
        batches: open at once.
        workers: processes in all; None is 2 on one machine and 4 in a fleet.
        store: URL of an empty Postgres database; with it the run is that of a fleet.
        blobs: URL of a bucket and a prefix in it; None is a folder.
        restart_store: a command that restarts Postgres; None cuts all connections in place of a restart.
        engine: `ray` starts a cluster of several nodes on this machine, where the workers run.
    """

    folder: Path
    kills: int = 100
    seed: int = 0
    lines: int = 400
    batches: int = 4
    workers: int | None = None
    concurrency: int = 32
    store: str | None = None
    blobs: str | None = None
    restart_store: str | None = None
    engine: Engine = "local"

    @property
    def is_fleet(self) -> bool:
        return self.store is not None

    @property
    def delay_s(self) -> float:
        """How long the upstream takes for an answer."""
        return 0.2 if self.is_fleet else 0.02

    @property
    def servers(self) -> int:
        return 2 if self.is_fleet else 1

    @property
    def worker_hosts(self) -> int:
        """Workers come in pairs, but never all on one host: another host must be left to take over."""
        return min(self.all_workers, max(2, self.all_workers // 2)) if self.is_fleet else 0

    @property
    def all_workers(self) -> int:
        return self.workers or (4 if self.is_fleet else 2)

    @property
    def workers_per_member(self) -> int:
        """Of a worker host, or of the only server."""
        return -(-self.all_workers // (self.worker_hosts or 1))

    @property
    def upstream_concurrency(self) -> int:
        """Attempts in flight at each upstream."""
        return -(-self.concurrency // len(UPSTREAMS))

    @property
    def nodes(self) -> int:
        """Nodes of the Ray cluster besides its head. With one node down there is room for all workers."""
        return max(2, self.worker_hosts + 1)

    @property
    def faults(self) -> list[Fault]:
        """The faults that can be injected with these options."""
        return [fault for fault in Fault if self._applies(fault)]

    def _applies(self, fault: Fault) -> bool:
        if not self.is_fleet:
            return fault in _ON_ONE_MACHINE
        if fault in _NOT_IN_A_FLEET:
            return False
        if fault.action in ("cut blobs", "slow blobs"):
            return self.blobs is not None
        return fault.scope != "ray" or self.engine == "ray"

    def may_repeat(self, fault: Fault) -> bool:
        """Whether lines may be sent again after the fault. All other faults must cost nothing.

        On Ray a worker host holds no workers itself, and its workers outlive it.
        """
        if fault.scope == "upstream":
            return True
        if fault.part == "background" or fault.action not in ("kill", "freeze", "cut store"):
            return False
        if self.engine == "ray" and fault.scope == "host":
            return fault.part == "worker" or fault.action == "cut store"
        return fault.scope != "server" or not self.is_fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """One fault.

    Args:
        target: the member, or the service of all members. Two injections into one target do not overlap.
        after_s: pause before it: after the start of the server if `is_early`, else once the target is at work
            and every failpoint was reached.
        for_s: how long the fault lasts, or a killed target stays down.
        points: failpoints, each with the pass at which it kills, that the server is started with.
    """

    fault: Fault
    target: str
    after_s: float = 0.0
    for_s: float = 0.0
    manner: Manner = Manner.REFUSED
    points: tuple[tuple[Failpoint, int], ...] = ()
    is_early: bool = False

    @property
    def kills(self) -> int:
        return len(self.points) + (self.fault is not Fault.FAILPOINT)

    @property
    def armed(self) -> str:
        """The failpoints as `nightmill.failpoints` reads them."""
        return ",".join(f"{name}:{number}" for name, number in self.points)


def seeded(plan: Plan, purpose: str) -> Random:
    return Random(f"{plan.seed} {purpose}")  # noqa: S311 - a seed must repeat the choices


def injections(plan: Plan, points: Sequence[Failpoint] = FAILPOINTS) -> Iterator[Injection]:
    """At least `plan.kills` kills on one machine; exactly so many injections in a fleet."""
    random = seeded(plan, "injections")
    return _in_a_fleet(plan, random) if plan.is_fleet else _on_one_machine(plan, points, random)


def server_name(place: int = 0) -> str:
    return f"server-{place + 1}"


def host_name(place: int) -> str:
    return f"host-{place + 1}"


# --- one machine -----------------------------------------------------------------------------------------


def is_of_parent(name: Failpoint) -> bool:
    """Whether the API process passes the failpoint. Every process that writes a blob passes `blob.`, too."""
    return name.startswith(("api.", "serve.", "blob."))


def is_of_worker(name: Failpoint) -> bool:
    return name.startswith(("worker.", "part."))


def at_failpoints(points: Sequence[Failpoint], random: Random) -> Iterator[Injection]:
    """Reach each of the failpoints once."""
    parent: list[Failpoint] = [name for name in points if is_of_parent(name)]
    worker: list[Failpoint] = [name for name in points if is_of_worker(name)]
    background: list[Failpoint] = [name for name in points if name not in parent and name not in worker]
    for names in (parent, worker, background):
        random.shuffle(names)
    for name in parent:
        yield Injection(fault=Fault.FAILPOINT, target=server_name(), points=((name, 1),))
    while worker or background:
        together: list[Failpoint] = [
            names.pop() for names in (worker, worker, background, background) if names
        ]
        armed: list[tuple[Failpoint, int]] = [(name, _pass_number(random, name)) for name in together]
        yield _last_kill(random, tuple(armed))


def _pass_number(random: Random, name: Failpoint) -> int:
    return random.randint(1, 5) if name.startswith(_OFTEN_PASSED) else 1


def _on_one_machine(plan: Plan, points: Sequence[Failpoint], random: Random) -> Iterator[Injection]:
    named = list(at_failpoints(points, random))
    random.shuffle(named)
    left = plan.kills
    for injection in named:
        if injection.kills <= left:
            left -= injection.kills
            yield injection
    while left > 0:
        children = min(random.randrange(3), left - 1)
        for _ in range(children):
            yield _kill(random, Fault.WORKER_KILLED, Fault.BACKGROUND_KILLED, Fault.UPSTREAM_KILLED)
        if children == 0 and random.random() < _EARLY_SHARE:
            after_s = random.uniform(0.0, _START_S)
            yield Injection(fault=Fault.SERVER_KILLED, target=server_name(), after_s=after_s, is_early=True)
        else:
            yield _last_kill(random)
        left -= children + 1


def _last_kill(random: Random, points: tuple[tuple[Failpoint, int], ...] = ()) -> Injection:
    return _kill(random, Fault.SERVER_KILLED, Fault.SERVER_KILLED, Fault.SERVER_ORPHANED, points=points)


def _kill(random: Random, *faults: Fault, points: tuple[tuple[Failpoint, int], ...] = ()) -> Injection:
    after_s = random.uniform(*_KILL_AFTER_S)
    fault = random.choice(faults)
    if fault is Fault.UPSTREAM_KILLED:  # it may still be down when the server is killed
        target, for_s = random.choice(list(UPSTREAMS)), random.uniform(*_UPSTREAM_DOWN_S)
        return Injection(fault=fault, target=target, after_s=after_s, for_s=for_s)
    return Injection(fault=fault, target=server_name(), after_s=after_s, points=points)


# --- a fleet ---------------------------------------------------------------------------------------------


def _in_a_fleet(plan: Plan, random: Random) -> Iterator[Injection]:
    deck: list[Fault] = []
    for _ in range(plan.kills):
        if not deck:
            deck = random.sample(plan.faults, len(plan.faults))
        fault = deck.pop()
        yield Injection(
            fault=fault,
            target=_target(fault, plan, random),
            after_s=random.uniform(*_PAUSE_S),
            for_s=_length_s(fault, random),
            manner=random.choice(list(Manner)),
        )


def _target(fault: Fault, plan: Plan, random: Random) -> str:
    if fault.scope == "server":
        return server_name(random.randrange(plan.servers))
    if fault.scope == "upstream":
        return random.choice(list(UPSTREAMS))
    return host_name(random.randrange(plan.worker_hosts)) if fault.scope == "host" else fault.scope


def _length_s(fault: Fault, random: Random) -> float:
    """A freeze outlasts the lease, so that the work is taken over. A cut may end unnoticed."""
    if fault.action == "kill":
        return random.uniform(*_DOWN_S)
    long_s = LEASE_TTL_S * random.uniform(1.2, 1.6)
    return (
        long_s
        if fault.action == "freeze"
        else random.choice((LEASE_TTL_S * random.uniform(0.1, 0.5), long_s))
    )
