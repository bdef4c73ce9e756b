"""Runs the API of `nightmill serve`, and on a stop keeps answering while the roles drain.

The lock, the listener, recovery and the children belong to `serve`. This module is loaded late, because
loading the API takes as long as loading everything else.
"""

import asyncio
import contextlib
import random
import secrets
import socket
from collections.abc import Callable, Generator
from functools import partial

import uvicorn

from nightmill import telemetry
from nightmill.api.action_runner import ActionRunner
from nightmill.api.app import create_app
from nightmill.api.connection import http_config
from nightmill.api.context import ApiContext
from nightmill.dashboard.app import with_dashboard
from nightmill.ids import new_worker_id
from nightmill.roles.loop import Notifier, keep_turning
from nightmill.runtime import logs
from nightmill.runtime.banner import Listening, say_listening
from nightmill.runtime.components import Components
from nightmill.runtime.process_setup import raise_open_file_limit
from nightmill.runtime.steady_clock import steady_clock
from nightmill.runtime.stop_signals import StopSignals
from nightmill.runtime.supervisor import Supervisor, change_log_level
from nightmill.runtime.systemd import notify_ready
from nightmill.upstream import Upstream
from nightmill.upstream.connect import open_upstream


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, because a signal must drain the roles first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        notify_ready()


async def serve_api(
    components: Components,
    *,
    supervisor: Supervisor,
    listener: socket.socket,
    signals: StopSignals,
    data: str,
    say: Callable[[str], None],
) -> None:
    """Serves until a stop is requested, and drains every child.

    Args:
        data: where the data is and what the start found there, for the operator.
    """
    raise_open_file_limit()
    settings = components.settings
    url = settings.upstream.url
    upstream = None if url is None else open_upstream(settings.upstream, url=url)
    servers: list[_Server] = []
    context = _context(
        components, supervisor, upstream, is_stopping=lambda: any(it.should_exit for it in servers)
    )
    server = _Server(
        http_config(
            with_dashboard(create_app(context), context),
            settings.api,
            loop="none",
            timeout_graceful_shutdown=max(1, int(settings.api.drain_s)),
        )
    )

    servers.append(server)

    async def drain_on_stop() -> None:
        await signals.to_stop.wait()
        await supervisor.drain(grace_s=settings.api.drain_s + 1)
        server.should_exit = True

    async def exit_on_second_signal() -> None:
        await signals.to_hurry.wait()
        server.should_exit = server.force_exit = True

    async def say_banner() -> None:
        if signals.to_stop.is_set():
            return
        listening = Listening(*listener.getsockname()[:2])
        await say_listening(settings, listening, components.store, data=data, say=say)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(drain_on_stop())
            exiting = group.create_task(exit_on_second_signal())
            speaking = group.create_task(say_banner())
            acting = group.create_task(_do_actions(context))
            await server.serve(sockets=[listener])
            # An action that is interrupted goes on after the next start.
            for task in (exiting, speaking, acting):
                task.cancel()
    finally:
        if upstream is not None:
            await upstream.close()


async def _do_actions(context: ApiContext) -> None:
    """Does what bulk actions ordered, until it is cancelled."""
    await keep_turning(
        ActionRunner(context, runner_id=new_worker_id(context.random(16))),
        notifier=Notifier(),
        stop=asyncio.Event(),
        emit=context.emit,
        random=random.random,
    )


def _context(
    components: Components,
    supervisor: Supervisor,
    upstream: Upstream | None,
    *,
    is_stopping: Callable[[], bool],
) -> ApiContext:
    return ApiContext(
        store=components.store,
        blobs=components.blobs,
        parts=components.parts,
        settings=components.settings,
        notify=supervisor.notify,
        upstream_models=_no_models if upstream is None else upstream.models,
        clock=steady_clock,
        random=secrets.token_bytes,
        trouble=lambda: supervisor.trouble,
        held=lambda: supervisor.problems.held,
        is_stopping=is_stopping,
        emit=telemetry.log,
        log_level=logs.level,
        set_log_level=partial(change_log_level, supervisor),
    )


async def _no_models() -> bytes | None:
    """Without an upstream in this process, the setting `upstream.models` lists the models."""
    return None
