"""An actor that leaves the cluster by itself when no launcher renews its lease.

Launchers call `renew` every second or two. The actor works on without a launcher, and needs none to be
restarted by Ray. It leaves when the only launcher that has called lately asks for it, or when no launcher has
called for `unattended_s`; it finishes its current work first. The work itself is in `worker_actor` and
`model_actor`.

Ray calls the methods in a thread of its own. The work runs in an event loop in another thread, which this
class starts and ends.
"""

import asyncio
import importlib
import threading
import time
from typing import Any, TypedDict

from nightmill import __version__

_LATELY_S = 15.0
"""A launcher that has not called for this many seconds no longer keeps the actor from leaving."""
_POLL_S = 0.5


class Command(TypedDict):
    """What a launcher sends. `url`: where the model answers, None while there is none."""

    launcher_id: str
    url: str | None
    notify: bool


class ActorReport(TypedDict):
    """What an actor answers. `trouble`: what keeps the actor itself from its work; `problems`: what its
    worker reports, by `Problems.encoded`; `url`: where its model answers."""

    version: str
    node: str
    is_leaving: bool
    trouble: str | None
    problems: bytes
    url: str | None


class LeasedActor:
    """The base of the actors: the lease, the event loop, and the exit.

    Args:
        unattended_s: the actor leaves when no launcher has called for this many seconds.
    """

    def __init__(self, *, unattended_s: float) -> None:
        self._unattended_s = unattended_s
        self._launchers: dict[str, float] = {}
        self._renewed_at = time.monotonic()
        self._is_leaving = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._node = _ray().util.get_node_ip_address()

    def start(self) -> None:
        """Starts the work. The constructor calls it last, so that a restart by Ray needs no launcher."""
        threading.Thread(target=self._run, name="nightmill", daemon=True).start()

    # --- called by launchers -----------------------------------------------------------------------

    def renew(self, command: Command) -> ActorReport:
        """Renews the lease of a launcher on this actor."""
        self._renewed_at = time.monotonic()
        self._launchers[command["launcher_id"]] = self._renewed_at
        self.receive(command)
        return ActorReport(
            version=__version__,
            node=self._node,
            is_leaving=self._is_leaving,
            trouble=self.trouble,
            problems=self.problems,
            url=self.url,
        )

    def leave(self, launcher_id: str) -> bool:
        """Leaves, unless other launchers have called lately; returns whether it leaves."""
        self._launchers.pop(launcher_id, None)
        if any(time.monotonic() - renewed_at < _LATELY_S for renewed_at in self._launchers.values()):
            return False
        self._leave()
        return True

    def dismiss(self) -> None:
        """Leaves, even when other launchers call: the work has no need of this actor."""
        self._leave()

    def end(self) -> None:
        """Called by the actor itself: Ray does not restart an actor that exits so."""
        _ray().actor.exit_actor()

    # --- for subclasses to override ----------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        return None

    @property
    def problems(self) -> bytes:
        return b""

    @property
    def url(self) -> str | None:
        return None

    def receive(self, command: Command) -> None:
        """Acts on the command of a launcher."""

    async def work(self) -> None:
        """Works until `is_leaving`; wait with `wait`."""
        raise NotImplementedError

    # --- for subclasses to call --------------------------------------------------------------------

    @property
    def is_leaving(self) -> bool:
        return self._is_leaving

    async def wait(self, *, timeout_s: float | None = None) -> None:
        """Returns after `wake`, when the actor is to leave, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def wake(self) -> None:
        """Ends `wait`. May be called from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._changed.set)

    def call_in_loop(self, call: Any) -> None:
        """Calls a function in the thread of the work."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call)

    # --- inside ------------------------------------------------------------------------------------

    def _leave(self) -> None:
        self._is_leaving = True
        self.wake()

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        finally:
            _ray().get_runtime_context().current_actor.end.remote()

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._is_leaving:
            return
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._leave_when_unattended())
            await self.work()
            watching.cancel()

    async def _leave_when_unattended(self) -> None:
        while not self._is_leaving:
            await asyncio.sleep(min(_POLL_S, self._unattended_s))
            if time.monotonic() - self._renewed_at > self._unattended_s:
                self._leave()


def _ray() -> Any:
    # Ray's types are too incomplete for strict checks, and this module must be importable without Ray.
    return importlib.import_module("ray")
