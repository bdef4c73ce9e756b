"""The actor that runs one worker: the same child process as everywhere, on a node of the cluster.

Duty: start the worker program here, under an id of its own, and start it again when it dies or the model it
asks has moved. Promise: when the actor is killed its worker hears of it (its standard input ends) and gives
its leases back; when the whole node is gone they lapse. Not its duty: the worker itself.

A child and not a thread: its event loop shares no interpreter with Ray's, and it ends as it does anywhere.
"""

import asyncio
import secrets
import time

from nightmill import telemetry
from nightmill.errors import SetupError, UnavailableError
from nightmill.ids import WorkerId, new_worker_id
from nightmill.runtime.ray.leased_actor import Command, LeasedActor
from nightmill.runtime.supervisor import Program, Supervisor
from nightmill.settings import Settings, as_message, from_message, with_own_secrets
from nightmill.store import open_store

_EXTRA_S = 1.0


class WorkerActor(LeasedActor):
    """Args:
    message: the settings; without secrets when `has_secrets` is false.
    module: the worker's program; it takes the worker's id and `worker:0` and its settings as first line.
    needs_model: the upstream is a model on the cluster, and a launcher says where.
    """

    def __init__(
        self, message: str, *, module: str, has_secrets: bool, needs_model: bool, unattended_s: float
    ) -> None:
        super().__init__(unattended_s=unattended_s)
        self._module = module
        self._settings: Settings | None = None
        self._setup_trouble: str | None = None
        try:
            self._settings = from_message(message) if has_secrets else with_own_secrets(message)
        except SetupError as error:
            self._setup_trouble = f"a node's settings: {error}"
        self._needs_model = needs_model
        self._model_url: str | None = None
        self._supervisor: Supervisor | None = None
        self.begin()

    @property
    def trouble(self) -> str | None:
        supervisor = self._supervisor
        return self._setup_trouble or (None if supervisor is None else supervisor.trouble)

    def take(self, command: Command) -> None:
        # No URL may only mean that nobody has looked yet. Attempts wait by themselves while nobody answers.
        if self._needs_model and command["url"] not in (None, self._model_url):
            self._model_url = command["url"]
            self.note_change()
        supervisor = self._supervisor
        if command["notify"] and supervisor is not None:
            self.call_in_loop(supervisor.notify)

    async def work(self) -> None:
        while not self.is_leaving:
            settings = self._ready_settings()
            if settings is None:
                await self.change()
                continue
            await self._work_on(settings)

    def _ready_settings(self) -> Settings | None:
        """None while there is nobody to ask."""
        if self._settings is None or not self._needs_model:
            return self._settings
        if self._model_url is None:
            return None
        upstream = self._settings.upstream.model_copy(update={"url": self._model_url})
        return self._settings.model_copy(update={"upstream": upstream})

    async def _work_on(self, settings: Settings) -> None:
        """Until it is to leave, or the model is elsewhere."""
        asked = settings.upstream.url
        worker_id = new_worker_id(secrets.token_bytes(16))
        program = Program("worker", self._module, (worker_id, "worker:0"), as_message(settings))
        supervisor = Supervisor(emit=telemetry.log, notify_local=_no_local_roles, monotonic=time.monotonic)
        supervisor.on_exit = lambda _: self._take_back(settings, worker_id, supervisor)
        self._supervisor = supervisor
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(supervisor.keep(program))
                while not self.is_leaving and (not self._needs_model or self._model_url == asked):
                    await self.change()
                await supervisor.drain(grace_s=settings.api.drain_s + _EXTRA_S)
        finally:
            self._supervisor = None

    async def _take_back(self, settings: Settings, worker_id: WorkerId, supervisor: Supervisor) -> None:
        """What a dead worker held goes to others at once, not when its leases lapse."""
        store = open_store(settings.store_url, clock=time.time, busy_timeout_s=settings.store_timeout_s)
        try:
            await store.leases.release_of_worker(worker_id)
        except UnavailableError:
            return
        finally:
            await store.close()
        supervisor.notify()


def _no_local_roles() -> None:
    """This process has no roles of its own to wake."""
