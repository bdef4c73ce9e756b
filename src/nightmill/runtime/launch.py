"""A child process of the local supervisor: the launcher of workers on Ray.

`python -m nightmill.runtime.launch LAUNCHER_ID`; the first line of its input is its settings as JSON, then
bytes that ring or drain, as for `work`. A process of its own, because Ray ends the process of whoever loses a
cluster's head. At the end of its input it leaves the workers alone, to be attended by the next launcher or to
leave by themselves; only a drain sends them away.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys

from nightmill import telemetry
from nightmill.errors import NightmillError, SetupError, UnavailableError
from nightmill.roles.loop import Notifier
from nightmill.runtime.child import first_line
from nightmill.runtime.logs import start_logs
from nightmill.runtime.programs import WORKER_MODULE
from nightmill.runtime.ray.cluster import Cluster, ClusterLost
from nightmill.runtime.ray.launcher import Launcher, RayThread
from nightmill.runtime.start import open_stored
from nightmill.runtime.supervisor import DRAIN
from nightmill.settings import Settings, from_message

_AGAIN_S = 2.0
_END_S = 5.0
_CONNECT_S = 120.0
_TROUBLE_BYTES = 400


class _Parent:
    """What the parent says, and what is said to it."""

    def __init__(self, to_parent: int) -> None:
        self.notifier = Notifier()
        self.stop = asyncio.Event()
        self.is_gone = False
        self._to_parent = to_parent
        self._told: str | None = None

    async def listen(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while received := await reader.read(1024):
            if DRAIN in received:
                self.stop.set()
            self.notifier.notify_local()
        self.is_gone = not self.stop.is_set()
        self.stop.set()
        self.notifier.notify_local()

    def say(self, trouble: str | None) -> None:
        """Only when it changes."""
        if trouble == self._told:
            return
        self._told = trouble
        if trouble is not None:
            logging.getLogger("nightmill").warning("the launcher: %s", trouble)
        line = b"-" if trouble is None else b"!" + " ".join(trouble.split()).encode()[:_TROUBLE_BYTES]
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._to_parent, line + b"\n")


async def launch(settings: Settings, launcher_id: str, to_parent: int) -> int:
    parent = _Parent(to_parent)
    listening = asyncio.create_task(parent.listen())
    cluster, thread = Cluster(settings.ray), RayThread()
    store = open_stored(settings)
    try:
        if not await _connect(cluster, thread, parent):
            return 0
        launcher = Launcher(
            store=store,
            cluster=cluster,
            thread=thread,
            settings=settings,
            worker_module=WORKER_MODULE,
            launcher_id=launcher_id,
            notifier=parent.notifier,
            say=parent.say,
        )
        await _turn_until_stopped(launcher, parent)
        if not parent.is_gone:
            with contextlib.suppress(TimeoutError):
                await launcher.leave(grace_s=settings.api.drain_s)
        await thread.do(cluster.close, timeout_s=_END_S)
    except ClusterLost as lost:
        parent.say(str(lost))
        return NightmillError.exit_code if parent.stop.is_set() else UnavailableError.exit_code
    finally:
        listening.cancel()
        await store.close()
    return 0


async def _connect(cluster: Cluster, thread: RayThread, parent: _Parent) -> bool:
    """Whether it is connected; not, when it is to stop first."""
    while not parent.stop.is_set():
        try:
            await thread.do(cluster.connect, timeout_s=_CONNECT_S)
        except (ClusterLost, SetupError) as error:
            parent.say(str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S):
                    await parent.stop.wait()
        else:
            parent.say(None)
            return True
    return False


async def _turn_until_stopped(launcher: Launcher, parent: _Parent) -> None:
    """As `keep_turning`, but a cluster that is lost ends it."""
    while not parent.stop.is_set():
        count_before = parent.notifier.count
        try:
            pause_s = await launcher.turn()
        except UnavailableError as away:
            telemetry.log(telemetry.RoleFailed(launcher.name, away))
            pause_s = float(away.retry_after_s)
        if not parent.stop.is_set():
            await parent.notifier.wait(since=count_before, timeout_s=pause_s)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    message = first_line(sys.stdin.fileno())
    if not message:
        return  # the parent ended before there was anything to do
    settings = from_message(message)
    start_logs(settings.log_level)
    to_parent = os.dup(sys.stdout.fileno())
    os.set_blocking(to_parent, False)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    exit_code = asyncio.run(launch(settings, sys.argv[1], to_parent))
    logging.shutdown()
    os._exit(exit_code)  # a thread stuck in Ray must not keep the process


if __name__ == "__main__":
    main()
