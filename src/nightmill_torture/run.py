"""Runs a plan from the first start to the proof.

Members are started, faults are injected while the official client uploads files and runs batches, and at the
end each output line is compared with the upstream's record. On one machine each injection starts the server
again, with failpoints armed; a fleet is supervised, and up to two faults overlap. No process is left behind.
"""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from time import monotonic
from typing import Final

from openai import AsyncOpenAI

from nightmill import failpoints
from nightmill.errors import SetupError
from nightmill.failpoints import FAILPOINTS, Failpoint
from nightmill_torture.accounts import Accounts
from nightmill_torture.fleet import Fleet, open_fleet
from nightmill_torture.inject import Injector
from nightmill_torture.load import Load, until_done
from nightmill_torture.plan import Fault, Injection, Plan, at_failpoints, injections, seeded, server_name
from nightmill_torture.proof import Found, Proof, prove
from nightmill_torture.record import Record
from nightmill_torture.report import Report
from nightmill_torture.storage import Storage
from nightmill_torture.stored import StoredAnswers
from nightmill_torture.upstream import emulator
from nightmill_torture.watch import Watch, as_seen

NOT_REACHED: Final = "failpoints that were not reached"
NOT_INJECTED: Final = "faults without a target"
LEFT_BEHIND: Final = "half-written files left behind"
NO_END: Final = "servers that did not end on SIGTERM"

_ON_TAKEOVER: Final = frozenset({"worker.before_pin", "worker.pinned"})
"""Failpoints that a worker passes only when it takes over a segment."""
_TRIES = 4
_AT_ONCE = 2
_POINTS_S = 30.0
_AT_WORK_S = 15.0
_RAY_S = 120.0
_START_S = 120.0
_END_S = 300.0
_STOP_S = 60.0
_LOOK_S = 0.02

Show = Callable[[str], None]


async def torture(
    plan: Plan,
    *,
    show: Show,
    environment: Mapping[str, str] = os.environ,
    points: Sequence[Failpoint] = FAILPOINTS,
) -> Report:
    """Injects the faults of the plan and proves that nothing was lost. The caller removes the folder.

    A fleet's database and prefix are cleared if there was no breach.

    Raises:
        SetupError: the database is not empty, or the options of the plan do not allow a run.
        UnavailableError: the database or the bucket can't be reached.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    storage = Storage(plan, environment)
    await storage.prepare()
    async with AsyncExitStack() as stack:
        url, record = await stack.enter_async_context(emulator(plan.folder, delay_s=plan.delay_s))
        fleet = await stack.enter_async_context(
            open_fleet(plan, storage, upstream=url, environment=environment)
        )
        client = AsyncOpenAI(
            base_url=f"http://127.0.0.1:{fleet.port}/v1",
            api_key="no-key",
            timeout=5.0 if plan.is_fleet else 30.0,  # a frozen server of a fleet must not hold the client
        )
        await stack.enter_async_context(client)
        report = await _Run(plan, fleet, storage, record, client, show).play(points)
    if report.is_kept:
        await storage.clear()
    return report


class _Run:
    def __init__(
        self, plan: Plan, fleet: Fleet, storage: Storage, record: Record, client: AsyncOpenAI, show: Show
    ) -> None:
        self._plan = plan
        self._fleet = fleet
        self._storage = storage
        self._record = record
        self._client = client
        self._show = show
        self._report = Report(plan)
        self._proof: Proof = self._report.proof
        self._watch = Watch(client, self._proof)
        self._load = Load(client, self._watch, plan)
        self._answers = StoredAnswers(storage, record, self._proof)
        self._reached = plan.folder / "reached"
        self._accounts = Accounts(self._report, storage, record, self._answers, reached=self._reached)
        self._injector = Injector(plan, fleet, self._accounts.bound, self._proof)
        self._start: tuple[float, float, bool] | None = None
        self._busy: set[str] = set()
        self._is_free = asyncio.Condition()

    async def play(self, points: Sequence[Failpoint]) -> Report:
        try:
            return await self._play_all(points)
        finally:
            await self._load.abandon()

    async def _play_all(self, points: Sequence[Failpoint]) -> Report:
        began = monotonic()
        self._reached.mkdir()
        self._proof.check(NOT_INJECTED)
        async with asyncio.TaskGroup() as group:
            endless = [self._record.keep_taking(), self._watch.keep_polling(), self._storage.keep_probing()]
            if self._plan.is_fleet:
                endless.append(self._answers.keep_reading())
            background = [group.create_task(work) for work in endless]
            if self._plan.is_fleet:
                background += [
                    group.create_task(member.supervise(self._proof)) for member in self._fleet.members
                ]
            busy = group.create_task(self._load.keep_busy())
            if self._plan.is_fleet:
                await self._until_first_request()
            await self._inject_all(points)
            found = await self._finish(busy)
            await self._until_all_are_ready()
            for task in background:
                task.cancel()
        await self._end_members()
        self._prove(found)
        self._report.took_s = monotonic() - began
        return self._report

    async def _until_first_request(self) -> None:
        try:
            async with asyncio.timeout(_START_S):
                await self._record.next_request()
        except TimeoutError:
            raise SetupError(f"the fleet sent no request within {_START_S:.0f} s; see its logs") from None

    # --- injections ----------------------------------------------------------------------------------

    async def _inject_all(self, points: Sequence[Failpoint]) -> None:
        planned = list(injections(self._plan, points))
        wanted: list[Failpoint] = [name for injection in planned for name, _ in injection.points]
        for attempt in range(_TRIES):
            async with asyncio.TaskGroup() as group:
                for injection in planned:
                    await self._begin(injection)
                    group.create_task(self._play(injection))
            # A failpoint is missed when its process was killed by another fault first.
            missed: list[Failpoint] = [name for name in wanted if name not in self._report.points]
            if not missed:
                break
            planned = list(at_failpoints(missed, seeded(self._plan, f"again {attempt}")))
        if Fault.FAILPOINT in self._plan.faults:
            self._proof.check(NOT_REACHED)
            for name in wanted:
                if name not in self._report.points:
                    self._proof.breach(NOT_REACHED, name)

    async def _begin(self, injection: Injection) -> None:
        """Waits until the target is free and at work."""
        async with self._is_free:
            await self._is_free.wait_for(
                lambda: len(self._busy) < _AT_ONCE and injection.target not in self._busy
            )
            self._busy.add(injection.target)
        self._show(self._progress(injection))
        if self._plan.is_fleet:  # a fleet that has not started up again is not hit once more
            await _at_most(_AT_WORK_S, self._record.next_request())
        else:
            await self._start_server(injection)
        await asyncio.sleep(injection.after_s)

    async def _play(self, injection: Injection) -> None:
        try:
            victims = self._fleet.victims(injection)
            planned = injection.fault
            if planned is Fault.FAILPOINT and victims[0].is_alive:  # it was not reached in time
                injection = replace(injection, fault=Fault.SERVER_KILLED)
            fault = injection.fault
            if self._plan.is_fleet and self._plan.may_repeat(
                fault
            ):  # a fault of an idle member proves little
                await _at_most(_AT_WORK_S, self._record.next_request(victims[0].name))
            began = monotonic()
            self._accounts.begin_fault(injection)
            is_hit = await self._injector.inject(injection, victims)
            await self._accounts.add_fault(injection, victims, began)
            if not is_hit and planned is Fault.FAILPOINT:
                pass  # the server was dying at its failpoint, and was dead before the kill
            elif not is_hit:
                self._proof.breach(NOT_INJECTED, f"{fault.title}: {injection.target}")
            elif fault is not Fault.FAILPOINT:
                self._report.faults[fault] += 1
            if fault.scope == "ray":  # there is no target until workers have started again
                await _at_most(_RAY_S, self._record.next_request())
        finally:
            async with self._is_free:
                self._busy.discard(injection.target)
                self._is_free.notify_all()

    def _progress(self, injection: Injection) -> str:
        report, batches = self._report, len(self._load.expected)
        return (
            f"{report.faults.total()} of {self._plan.kills}, next {injection.fault.title} "
            f"({injection.target}); {batches} batches, {len(self._record.markers):,} requests"
        )

    # --- starts of the only server -------------------------------------------------------------------

    async def _start_server(self, injection: Injection) -> None:
        """Starts the server if it is down, and waits for its first answer and for the failpoints.

        The server may die meanwhile, and does so at a failpoint of the API process.
        """
        server = self._fleet.servers[0]
        if server.is_alive:
            return
        self._add_start()
        is_clean = self._accounts.is_clean_start
        server.start(**{failpoints.AT: injection.armed, failpoints.FOLDER: str(self._reached)})
        if injection.is_early:
            return
        names: list[Failpoint] = [name for name, _ in injection.points]
        of_takeover: list[Failpoint] = [name for name in names if name in _ON_TAKEOVER]
        async with asyncio.TaskGroup() as group:
            provoking = [group.create_task(self._load.provoke(tuple(names)))] if names else []
            if of_takeover:
                provoking.append(group.create_task(self._provoke_takeovers(of_takeover)))
            with suppress(TimeoutError):
                async with asyncio.timeout(_POINTS_S):
                    if await self._while_alive(self._watch.answer_after(server.started)):
                        self._start = (server.started, monotonic(), is_clean)
                    await self._while_alive(self._until_reached(names))
            for task in provoking:
                task.cancel()

    async def _provoke_takeovers(self, points: Sequence[Failpoint]) -> None:
        """Kills a worker at work, again and again, until the failpoints are reached.

        A start finds segments to take over only if some were leased at the kill before it.
        """
        kill = Injection(fault=Fault.WORKER_KILLED, target=server_name())
        servers = self._fleet.servers
        while not self._accounts.has_reached(points):
            await self._record.next_request()
            began = monotonic()
            if servers[0].is_alive and await self._injector.inject(kill, servers):
                await self._accounts.add_fault(kill, servers, began)
                self._report.faults[kill.fault] += 1

    def _add_start(self) -> None:
        if self._start is not None:
            started, answered, is_clean = self._start
            self._accounts.add_start(started, answered, is_clean=is_clean)
        self._start = None

    async def _until_reached(self, points: Sequence[Failpoint]) -> None:
        while not self._accounts.has_reached(points):
            await asyncio.sleep(_LOOK_S)

    async def _while_alive(self, waiting: Coroutine[object, object, object]) -> bool:
        """Waits while the server lives; whether it lived long enough."""
        task = asyncio.create_task(waiting)
        try:
            while not task.done() and self._fleet.servers[0].is_alive:
                await asyncio.wait([task], timeout=_LOOK_S)
            return task.done()
        finally:
            task.cancel()

    # --- the end -------------------------------------------------------------------------------------

    async def _finish(self, busy: "asyncio.Task[None]") -> dict[str, Found]:
        """Lets the open batches end, and reads all batches and their files."""
        self._load.end()
        self._show("all faults are injected; the open batches go on to their end")
        if not self._plan.is_fleet and not self._fleet.servers[0].is_alive:
            self._add_start()
            self._fleet.servers[0].start()
        try:
            async with asyncio.timeout(_END_S):
                await busy
        except TimeoutError:
            self._show("some batches do not end")
        return await all_found(self._client, self._watch)

    async def _until_all_are_ready(self) -> None:
        """The target of the last fault may still be starting; SIGTERM would kill it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                while not all(member.is_ready for member in self._fleet.members):
                    await asyncio.sleep(_LOOK_S)

    async def _end_members(self) -> None:
        """Each member ends by itself on SIGTERM, and leaves no half-written file on one machine."""
        self._proof.check(NO_END)
        for member in self._fleet.members:
            member.terminate()
        for member in self._fleet.members:
            if await member.has_ended(within_s=_STOP_S) != 0:
                self._proof.breach(NO_END, f"see the log of {member.name}")
        if not self._plan.is_fleet:
            self._proof.check(LEFT_BEHIND)
            for left in (self._storage.settings.folder / "blobs" / "tmp").iterdir():
                self._proof.breach(LEFT_BEHIND, left.name)

    def _prove(self, found: Mapping[str, Found]) -> None:
        report, expected = self._report, self._load.expected
        self._record.take()
        markers, settled = self._record.markers, self._record.answers
        prove(self._proof, expected, found, markers=markers, settled=settled)
        self._accounts.check_repeats(self._load.slow_lines)
        report.batches = len(expected)
        report.lines = sum(len(batch.bodies) for batch in expected)
        report.requests = len(markers)
        report.settled_seen = len(settled)
        report.polls = self._watch.polls
        report.longest_silence_s = self._watch.longest_silence_s


async def _at_most(seconds: float, waiting: Coroutine[object, object, object]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await waiting


async def all_found(client: AsyncOpenAI, watch: Watch) -> dict[str, Found]:
    """Every batch of the server, with the rows of its files."""
    found: dict[str, Found] = {}
    async for batch in client.batches.list(limit=100):
        seen = as_seen(batch)
        watch.note(seen)
        output, error = [await rows_of(client, file_id) for file_id in seen.files]
        found[seen.batch_id] = Found(status=seen.status, counts=seen.counts, output=output, error=error)
    return found


async def rows_of(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, object]]:
    if file_id is None:
        return []
    content = await until_done(lambda: client.files.content(file_id))
    return [json.loads(row) for row in content.content.split(b"\n") if row]
