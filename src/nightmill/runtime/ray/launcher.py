"""The launcher: as many workers on the cluster as the backlog wants, and the model they ask.

Duty: each turn compare what the store wants (`plan`) with what the cluster has, and bring one to the other.
Promise: it keeps nothing that matters. It may be killed at any moment, any number of them may run side by
side, and a new one goes on from what the cluster says. Not its duty: to keep workers alive (Ray restarts
them) and to say who has which lines (the store's leases).

A Ray that does not answer may hang for a minute and then abort the whole process. So every look at it is made
in one thread, within `_TURN_S`; past that the turn raises `ClusterLost`, and this program is to end and start
anew.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from nightmill import __version__
from nightmill.roles.loop import Notifier
from nightmill.runtime.ray.cluster import Answer, Cluster, ClusterLost, Gone
from nightmill.runtime.ray.leased_actor import Command, Report
from nightmill.runtime.ray.model_actor import ModelActor
from nightmill.runtime.ray.plan import ActorState, Moves, ScaleDownDelay, is_needed, moves, wanted_workers
from nightmill.runtime.ray.worker_actor import WorkerActor
from nightmill.settings import RaySettings, Settings, as_message, without_secrets
from nightmill.store import Store

T = TypeVar("T")

_TURN_S: Final = 30.0
_ASK_S: Final = 0.5
_LOOK_S: Final = 1.0
_SILENCE_S: Final = 10.0
_SILENT_LOOKS: Final = 3
_AGAIN_S: Final = 5.0
"""After an actor that could not live, before the next is started."""


class RayThread:
    """Calls of Ray, one after another in one thread that lives as long as the process."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ray")

    async def do(self, call: Callable[[], T], *, timeout_s: float = _TURN_S) -> T:
        """Raises:
        ClusterLost: it took too long. The thread is stuck then; end the process.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError:
            raise ClusterLost(f"Ray has not answered for {timeout_s:.0f} s") from None


@dataclass(slots=True)
class _Known:
    """What the launcher remembers of an actor between two looks."""

    has_answered: bool = False
    asked_at: float | None = None
    looks: int = 0


@dataclass(slots=True)
class _Round:
    """One look at the cluster."""

    present: dict[int, ActorState] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    has_failed: bool = False


class Launcher:
    """A role: `turn` again and again, `leave` at the end.

    Args:
        settings: what the workers get, too.
        worker_module: the program that runs a worker, in a child of its actor.
        launcher_id: the same over restarts of this program.
        say: is told what is wrong with the cluster, or None.
    """

    name = "launcher"

    def __init__(
        self,
        *,
        store: Store,
        cluster: Cluster,
        thread: RayThread,
        settings: Settings,
        worker_module: str,
        launcher_id: str,
        notifier: Notifier,
        say: Callable[[str | None], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._thread = thread
        self._settings = settings
        self._ray: RaySettings = settings.ray
        self._worker_module = worker_module
        self._launcher_id = launcher_id
        self._notifier = notifier
        self._say = say
        self._monotonic = monotonic
        self._message = worker_message(settings)
        mark = fingerprint(self._message)
        self._workers = f"worker-{mark}-"
        self._model = f"model-{mark}"
        self._known: dict[str, _Known] = {}
        self._scale_down_delay = ScaleDownDelay(self._ray.idle_s)
        self._needed_at = monotonic()
        self._asked_for: int | None = None
        self._model_url: str | None = None
        self._notified = 0
        self._not_before = 0.0
        self._leaves: dict[str, object | None] = {}

    async def turn(self) -> float:
        """Raises:
        UnavailableError: the store is away; workers stay as they are.
        ClusterLost: connect anew, in a new process.
        """
        backlog = await self._store.batches.backlog()
        now = self._monotonic()
        if is_needed(backlog):
            self._needed_at = now
        wanted = wanted_workers(backlog, self._ray)
        notify = self._notifier.count != self._notified
        self._notified = self._notifier.count
        seen = await self._thread.do(lambda: self._look(notify=notify))
        present = sum(kind in (ActorState.WAITING, ActorState.AT_WORK) for kind in seen.present.values())
        target = self._scale_down_delay.target(wanted, present=present, now=now)
        step = moves(seen.present, target=target)
        await self._thread.do(lambda: self._bring(step, target=target))
        self._say(min(seen.troubles, default=None))
        return _LOOK_S

    async def leave(self, *, grace_s: float) -> None:
        """Asks every actor to drain unless another launcher counts on it, and waits until they are gone.

        One that does not hear it in time, because it is just being restarted, leaves when it is unattended.
        """
        give_up_at = self._monotonic() + grace_s
        while self._monotonic() < give_up_at:
            if not await self._thread.do(self._ask_all_to_leave):
                return
            await asyncio.sleep(_ASK_S)

    # --- in the thread of Ray ----------------------------------------------------------------------

    def _look(self, *, notify: bool) -> _Round:
        seen = _Round()
        names = self._cluster.names(self._workers)
        if self._ray.model.name is not None:
            self._look_at_model(seen)
        command = Command(launcher_id=self._launcher_id, url=self._model_url, notify=notify)
        answers = self._cluster.ask(names, command, wait_s=_ASK_S)
        for name in names:
            kind = self._judge(name, answers.get(name), seen)
            number = name.removeprefix(self._workers)
            if kind is not None and number.isdecimal():
                seen.present[int(number)] = kind
        for name in self._known.keys() - set(names) - {self._model}:
            self._forget(name)
        return seen

    def _judge(self, name: str, answer: Answer, seen: _Round) -> ActorState | None:
        known = self._known.setdefault(name, _Known())
        now = self._monotonic()
        match answer:
            case Gone(reason):
                seen.troubles.append(f"an actor of Ray could not live: {reason}")
                self._not_before = now + _AGAIN_S
                self._forget(name)
                return None
            case None:
                known.looks += 1
                known.asked_at = now if known.asked_at is None else known.asked_at
                silence_s = max(_SILENCE_S, self._settings.worker.lease_ttl_s)
                is_silent = known.looks >= _SILENT_LOOKS and now - known.asked_at > silence_s
                if is_silent and known.has_answered:
                    return ActorState.SILENT
                return ActorState.AT_WORK if known.has_answered else ActorState.WAITING
            case _:
                known.has_answered, known.asked_at, known.looks = True, None, 0
                return self._kind(answer, seen)

    def _kind(self, report: Report, seen: _Round) -> ActorState:
        if report["version"] != __version__:
            seen.troubles.append(
                f"the node {report['node']} has nightmill {report['version']} and this is {__version__};"
                " install the same there, or see ray.runtime_env"
            )
            self._not_before = self._monotonic() + _AGAIN_S
            return ActorState.MISMATCHED
        if report["trouble"] is not None:
            seen.troubles.append(report["trouble"])
        return ActorState.LEAVING if report["is_leaving"] else ActorState.AT_WORK

    def _look_at_model(self, seen: _Round) -> None:
        """The model runs while it is needed and for a while after; its workers go first."""
        command = Command(launcher_id=self._launcher_id, url=None, notify=False)
        name = self._model
        if name not in self._cluster.names(name):
            self._model_url = None
            return
        answer = self._cluster.ask([name], command, wait_s=_ASK_S)[name]
        kind = self._judge(name, answer, seen)
        if kind in (ActorState.SILENT, ActorState.MISMATCHED):
            self._drop(name)
        elif answer is not None and not isinstance(answer, Gone):
            self._model_url = answer["url"]

    def _bring(self, step: Moves, *, target: int) -> None:
        for number in step.drop:
            self._drop(f"{self._workers}{number}")
        for number in step.leave:
            self._cluster.tell(f"{self._workers}{number}", "dismiss", wait_s=_ASK_S)
        if self._asked_for != target and self._ray.tell_autoscaler:
            self._cluster.ask_for([self._bundle()] * target)
            self._asked_for = target
        if self._monotonic() < self._not_before:
            return
        for number in step.start:
            self._start_worker(f"{self._workers}{number}")
        if self._ray.model.name is not None:
            self._bring_model(has_workers=target > 0)

    def _bring_model(self, *, has_workers: bool) -> None:
        idle_s = self._monotonic() - self._needed_at
        is_there = bool(self._cluster.names(self._model))
        is_wanted = has_workers or idle_s < self._ray.model.idle_s
        if not is_there and has_workers:
            self._cluster.start(
                self._model,
                ModelActor,
                {
                    "message": self._ray.model.model_dump_json(),
                    "application": self._model,
                    "host": self._ray.model.host or ("127.0.0.1" if self._cluster.is_ours else "0.0.0.0"),  # noqa: S104 - workers of other nodes must reach it
                    "unattended_s": self._ray.unattended_s,
                },
                cpus=0,
                resources={},
            )
        elif is_there and not is_wanted:
            self._cluster.tell(self._model, "dismiss", wait_s=_ASK_S)

    def _start_worker(self, name: str) -> None:
        are_sent = self._ray.secrets == "sent"
        arguments: dict[str, Any] = {
            "message": as_message(self._message) if are_sent else without_secrets(self._message),
            "module": self._worker_module,
            "has_secrets": are_sent,
            "needs_model": self._ray.model.name is not None,
            "unattended_s": self._ray.unattended_s,
        }
        self._cluster.start(
            name, WorkerActor, arguments, cpus=self._ray.cpus_per_worker, resources=self._ray.resources
        )

    def _bundle(self) -> dict[str, float]:
        return {"CPU": self._ray.cpus_per_worker, **self._ray.resources}

    def _ask_all_to_leave(self) -> bool:
        """Whether any is still to go."""
        names = [*self._cluster.names(self._workers), *self._cluster.names(self._model)]
        for name in names:
            known = self._known.get(name)
            if known is None or not known.has_answered:
                self._drop(name)
            elif self._leaves.get(name) is None:
                self._leaves[name] = self._cluster.tell(name, "leave", self._launcher_id, wait_s=_ASK_S)
        if self._asked_for and False not in self._leaves.values():
            self._cluster.ask_for([])
            self._asked_for = 0
        return any(self._leaves.get(name) is not False for name in names)

    def _drop(self, name: str) -> None:
        self._cluster.drop(name)
        self._known.pop(name, None)

    def _forget(self, name: str) -> None:
        self._cluster.forget(name)
        self._known.pop(name, None)


def worker_message(settings: Settings) -> Settings:
    """What a worker on the cluster is told: the same for all launchers that want the same workers.

    A relative folder would mean another one on a node. What only an API or a launcher reads is left out.
    """
    api = type(settings.api)(drain_s=settings.api.drain_s)
    worker = settings.worker.model_copy(update={"processes": 1})
    return settings.model_copy(
        update={
            "folder": settings.folder.absolute(),
            "engine": "local",
            "api": api,
            "limits": type(settings.limits)(),
            "ray": type(settings.ray)(model=settings.ray.model),
            "worker": worker,
        }
    )


def fingerprint(settings: Settings) -> str:
    """In the names of actors: those of other settings or of another nightmill are not ours to move."""
    text = f"{__version__}\n{as_message(settings)}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]
