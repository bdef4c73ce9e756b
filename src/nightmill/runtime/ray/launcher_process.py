"""The child process that launches workers on a Ray cluster: kind `launcher`, argument LAUNCHER_ID.

The first message is the settings as JSON. The launcher is a process of its own, because Ray aborts a process
that loses the head of its cluster. When the parent exits, workers on the cluster are left alone: the next
launcher takes them over, or they leave by themselves. Only a drain ends them.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Final

from nightmill import telemetry
from nightmill.errors import NightmillError, SetupError, UnavailableError
from nightmill.roles.loop import Notifier
from nightmill.runtime.child import DRAIN, Parent, level_in
from nightmill.runtime.logs import set_level, start_logs
from nightmill.runtime.problems import Problems, problem
from nightmill.runtime.ray.cluster import Cluster, ClusterLost
from nightmill.runtime.ray.launcher import Launcher, RayThread
from nightmill.runtime.storage import open_stored
from nightmill.settings import Settings, from_message

_RECONNECT_PAUSE_S: Final = 2.0
_CLOSE_S: Final = 5.0
_CONNECT_S: Final = 120.0


class _ParentCommands:
    """Acts on what the parent sends, and reports problems to the parent."""

    def __init__(self, parent: Parent) -> None:
        self.notifier = Notifier()
        self.stop = asyncio.Event()
        self.has_parent = True
        self._parent = parent
        self._reported = Problems()
        self._logged: set[object] = set()

    async def follow(self) -> None:
        async for received in self._parent.messages():
            if DRAIN in received:
                self.stop.set()
            if (level := level_in(received)) is not None:
                set_level(level)
            self.notifier.notify_local()
        self.has_parent = self.stop.is_set()
        self.stop.set()
        self.notifier.notify_local()

    def report(self, problems: Problems) -> None:
        """Reports the problems, and logs them when one is new."""
        keys: set[object] = {
            *problems.others,
            *((held.upstream, held.model, held.needs_operator) for held in problems.held),
        }
        if keys - self._logged:
            logging.getLogger("nightmill").warning("the launcher: %s", problems.text)
        self._logged = keys
        if problems != self._reported:
            self._reported = problems
            self._parent.report(problems.encoded())


def run(message: str, arguments: Sequence[str], parent: Parent) -> int:
    """Launches workers until the parent drains this process or exits; never returns.

    Args:
        arguments: the launcher's id, the same over restarts of this process.
    """
    settings = from_message(message)
    start_logs(settings.log_level, settings.log_format, role="launcher")
    exit_code = asyncio.run(_launch(settings, arguments[0], parent))
    logging.shutdown()
    os._exit(exit_code)  # a thread that is stuck in Ray must not keep the process


async def _launch(settings: Settings, launcher_id: str, parent: Parent) -> int:
    commands = _ParentCommands(parent)
    following = asyncio.create_task(commands.follow())
    cluster, thread = Cluster(settings.ray), RayThread()
    store = open_stored(settings)
    try:
        if not await _connect(cluster, thread, commands):
            return 0
        launcher = Launcher(
            store=store,
            cluster=cluster,
            thread=thread,
            settings=settings,
            launcher_id=launcher_id,
            notifier=commands.notifier,
            report=commands.report,
        )
        await _turn_until_stopped(launcher, commands)
        if commands.has_parent:
            with contextlib.suppress(TimeoutError):
                await launcher.leave(grace_s=settings.api.drain_s)
        await thread.do(cluster.close, timeout_s=_CLOSE_S)
    except ClusterLost as lost:
        commands.report(problem(str(lost)))
        return NightmillError.exit_code if commands.stop.is_set() else UnavailableError.exit_code
    finally:
        following.cancel()
        await store.close()
    return 0


async def _connect(cluster: Cluster, thread: RayThread, commands: _ParentCommands) -> bool:
    """Whether a connection was made; False when the process is to stop first."""
    while not commands.stop.is_set():
        try:
            await thread.do(cluster.connect, timeout_s=_CONNECT_S)
        except (ClusterLost, SetupError) as error:
            commands.report(problem(str(error)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RECONNECT_PAUSE_S):
                    await commands.stop.wait()
        else:
            commands.report(Problems())
            return True
    return False


async def _turn_until_stopped(launcher: Launcher, commands: _ParentCommands) -> None:
    """As `keep_turning`, but the loss of the cluster ends the loop."""
    while not commands.stop.is_set():
        count_before = commands.notifier.count
        try:
            pause_s = await launcher.turn()
        except UnavailableError as away:
            telemetry.log(telemetry.RoleFailed(launcher.name, away))
            pause_s = float(away.retry_after_s)
        if not commands.stop.is_set():
            await commands.notifier.wait(since=count_before, timeout_s=pause_s)
