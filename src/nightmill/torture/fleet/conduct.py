"""Plays the plan for a fleet, from the first start to the proof.

Promise: whatever happens, no process is left behind, and what was frozen or cut is not left so. Not its duty:
which blows (`plan`), and what counts as a breach (`torture.proof`).
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from openai import AsyncOpenAI

from nightmill.errors import SetupError
from nightmill.runtime.supervisor import free_port
from nightmill.torture.conduct import NO_END, TOO_OFTEN, all_found
from nightmill.torture.fleet.bound import Bound, unexplained
from nightmill.torture.fleet.link import Ends, Link
from nightmill.torture.fleet.member import ENDED_BY_ITSELF, Member, serve_command, work_command
from nightmill.torture.fleet.places import SMALL, Places
from nightmill.torture.fleet.plan import LEASE_TTL_S, Blow, FleetPlan, Strike, strikes
from nightmill.torture.fleet.ray_cluster import RayCluster, ray_cluster
from nightmill.torture.fleet.settled import Settled
from nightmill.torture.ledger import Ledger
from nightmill.torture.load import Load, seeded
from nightmill.torture.plan import Target
from nightmill.torture.proof import Proof, prove, repeated
from nightmill.torture.server import Server, clean_environment
from nightmill.torture.upstream import SLOW_S, Ask, Record, emulator
from nightmill.torture.watch import Watch

NOT_STRUCK: Final = "blows that found nobody"
RESTART_FAILED: Final = "restarts of Postgres that failed"

_CLIENT_TIMEOUT_S = 5.0
_AT_ONCE = 2
_PIECE_S = 0.3
_FIND_S = 120.0
_AT_WORK_S = 15.0
_START_S = 120.0
_END_S = 300.0
_STOP_S = 60.0
_LOOK_S = 0.02
_RESTART_S = 120.0

Show = Callable[[str], None]


@dataclass(slots=True)
class FleetReport:
    """What a run came to."""

    plan: FleetPlan
    proof: Proof = field(default_factory=Proof)
    blows: Counter[Blow] = field(default_factory=Counter)
    batches: int = 0
    lines: int = 0
    requests: int = 0
    repeated: int = 0
    bound: int = 0
    """Requests that were in flight, or whose answer was not durable, at a blow to the crew that made them."""
    costly_blows: int = 0
    """Blows after which lines may be asked again."""
    durable_after_s: float = 0.0
    """An answer is durable so long after it came, at the latest."""
    settled_seen: int = 0
    polls: int = 0
    longest_silence_s: float = 0.0
    took_s: float = 0.0

    @property
    def is_kept(self) -> bool:
        return self.proof.is_kept


async def torture_fleet(
    plan: FleetPlan, *, show: Show, environment: Mapping[str, str] = os.environ
) -> FleetReport:
    """Strikes, heals and proves. The database and the prefix are cleared if every promise was kept.

    Raises:
        SetupError: the database is not empty, the bucket can't be used, or one of the URLs not be tortured.
        UnavailableError: one of them can't be reached.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    places = Places(plan, environment)
    await places.take()
    report = FleetReport(plan)
    async with AsyncExitStack() as stack:
        url, record = await stack.enter_async_context(emulator(plan.folder, delay_s=plan.delay_s))
        fleet = await stack.enter_async_context(_fleet(plan, places, upstream=url, environment=environment))
        front = await stack.enter_async_context(Link(_any_of([server.port for server in fleet.servers])))
        client = AsyncOpenAI(
            base_url=f"http://127.0.0.1:{front.port}/v1", api_key="no-key", timeout=_CLIENT_TIMEOUT_S
        )
        await stack.enter_async_context(client)
        await _FleetTorture(plan, report, places, fleet, record, client, show).run()
    if report.is_kept:
        await places.clear()
    return report


@dataclass(frozen=True, slots=True)
class _Fleet:
    servers: list[Member]
    crews: list[Member]
    ray: RayCluster | None

    @property
    def members(self) -> list[Member]:
        return [*self.servers, *self.crews]


@asynccontextmanager
async def _fleet(
    plan: FleetPlan, places: Places, *, upstream: str, environment: Mapping[str, str]
) -> AsyncGenerator[_Fleet]:
    """Nobody is started yet."""
    outside = clean_environment(environment)

    async def member(name: str, command: list[str], *, port: int = 0) -> Member:
        links = await places.links(stack)
        log = plan.folder / f"{name}.log"
        said = {"NIGHTMILL_UPSTREAM__HEADERS__X-EMULATOR-SENDER": name}
        process = Server(
            command, environment={**outside, **SMALL, **on_ray, **said, **links.environment}, log=log
        )
        stack.push_async_callback(process.kill_everyone)
        return Member(name, process, links, log=log, port=port)

    async with AsyncExitStack() as stack:
        ray, on_ray = None, dict[str, str]()
        if plan.engine == "ray":
            ray = await stack.enter_async_context(
                ray_cluster(plan.folder, nodes=plan.nodes, cpus=plan.workers_per_crew, environment=outside)
            )
            on_ray = _on_ray(plan, ray)
        ports = [free_port() for _ in range(plan.servers)]
        servers = [
            await member(f"server-{number}", serve_command(port), port=port)
            for number, port in enumerate(ports, 1)
        ]
        command = work_command(plan, upstream=upstream)
        crews = [await member(f"crew-{number}", command) for number in range(1, plan.crews + 1)]
        yield _Fleet(servers, crews, ray)


def _on_ray(plan: FleetPlan, ray: RayCluster) -> dict[str, str]:
    """A crew is then a launcher with workers of its own on the cluster, and the other roles beside it."""
    return {
        "NIGHTMILL_ENGINE": "ray",
        "NIGHTMILL_RAY__ADDRESS": ray.address,
        "NIGHTMILL_RAY__MIN_WORKERS": str(plan.workers_per_crew),
        "NIGHTMILL_RAY__MAX_WORKERS": str(plan.workers_per_crew),
        "NIGHTMILL_RAY__TELL_AUTOSCALER": "false",
    }


def _any_of(ports: list[int]) -> Callable[[str], Awaitable[Ends]]:
    """As a load balancer without health checks: the next one that takes the connection."""
    turn = 0

    async def reach(_: str) -> Ends:
        nonlocal turn
        for _port in ports:
            turn += 1
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", ports[turn % len(ports)])
        raise ConnectionError("no API server is up")

    return reach


class _FleetTorture:
    def __init__(
        self,
        plan: FleetPlan,
        report: FleetReport,
        places: Places,
        fleet: _Fleet,
        record: Record,
        client: AsyncOpenAI,
        show: Show,
    ) -> None:
        self._plan = plan
        self._report = report
        self._places = places
        self._fleet = fleet
        self._record = record
        self._client = client
        self._show = show
        self._watch = Watch(client, report.proof)
        self._load = Load(client, self._watch, plan)
        self._ledger = Ledger(plan.folder / "data", report.proof)
        self._bound = Bound()
        self._random = seeded(plan, "victims")
        self._busy: set[str] = set()
        self._is_free = asyncio.Condition()

    async def run(self) -> None:
        began = monotonic()
        for name in (ENDED_BY_ITSELF, NOT_STRUCK, RESTART_FAILED):
            self._report.proof.check(name)
        store, parts = self._places.open()
        try:
            settled = Settled(store, parts, self._ledger, self._report.proof)
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(self._record.keep_taking()),
                    group.create_task(self._watch.keep_polling()),
                    group.create_task(settled.keep_looking()),
                    group.create_task(self._places.keep_probing()),
                ]
                kept = [group.create_task(member.keep(self._report.proof)) for member in self._fleet.members]
                busy = group.create_task(self._load.keep_busy())
                await self._play_all()
                await self._finish(busy)
                await self._until_all_are_up()
                for task in (*background, *kept):
                    task.cancel()
                await self._end_members()
        finally:
            await store.close()
            await parts.close()
        self._report.took_s = monotonic() - began

    # --- the blows -----------------------------------------------------------------------------------

    async def _play_all(self) -> None:
        try:
            async with asyncio.timeout(_START_S):
                await self._record.next_request()
        except TimeoutError:
            raise SetupError(f"the fleet asked nothing within {_START_S:.0f} s; see its logs") from None
        async with asyncio.TaskGroup() as group:
            for number, strike in enumerate(strikes(self._plan), 1):
                await asyncio.sleep(strike.after_s)
                with suppress(TimeoutError):  # a fleet that has not got up yet is not struck at every step
                    async with asyncio.timeout(_AT_WORK_S):
                        await self._record.next_request()
                async with self._is_free:
                    await self._is_free.wait_for(lambda strike=strike: self._may_begin(strike))
                    self._busy.add(strike.target)
                self._show(self._told(number, strike))
                group.create_task(self._play(strike))

    def _may_begin(self, strike: Strike) -> bool:
        return len(self._busy) < _AT_ONCE and strike.target not in self._busy

    async def _play(self, strike: Strike) -> None:
        try:
            if await self._strike(strike):
                self._report.blows[strike.blow] += 1
            else:
                self._report.proof.breach(NOT_STRUCK, f"{strike.blow}: {strike.target}")
        finally:
            async with self._is_free:
                self._busy.discard(strike.target)
                self._is_free.notify_all()

    async def _strike(self, strike: Strike) -> bool:
        """Returns when its target may be struck again."""
        blow, is_costly = strike.blow, strike.blow in self._plan.costly
        victims = self._victims_of(strike)
        if is_costly:  # a blow to somebody idle proves little
            with suppress(TimeoutError):
                async with asyncio.timeout(_AT_WORK_S):
                    await self._record.request_of(victims[0].name)
        began = monotonic()
        struck = await self._play_one(strike, victims)
        if is_costly:
            for victim in victims:
                self._note_cost(blow, victim, began)
        if strike.target == "ray":  # until there are workers again there is nobody to strike
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIND_S):
                    await self._record.next_request()
        return struck

    async def _play_one(self, strike: Strike, victims: list[Member]) -> bool:
        member, for_s = victims[0], strike.for_s
        match strike.blow:
            case Blow.SERVER_KILLED | Blow.CREW_KILLED:
                return await self._kill(member, Target.ALL, down_s=for_s)
            case Blow.CREW_ORPHANED:
                return await self._kill(member, Target.API, down_s=for_s)
            case Blow.WORKER_KILLED:
                if self._fleet.ray is not None:
                    return bool(await self._strike_worker_on(self._fleet.ray, signal.SIGKILL))
                return await self._kill(member, Target.WORKER, down_s=for_s)
            case Blow.KEEPER_KILLED:
                return await self._kill(member, Target.KEEPER, down_s=for_s)
            case Blow.SERVER_FROZEN | Blow.CREW_FROZEN:
                return await self._freeze(member, Target.ALL, for_s=for_s)
            case Blow.WORKER_FROZEN:
                return await self._freeze(member, Target.WORKER, for_s=for_s)
            case Blow.NODE_KILLED | Blow.NODE_FROZEN | Blow.HEAD_KILLED:
                return await self._strike_ray(strike)
            case Blow.SERVER_CUT_FROM_STORE | Blow.CREW_CUT_FROM_STORE:
                return await self._cut([member.links.store], strike)
            case Blow.STORE_RESTARTED:
                return await self._restart_store(strike)
            case Blow.SERVER_CUT_FROM_BLOBS | Blow.CREW_CUT_FROM_BLOBS | Blow.BLOBS_AWAY:
                self._stall(victims, for_s)
                return await self._cut(_blob_links(victims), strike)
            case Blow.BLOBS_SLOW:
                self._stall(victims, for_s)
                return await self._slow_down(_blob_links(victims), for_s=for_s)

    def _victims_of(self, strike: Strike) -> list[Member]:
        """Whose requests may suffer."""
        if strike.target in ("store", "blobs"):
            return self._fleet.members
        if strike.target == "ray":
            return self._fleet.crews
        if strike.target.startswith("server"):
            return [self._fleet.servers[strike.place]]
        if self._fleet.ray is not None and strike.blow in (Blow.WORKER_KILLED, Blow.WORKER_FROZEN):
            return self._fleet.crews  # nobody knows whose worker it is
        return [self._fleet.crews[strike.place]]

    def _note_cost(self, blow: Blow, member: Member, began: float) -> None:
        now = monotonic()
        match blow:
            case Blow.CREW_CUT_FROM_STORE:  # it asks on, and may lose its leases a little later, or never
                self._bound.struck(member.name, began, now + LEASE_TTL_S)
            case Blow.CREW_FROZEN | Blow.WORKER_FROZEN | Blow.NODE_FROZEN:
                self._bound.struck(member.name, began, began)
                self._bound.struck(member.name, now, now)  # it wakes, and sends what it was about to send
            case _:
                self._bound.struck(member.name, began, now)

    async def _kill(self, member: Member, target: Target, *, down_s: float) -> bool:
        give_up_at = monotonic() + _FIND_S
        while not await member.kill(target, down_s=down_s):
            if monotonic() > give_up_at:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def _freeze(self, member: Member, target: Target, *, for_s: float) -> bool:
        give_up_at, ray = monotonic() + _FIND_S, self._fleet.ray
        frozen: list[int] = []
        while not frozen:
            if monotonic() > give_up_at:
                return False
            if target is Target.WORKER and ray is not None:
                frozen = await self._strike_worker_on(ray, signal.SIGSTOP)
            else:
                frozen = member.freeze(target)
            await asyncio.sleep(0 if frozen else _LOOK_S)
        try:
            await asyncio.sleep(for_s)
        finally:
            member.process.thaw(frozen)
        return True

    async def _strike_worker_on(self, ray: RayCluster, number: signal.Signals) -> list[int]:
        give_up_at = monotonic() + _FIND_S
        while monotonic() < give_up_at:
            if victim := await ray.strike_worker(number, random=self._random):
                return victim
            await asyncio.sleep(_LOOK_S)
        return []

    async def _strike_ray(self, strike: Strike) -> bool:
        ray = self._fleet.ray
        assert ray is not None
        node = self._random.choice(ray.nodes)
        match strike.blow:
            case Blow.NODE_KILLED:
                await ray.tell(f"kill {node}")
                await asyncio.sleep(strike.for_s)
                await ray.tell(f"add {node}")
            case Blow.NODE_FROZEN:
                await ray.tell(f"freeze {node}")
                try:
                    await asyncio.sleep(strike.for_s)
                finally:
                    await ray.tell(f"thaw {node}")
            case _:
                await ray.tell("kill-head")
                await asyncio.sleep(strike.for_s)
                await ray.start()
        return True

    async def _cut(self, links: list[Link], strike: Strike) -> bool:
        for link in links:
            link.cut(strike.manner)
        try:
            await asyncio.sleep(strike.for_s)
        finally:
            for link in links:
                link.heal()
        return True

    def _stall(self, members: list[Member], for_s: float) -> None:
        for member in members:
            self._bound.stalled(member.name, monotonic(), monotonic() + for_s)

    async def _slow_down(self, links: list[Link], *, for_s: float) -> bool:
        for link in links:
            link.delay_s = _PIECE_S
        try:
            await asyncio.sleep(for_s)
        finally:
            for link in links:
                link.delay_s = 0.0
        return True

    async def _restart_store(self, strike: Strike) -> bool:
        command = self._plan.restart_store
        if command is None:
            return await self._cut([member.links.store for member in self._fleet.members], strike)
        restart = await asyncio.create_subprocess_shell(command, start_new_session=True)
        try:
            async with asyncio.timeout(_RESTART_S):
                code = await restart.wait()
        finally:
            if restart.returncode is None:
                restart.kill()
        if code != 0:
            self._report.proof.breach(RESTART_FAILED, f"the command ended with {code}")
        return True

    def _told(self, number: int, strike: Strike) -> str:
        whom = "" if strike.target in ("store", "blobs", "ray") else f" ({strike.target})"
        return (
            f"{number} of {self._plan.kills}: {strike.blow}{whom}; "
            f"{len(self._load.expected)} batches, {len(self._record.markers):,} requests"
        )

    # --- the end -------------------------------------------------------------------------------------

    async def _finish(self, busy: "asyncio.Task[None]") -> None:
        self._load.end()
        self._show("all blows are struck; the open batches go on to their end")
        report, proof = self._report, self._report.proof
        try:
            async with asyncio.timeout(_END_S):
                await busy
        except TimeoutError:
            self._show("some batches do not end")
        found = await all_found(self._client, self._watch)
        self._record.take()
        markers = self._record.markers
        prove(proof, self._load.expected, found, markers=markers, settled=self._ledger.settled)
        report.batches = len(self._load.expected)
        report.lines = sum(len(batch.bodies) for batch in self._load.expected)
        report.requests = len(markers)
        report.repeated = repeated(markers)
        report.settled_seen = len(self._ledger.settled)
        report.polls = self._watch.polls
        report.longest_silence_s = self._watch.longest_silence_s
        self._count_repeats()

    def _count_repeats(self) -> None:
        report = self._report
        worker, blobs = self._places.settings.worker, self._places.settings.blobs
        interval_s = blobs.part_interval_s if self._places.has_bucket else worker.commit_interval_s
        report.durable_after_s = interval_s + 2 * self._places.slowest_put_s

        def durable_after_s(ask: Ask) -> float:
            answer_s = SLOW_S if ask.marker in self._load.slow_lines else self._plan.delay_s
            return answer_s + report.durable_after_s

        asks = self._record.asks
        repeatable = self._bound.repeatable(asks, durable_after_s=durable_after_s)
        report.bound = len(repeatable)
        report.costly_blows = sum(report.blows[blow] for blow in self._plan.costly)
        report.proof.check(TOO_OFTEN)
        for ask in unexplained(asks, repeatable):
            report.proof.breach(TOO_OFTEN, f"{ask.marker} by {ask.sender}")

    async def _until_all_are_up(self) -> None:
        """Who was struck last may still be on its way; asked to end in its first moments, it just dies."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                while not all(member.is_up for member in self._fleet.members):
                    await asyncio.sleep(_LOOK_S)

    async def _end_members(self) -> None:
        """Each of them ends by itself when it is asked to."""
        proof = self._report.proof
        proof.check(NO_END)
        for member in self._fleet.members:
            member.process.terminate()
        for member in self._fleet.members:
            if await member.process.has_ended(within_s=_STOP_S) != 0:
                proof.breach(NO_END, f"see the log of {member.name}")


def _blob_links(members: list[Member]) -> list[Link]:
    return [member.links.blobs for member in members if member.links.blobs is not None]
