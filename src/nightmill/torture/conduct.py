"""Plays a plan from the first start to the proof.

Promise: whatever happens, no process is left behind. Not its duty: what to kill (`plan`) and what counts as a
breach (`proof`).
"""

import asyncio
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from openai import AsyncOpenAI

from nightmill import failpoints
from nightmill.failpoints import FAILPOINTS, Failpoint
from nightmill.runtime.supervisor import free_port
from nightmill.settings import WorkerSettings
from nightmill.torture.ledger import Ledger
from nightmill.torture.load import Load, seeded, until_done
from nightmill.torture.plan import Blow, Plan, Round, Target, is_of_the_front, rounds, rounds_of
from nightmill.torture.proof import Found, Proof, prove, repeated
from nightmill.torture.server import Server, clean_environment, serve_command
from nightmill.torture.upstream import Record, emulator
from nightmill.torture.watch import Watch, as_seen

NOT_REACHED = "crash points that were not reached"
TOO_MANY_UNDONE = "kills that left more undone than was in flight"
TOO_OFTEN = "repeated above the bound"
LEFT_BEHIND = "half-written files left behind"
NO_END = "servers that did not end on SIGTERM"

_ROUND_S = 30.0
_TRIES = 4
_END_S = 300.0
_STOP_S = 60.0
_LOOK_S = 0.02
_SYNCS = 30
_SYNC_WINDOW_S = 2.0
_SYNC_PAUSE_S = 0.05
_COMMIT_INTERVAL_S = WorkerSettings().commit_interval_s
_ENVIRONMENT = {
    # Small and quick, so that a short run meets every step often; the rest is as everybody has it.
    "NIGHTMILL_WORKER__LINES_PER_SEGMENT": "50",
    "NIGHTMILL_WORKER__BEAT_S": "0.2",
    "NIGHTMILL_WORKER__CANCEL_GRACE_S": "0.3",
    "NIGHTMILL_BLOBS__PIECE_BYTES": "4096",  # large uploads in parts become pieces, small ones are copied
    "NIGHTMILL_FINALIZER__SLICE_BYTES": "16384",  # large batches are joined in slices, small ones in one go
    "NIGHTMILL_RETENTION__SWEEP_S": "0.5",
    "NIGHTMILL_LIMITS__BATCHES_PER_HOUR": "0",
}

Show = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What a run came to."""

    plan: Plan
    proof: Proof = field(default_factory=Proof)
    kills: Counter[str] = field(default_factory=Counter)
    """By who died: all, api, worker, keeper, and `point` for those at a named point."""
    points: set[Failpoint] = field(default_factory=set)
    batches: int = 0
    lines: int = 0
    requests: int = 0
    repeated: int = 0
    bound: int = 0
    most_undone: int = 0
    """Lines sent since the kill before that had no answer on disk at a kill of everything."""
    settled_seen: int = 0
    polls: int = 0
    longest_silence_s: float = 0.0
    answers_after_s: list[float] = field(default_factory=list)
    """From the start of a server to its first answer to a poll."""
    requests_after_s: list[float] = field(default_factory=list)
    """From the start of a server that found unfinished lines to the first request at the upstream."""
    delays_s: list[float] = field(default_factory=list)
    """Of the same starts: how much later than the first answer (0 when it was earlier)."""
    took_s: float = 0.0

    @property
    def is_kept(self) -> bool:
        return self.proof.is_kept


async def torture(plan: Plan, *, show: Show, points: Sequence[Failpoint] = FAILPOINTS) -> Report:
    """Kills, restarts and proves. The folder stays; it is the caller's to remove."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    report = Report(plan)
    async with emulator(plan.folder, delay_s=plan.delay_s) as (url, record):
        port = free_port()
        command = serve_command(
            folder=plan.folder / "data",
            port=port,
            upstream=url,
            workers=plan.workers,
            concurrency=plan.concurrency,
        )
        server = Server(
            command,
            environment=clean_environment(os.environ) | _ENVIRONMENT,
            log=plan.folder / "serve.log",
        )
        client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="no-key", timeout=30.0)
        try:
            async with client:
                await _Torture(plan, report, server, record, client, show, points).run()
        finally:
            await server.kill_everyone()
    return report


class _Torture:
    def __init__(
        self,
        plan: Plan,
        report: Report,
        server: Server,
        record: Record,
        client: AsyncOpenAI,
        show: Show,
        points: Sequence[Failpoint],
    ) -> None:
        self._plan = plan
        self._report = report
        self._server = server
        self._record = record
        self._client = client
        self._show = show
        self._points = points
        self._watch = Watch(client, report.proof)
        self._load = Load(client, self._watch, plan)
        self._ledger = Ledger(plan.folder / "data", report.proof)
        self._struck = plan.folder / "struck"
        self._has_orphans = False
        self._unsettled = 0
        self._audited = 0
        self._may_be_undone = 0
        self._usual_sync_s = 0.0
        self._syncs: deque[tuple[float, float]] = deque()

    async def run(self) -> None:
        began = monotonic()
        self._struck.mkdir()
        self._usual_sync_s = await asyncio.to_thread(_slowest_sync, self._plan.folder, _SYNCS)
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._record.keep_taking()),
                group.create_task(self._keep_syncing()),
                group.create_task(self._watch.keep_polling()),
            ]
            busy = group.create_task(self._load.keep_busy())
            await self._play_all()
            await self._finish(busy)
            for task in background:
                task.cancel()
        self._report.took_s = monotonic() - began

    # --- the kills -----------------------------------------------------------------------------------

    async def _play_all(self) -> None:
        played = list(rounds(self._plan, self._points))
        wanted: list[Failpoint] = [name for one in played for name in _points_of(one)]
        for turn in range(_TRIES):
            for one in played:
                await self._play(one)
                self._tell()
            # A point is missed when its process died of something else first.
            missed: list[Failpoint] = [name for name in wanted if name not in self._report.points]
            played = list(rounds_of(missed, seeded(self._plan, f"again {turn}")))
        self._report.proof.check(NOT_REACHED)
        for name in wanted:
            if name not in self._report.points:
                self._report.proof.breach(NOT_REACHED, name)

    async def _play(self, one: Round) -> None:
        self._server.start(**{failpoints.AT: one.armed, failpoints.FOLDER: str(self._struck)})
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._measure_start())]
            if points := _points_of(one):
                beside.append(group.create_task(self._load.provoke(points)))
            with suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_S):
                    await self._strike(one)
            for task in beside:
                task.cancel()
        if self._server.is_alive:
            await self._blow(Blow(target=Target.ALL, after_s=0.0))
        self._count_points()

    async def _strike(self, one: Round) -> None:
        """Returns when the round's points and blows have all been played, or the server died meanwhile."""
        if not any(blow.is_early for blow in one.blows):
            await self._until_dead_or(self._watch.answer_after(self._server.started))
            await self._until_dead_or(self._all_struck(_points_of(one)))
        for blow in one.blows:
            if not self._server.is_alive:
                return
            await self._blow(blow)

    async def _until_dead_or(self, waiting: Coroutine[object, object, object]) -> None:
        task = asyncio.create_task(waiting)
        try:
            while not task.done() and self._server.is_alive:
                await asyncio.wait([task], timeout=_LOOK_S)
        finally:
            task.cancel()

    async def _all_struck(self, points: Sequence[Failpoint]) -> None:
        while not all((self._struck / name).exists() for name in points):
            await asyncio.sleep(_LOOK_S)

    async def _blow(self, blow: Blow) -> None:
        await asyncio.sleep(blow.after_s)
        if not await self._server.kill(blow.target):
            return
        self._report.kills[blow.target] += 1
        match blow.target:
            case Target.ALL:
                await self._audit()
            case Target.API:
                self._worker_died(self._plan.concurrency)
                self._has_orphans = True
                self._unsettled = 0
            case Target.WORKER:
                self._worker_died(-(-self._plan.concurrency // self._plan.workers))
            case Target.KEEPER:
                pass

    async def _audit(self) -> None:
        """Everybody is dead: what is on disk, and is no more undone than was in flight?

        What earlier deaths left undone and nobody has sent again since was held against those deaths.
        """
        self._count_points()
        self._worker_died(self._plan.concurrency)
        self._record.take()
        markers = self._record.markers
        death = await self._ledger.read(markers)
        undone = len(death.undone & set(markers[self._audited :]))
        self._report.most_undone = max(self._report.most_undone, undone)
        self._report.proof.check(TOO_MANY_UNDONE)
        if undone > self._may_be_undone:
            self._report.proof.breach(TOO_MANY_UNDONE, f"{undone} lines, not {self._may_be_undone}")
        self._may_be_undone, self._audited = 0, len(markers)
        self._has_orphans = False
        self._unsettled = death.unsettled

    def _worker_died(self, in_flight: int) -> None:
        """What it may have left undone: attempts in flight, and the answers of one commit.

        An answer waits while those before it are written, then for its interval, then for its own write.
        """
        undone = in_flight + self._record.answered_within(_COMMIT_INTERVAL_S + 2 * self._sync_s)
        self._report.bound += undone
        self._may_be_undone += undone

    @property
    def _sync_s(self) -> float:
        """The slowest of late: whoever shares the disk with the server slows its commits."""
        return max(self._usual_sync_s, *(took_s for _, took_s in self._syncs), 0.0)

    async def _keep_syncing(self) -> None:
        while True:
            took_s = await asyncio.to_thread(_slowest_sync, self._plan.folder, 1)
            now = monotonic()
            self._syncs.append((now, took_s))
            while self._syncs[0][0] < now - _SYNC_WINDOW_S:
                self._syncs.popleft()
            await asyncio.sleep(_SYNC_PAUSE_S)

    def _count_points(self) -> None:
        for name in FAILPOINTS:
            if name in self._report.points or not (self._struck / name).exists():
                continue
            self._report.points.add(name)
            self._report.kills["point"] += 1
            if is_of_the_front(name):  # with the API go its workers
                self._worker_died(self._plan.concurrency)
                self._has_orphans = True
                self._unsettled = 0
            elif name.startswith(("worker.", "part.")):
                self._worker_died(-(-self._plan.concurrency // self._plan.workers))

    async def _measure_start(self) -> None:
        started, is_clean = self._server.started, self._unsettled > 0 and not self._has_orphans
        async with asyncio.TaskGroup() as group:
            request = group.create_task(self._record.next_request())
            answered = await self._watch.answer_after(started)
            self._report.answers_after_s.append(answered - started)
        if is_clean:
            self._report.requests_after_s.append(request.result() - started)
            self._report.delays_s.append(max(0.0, request.result() - answered))

    def _tell(self) -> None:
        done = sum(self._report.kills.values())
        self._show(
            f"{done} of {self._plan.kills} kills, {len(self._report.points)} of {len(self._points)} points, "
            f"{len(self._load.expected)} batches, {len(self._record.markers):,} requests"
        )

    # --- the end -------------------------------------------------------------------------------------

    async def _finish(self, busy: "asyncio.Task[None]") -> None:
        self._load.end()
        self._server.start()
        report, proof = self._report, self._report.proof
        try:
            async with asyncio.timeout(_END_S):
                await busy
        except TimeoutError:
            self._show("some batches do not end")
        found = await all_found(self._client, self._watch)
        self._server.terminate()
        proof.check(NO_END)
        if await self._server.has_ended(within_s=_STOP_S) != 0:
            proof.breach(NO_END, "see serve.log")
        proof.check(LEFT_BEHIND)
        for left in (self._plan.folder / "data" / "blobs" / "tmp").iterdir():
            proof.breach(LEFT_BEHIND, left.name)
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
        proof.check(TOO_OFTEN)
        if report.repeated > report.bound:
            proof.breach(TOO_OFTEN, f"{report.repeated} requests, not {report.bound}")


async def all_found(client: AsyncOpenAI, watch: Watch) -> dict[str, Found]:
    """Every batch there is, with the rows of its files."""
    found: dict[str, Found] = {}
    async for batch in client.batches.list(limit=100):
        seen = as_seen(batch)
        watch.note(seen)
        rows = [await _rows(client, file_id) for file_id in seen.files]
        found[seen.batch_id] = Found(status=seen.status, counts=seen.counts, output=rows[0], error=rows[1])
    return found


async def _rows(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, object]]:
    if file_id is None:
        return []
    content = await until_done(lambda: client.files.content(file_id))
    return [json.loads(row) for row in content.content.split(b"\n") if row]


def _points_of(one: Round) -> tuple[Failpoint, ...]:
    names: list[Failpoint] = [name for name, _ in one.points]
    if one.front is not None:
        names.append(one.front)
    return tuple(names)


def _slowest_sync(folder: Path, count: int) -> float:
    """Seconds, of so many writes as the worker does them."""
    slowest = 0.0
    path = folder / "sync"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for number in range(count):
            began = monotonic()
            os.pwrite(descriptor, bytes(4096), number * 4096)
            os.fdatasync(descriptor)
            slowest = max(slowest, monotonic() - began)
    finally:
        os.close(descriptor)
        path.unlink()
    return slowest
