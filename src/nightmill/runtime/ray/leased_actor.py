"""An actor that stays while some launcher asks after it, and leaves the cluster by itself when none does.

Duty: the thread with the event loop in which the actor's own duty runs, the command of launchers, the end.
Promise: it needs no launcher to go on working, nor to be restarted by Ray. It leaves when asked to by the
only launcher it has heard of lately, or when unattended for `unattended_s`; then it has finished what it was
at. Not its duty: what it does meanwhile (`worker_actor`, `model_actor`).

Ray calls the methods in its own thread; everything that waits is done in ours.
"""

import asyncio
import importlib
import threading
import time
from typing import Any, TypedDict

from nightmill import __version__

_LATELY_S = 15.0
"""A launcher asks every second or two. One not heard of for so long has gone or will introduce itself
again."""
_LOOK_S = 0.5


class Command(TypedDict):
    """What a launcher says when it asks. `url`: where the model answers, None while it doesn't."""

    launcher_id: str
    url: str | None
    notify: bool


class Report(TypedDict):
    """What an actor answers. `url`: of a model that answers."""

    version: str
    node: str
    is_leaving: bool
    trouble: str | None
    url: str | None


class LeasedActor:
    """Args:
    unattended_s: it leaves when nobody has asked for so long.
    """

    def __init__(self, *, unattended_s: float) -> None:
        self._unattended_s = unattended_s
        self._asked: dict[str, float] = {}
        self._asked_at = time.monotonic()
        self._is_leaving = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._node = _ray().util.get_node_ip_address()

    def begin(self) -> None:
        """Starts the duty; the constructor's last act, so that a restart by Ray needs nobody."""
        threading.Thread(target=self._live, name="nightmill", daemon=True).start()

    # --- what launchers call -----------------------------------------------------------------------

    def attend(self, command: Command) -> Report:
        self._asked_at = time.monotonic()
        self._asked[command["launcher_id"]] = self._asked_at
        self.take(command)
        return Report(
            version=__version__,
            node=self._node,
            is_leaving=self._is_leaving,
            trouble=self.trouble,
            url=self.url,
        )

    def leave(self, launcher_id: str) -> bool:
        """Whether it leaves now: not while other launchers count on it."""
        self._asked.pop(launcher_id, None)
        if any(time.monotonic() - asked_at < _LATELY_S for asked_at in self._asked.values()):
            return False
        self._leave()
        return True

    def dismiss(self) -> None:
        """It is not needed any more, whoever else asks after it: it leaves."""
        self._leave()

    def end(self) -> None:
        """Called by itself: to Ray this is an end that needs no restart."""
        _ray().actor.exit_actor()

    # --- what an actor of ours fills in ------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        return None

    @property
    def url(self) -> str | None:
        return None

    def take(self, command: Command) -> None:
        """Hears what a launcher says."""

    async def work(self) -> None:
        """The duty, until `is_leaving`; wait with `change`."""
        raise NotImplementedError

    # --- for those ---------------------------------------------------------------------------------

    @property
    def is_leaving(self) -> bool:
        return self._is_leaving

    async def change(self, *, timeout_s: float | None = None) -> None:
        """Returns when `note_change` was called, or it is to leave, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def note_change(self) -> None:
        """From any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._changed.set)

    def call_in_loop(self, call: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call)

    # --- inside ------------------------------------------------------------------------------------

    def _leave(self) -> None:
        self._is_leaving = True
        self.note_change()

    def _live(self) -> None:
        try:
            asyncio.run(self._work())
        finally:
            _ray().get_runtime_context().current_actor.end.remote()

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._is_leaving:
            return
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self._leave_when_alone())
            await self.work()
            looking.cancel()

    async def _leave_when_alone(self) -> None:
        while not self._is_leaving:
            await asyncio.sleep(min(_LOOK_S, self._unattended_s))
            if time.monotonic() - self._asked_at > self._unattended_s:
                self._leave()


def _ray() -> Any:
    # Its types are not complete enough for strict checks; and a module of ours must be importable without it.
    return importlib.import_module("ray")
