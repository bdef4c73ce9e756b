"""The launcher: keeps as many workers on the cluster as the backlog needs, and the model that they use.

Each turn compares the wanted number of workers (`plan`) with the actors of the cluster, and starts or ends
actors. The launcher stores nothing: it may be killed at any moment, any number of launchers may run at once,
and a new one reads the state from the cluster. Ray restarts workers; which worker has which lines is decided
by the store's leases.

When the cluster does not answer, a call of Ray may hang for a minute and then abort the whole process. All
calls of a turn are therefore made in one thread, within `_TURN_S`; after that the turn raises `ClusterLost`,
and this process must exit and be started again.
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
from nightmill.runtime.problems import Problems, decoded, merged
from nightmill.runtime.ray.cluster import Answer, Cluster, ClusterLost, Dead
from nightmill.runtime.ray.leased_actor import ActorReport, Command
from nightmill.runtime.ray.model_actor import ModelActor
from nightmill.runtime.ray.plan import ActorState, Moves, ScaleDownDelay, is_needed, moves, wanted_workers
from nightmill.runtime.ray.worker_actor import WorkerActor
from nightmill.settings import RaySettings, Settings, as_message, without_secrets
from nightmill.store import Store

T = TypeVar("T")

_TURN_S: Final = 30.0
_ANSWER_S: Final = 0.5
_PAUSE_S: Final = 1.0
_SILENCE_S: Final = 10.0
_SILENT_POLLS: Final = 3
_RESTART_PAUSE_S: Final = 5.0
"""After an actor has died, before the next is started."""


class RayThread:
    """Calls Ray, one call after another, in one thread that lives as long as the process."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ray")

    async def do(self, call: Callable[[], T], *, timeout_s: float = _TURN_S) -> T:
        """Returns the result of the call.

        Raises:
            ClusterLost: the call took too long. The thread is stuck then; end the process.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError:
            raise ClusterLost(f"Ray has not answered for {timeout_s:.0f} s") from None


@dataclass(slots=True)
class _Record:
    """What the launcher remembers of an actor between two polls."""

    has_answered: bool = False
    silent_since: float | None = None
    unanswered: int = 0


@dataclass(slots=True)
class _Observation:
    """The state of the cluster as one turn sees it. `present` has the state of each worker by number."""

    present: dict[int, ActorState] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    problems: list[Problems] = field(default_factory=list)


class Launcher:
    """A role: call `turn` again and again, and `leave` at the end.

    Args:
        settings: of this process; the workers get them as `worker_message` makes them.
        launcher_id: the same over restarts of this process.
        report: called with what is wrong with the cluster, and what its workers report.
    """

    name = "launcher"

    def __init__(
        self,
        *,
        store: Store,
        cluster: Cluster,
        thread: RayThread,
        settings: Settings,
        launcher_id: str,
        notifier: Notifier,
        report: Callable[[Problems], None],
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._thread = thread
        self._settings = settings
        self._ray: RaySettings = settings.ray
        self._launcher_id = launcher_id
        self._notifier = notifier
        self._report = report
        self._monotonic = time.monotonic
        self._message = worker_message(settings)
        mark = fingerprint(self._message)
        self._workers = f"worker-{mark}-"
        self._model = f"model-{mark}"
        self._records: dict[str, _Record] = {}
        self._scale_down_delay = ScaleDownDelay(self._ray.idle_s)
        self._needed_at = time.monotonic()
        self._requested: int | None = None
        self._model_url: str | None = None
        self._notified = 0
        self._not_before = 0.0
        self._leaves: dict[str, object | None] = {}

    async def turn(self) -> float:
        """Starts and ends actors as the backlog needs; returns seconds until the next turn.

        Raises:
            UnavailableError: the store is away; the workers stay as they are.
            ClusterLost: connect again, in a new process.
        """
        backlog = await self._store.batches.backlog()
        now = self._monotonic()
        if is_needed(backlog):
            self._needed_at = now
        wanted = wanted_workers(backlog, self._ray)
        notify = self._notifier.count != self._notified
        self._notified = self._notifier.count
        seen = await self._thread.do(lambda: self._observe(notify=notify))
        present = sum(kind in (ActorState.WAITING, ActorState.AT_WORK) for kind in seen.present.values())
        target = self._scale_down_delay.target(wanted, present=present, now=now)
        step = moves(seen.present, target=target)
        await self._thread.do(lambda: self._apply(step, target=target))
        self._report(merged([Problems(others=tuple(sorted(seen.troubles)[:1])), *seen.problems]))
        return _PAUSE_S

    async def leave(self, *, grace_s: float) -> None:
        """Asks every actor to drain that no other launcher needs, and waits until they are gone.

        An actor that misses the request, because it is being restarted, leaves when it is unattended.
        """
        give_up_at = self._monotonic() + grace_s
        while self._monotonic() < give_up_at:
            if not await self._thread.do(self._dismiss_all):
                return
            await asyncio.sleep(_ANSWER_S)

    # --- in the thread for Ray ---------------------------------------------------------------------

    def _observe(self, *, notify: bool) -> _Observation:
        seen = _Observation()
        names = self._cluster.names(self._workers)
        if self._ray.model.name is not None:
            self._observe_model(seen)
        command = Command(launcher_id=self._launcher_id, url=self._model_url, notify=notify)
        answers = self._cluster.poll(names, command, wait_s=_ANSWER_S)
        for name in names:
            kind = self._judge(name, answers.get(name), seen)
            number = name.removeprefix(self._workers)
            if kind is not None and number.isdecimal():
                seen.present[int(number)] = kind
        for name in self._records.keys() - set(names) - {self._model}:
            self._forget(name)
        return seen

    def _judge(self, name: str, answer: Answer, seen: _Observation) -> ActorState | None:
        record = self._records.setdefault(name, _Record())
        now = self._monotonic()
        match answer:
            case Dead(reason):
                seen.troubles.append(f"a Ray actor died: {reason}")
                self._not_before = now + _RESTART_PAUSE_S
                self._forget(name)
                return None
            case None:
                record.unanswered += 1
                record.silent_since = now if record.silent_since is None else record.silent_since
                silence_s = max(_SILENCE_S, self._settings.worker.lease_ttl_s)
                is_silent = record.unanswered >= _SILENT_POLLS and now - record.silent_since > silence_s
                if is_silent and record.has_answered:
                    return ActorState.SILENT
                return ActorState.AT_WORK if record.has_answered else ActorState.WAITING
            case _:
                record.has_answered, record.silent_since, record.unanswered = True, None, 0
                return self._kind(answer, seen)

    def _kind(self, report: ActorReport, seen: _Observation) -> ActorState:
        if report["version"] != __version__:
            seen.troubles.append(
                f"the node {report['node']} has nightmill {report['version']}, this process has"
                f" {__version__}; install the same version on the node, or see ray.runtime_env"
            )
            self._not_before = self._monotonic() + _RESTART_PAUSE_S
            return ActorState.MISMATCHED
        if report["trouble"] is not None:
            seen.troubles.append(report["trouble"])
        seen.problems.append(decoded(report["problems"]))
        return ActorState.LEAVING if report["is_leaving"] else ActorState.AT_WORK

    def _observe_model(self, seen: _Observation) -> None:
        """Sets the model's URL. The model runs while it is needed and for `ray.model.idle_s` after; its
        workers end first.
        """
        command = Command(launcher_id=self._launcher_id, url=None, notify=False)
        name = self._model
        if name not in self._cluster.names(name):
            self._model_url = None
            return
        answer = self._cluster.poll([name], command, wait_s=_ANSWER_S)[name]
        kind = self._judge(name, answer, seen)
        if kind in (ActorState.SILENT, ActorState.MISMATCHED):
            self._kill(name)
        elif answer is not None and not isinstance(answer, Dead):
            self._model_url = answer["url"]

    def _apply(self, step: Moves, *, target: int) -> None:
        for number in step.drop:
            self._kill(f"{self._workers}{number}")
        for number in step.leave:
            self._cluster.call(f"{self._workers}{number}", "dismiss", wait_s=_ANSWER_S)
        if self._requested != target and self._ray.tell_autoscaler:
            self._cluster.request_resources([self._bundle()] * target)
            self._requested = target
        if self._monotonic() < self._not_before:
            return
        for number in step.start:
            self._start_worker(f"{self._workers}{number}")
        if self._ray.model.name is not None:
            self._apply_to_model(has_workers=target > 0)

    def _apply_to_model(self, *, has_workers: bool) -> None:
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
            self._cluster.call(self._model, "dismiss", wait_s=_ANSWER_S)

    def _start_worker(self, name: str) -> None:
        are_sent = self._ray.secrets == "sent"
        arguments: dict[str, Any] = {
            "message": as_message(self._message) if are_sent else without_secrets(self._message),
            "has_secrets": are_sent,
            "needs_model": self._ray.model.name is not None,
            "unattended_s": self._ray.unattended_s,
        }
        self._cluster.start(
            name, WorkerActor, arguments, cpus=self._ray.cpus_per_worker, resources=self._ray.resources
        )

    def _bundle(self) -> dict[str, float]:
        return {"CPU": self._ray.cpus_per_worker, **self._ray.resources}

    def _dismiss_all(self) -> bool:
        """Asks every actor to leave; returns whether any is still to exit."""
        names = [*self._cluster.names(self._workers), *self._cluster.names(self._model)]
        for name in names:
            record = self._records.get(name)
            if record is None or not record.has_answered:
                self._kill(name)
            elif self._leaves.get(name) is None:
                self._leaves[name] = self._cluster.call(name, "leave", self._launcher_id, wait_s=_ANSWER_S)
        if self._requested and False not in self._leaves.values():
            self._cluster.request_resources([])
            self._requested = 0
        return any(self._leaves.get(name) is not False for name in names)

    def _kill(self, name: str) -> None:
        self._cluster.kill(name)
        self._records.pop(name, None)

    def _forget(self, name: str) -> None:
        self._cluster.forget(name)
        self._records.pop(name, None)


def worker_message(settings: Settings) -> Settings:
    """The settings for a worker on the cluster: the same for all launchers that need the same workers.

    The folder is made absolute, because a relative one means another folder on a node. Settings that only the
    API or a launcher reads are left at their defaults.
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
    """A part of the names of actors, so that a launcher leaves those of other settings or versions alone."""
    text = f"{__version__}\n{as_message(settings)}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]
