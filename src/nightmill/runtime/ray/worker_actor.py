"""The actor that runs one worker: the same child process as everywhere, on a node of the cluster.

The actor starts the worker under a new id, and starts it again when its process exits or the URL of the model
changes. When the actor is killed, the standard input of its worker ends, and the worker gives its leases
back; when the whole node is gone, the leases lapse. The worker is a child process and not a thread, so that
its event loop shares no interpreter with Ray's, and its exit is the same as elsewhere.
"""

import asyncio
import secrets
import time

from nightmill import telemetry
from nightmill.errors import SetupError, UnavailableError
from nightmill.ids import WorkerId, new_worker_id
from nightmill.runtime.child import ROLES
from nightmill.runtime.programs import worker_arguments
from nightmill.runtime.ray.leased_actor import Command, LeasedActor
from nightmill.runtime.supervisor import Program, Supervisor
from nightmill.settings import Settings, as_message, from_message, with_own_secrets
from nightmill.store import open_store

_EXTRA_S = 1.0


class WorkerActor(LeasedActor):
    """Runs one worker in a child process on a node of the cluster.

    Args:
        message: the settings; without secrets when `has_secrets` is false.
        needs_model: the upstream is a model on the cluster, whose URL a launcher sends.
    """

    def __init__(self, message: str, *, has_secrets: bool, needs_model: bool, unattended_s: float) -> None:
        super().__init__(unattended_s=unattended_s)
        self._settings: Settings | None = None
        self._setup_trouble: str | None = None
        try:
            self._settings = from_message(message) if has_secrets else with_own_secrets(message)
        except SetupError as error:
            self._setup_trouble = f"a node's settings: {error}"
        self._needs_model = needs_model
        self._model_url: str | None = None
        self._supervisor: Supervisor | None = None
        self.start()

    @property
    def trouble(self) -> str | None:
        supervisor = self._supervisor
        return self._setup_trouble or (None if supervisor is None else supervisor.exits_text)

    @property
    def problems(self) -> bytes:
        supervisor = self._supervisor
        return b"" if supervisor is None else supervisor.problems.encoded()

    def receive(self, command: Command) -> None:
        # No URL may only mean that the launcher has not looked yet. Attempts wait while the model is away.
        if self._needs_model and command["url"] not in (None, self._model_url):
            self._model_url = command["url"]
            self.wake()
        supervisor = self._supervisor
        if command["notify"] and supervisor is not None:
            self.call_in_loop(supervisor.notify)

    async def work(self) -> None:
        while not self.is_leaving:
            settings = self._ready_settings()
            if settings is None:
                await self.wait()
                continue
            await self._run_worker(settings)

    def _ready_settings(self) -> Settings | None:
        """None while no model answers."""
        if self._settings is None or not self._needs_model:
            return self._settings
        if self._model_url is None:
            return None
        upstream = self._settings.upstream.model_copy(update={"url": self._model_url})
        return self._settings.model_copy(update={"upstream": upstream})

    async def _run_worker(self, settings: Settings) -> None:
        """Runs the worker until the actor is to leave, or the URL of the model changes."""
        url = settings.upstream.url
        worker_id = new_worker_id(secrets.token_bytes(16))
        program = Program("worker", ROLES, worker_arguments(worker_id, 0), as_message(settings))
        supervisor = Supervisor(emit=telemetry.log, notify_local=_no_local_roles, monotonic=time.monotonic)
        supervisor.on_exit = lambda _: self._release_leases(settings, worker_id, supervisor)
        self._supervisor = supervisor
        try:
            async with asyncio.TaskGroup() as group:
                supervisor.start([program], group=group)
                while not self.is_leaving and (not self._needs_model or self._model_url == url):
                    await self.wait()
                await supervisor.drain(grace_s=settings.api.drain_s + _EXTRA_S)
        finally:
            self._supervisor = None

    async def _release_leases(self, settings: Settings, worker_id: WorkerId, supervisor: Supervisor) -> None:
        """Releases the leases of a dead worker, so that others take over its work at once."""
        store = open_store(settings.store_url, clock=time.time, busy_timeout_s=settings.store_timeout_s)
        try:
            await store.leases.release_of_worker(worker_id)
        except UnavailableError:
            return
        finally:
            await store.close()
        supervisor.notify()


def _no_local_roles() -> None:
    """This process runs no roles itself that could be woken."""
