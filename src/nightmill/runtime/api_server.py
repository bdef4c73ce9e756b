"""The API of `nightmill serve`: answer, and at the end answer on while the roles drain.

Not its duty: the lock, the listener and the children themselves (`serve`), and what must come before
(`recovery`). Loaded late: it takes as long to load as all the rest.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Generator

import uvicorn

from nightmill.api.app import create_app
from nightmill.api.connection import http_config
from nightmill.api.context import ApiContext
from nightmill.runtime.clocks import steady_clock
from nightmill.runtime.components import Components
from nightmill.runtime.open_files import raise_open_file_limit
from nightmill.runtime.signals import StopRequest
from nightmill.runtime.supervisor import Supervisor
from nightmill.runtime.systemd import notify_ready
from nightmill.upstream.connect import open_upstream


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: a signal here drains the roles first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        notify_ready()


async def serve_front(
    components: Components,
    *,
    supervisor: Supervisor,
    listener: socket.socket,
    stop_request: StopRequest,
    say: Callable[[str], None],
) -> None:
    """Serves until it is asked to stop, and ends every child."""
    raise_open_file_limit()
    settings = components.settings
    url = settings.upstream.url
    upstream = None if url is None else open_upstream(settings.upstream, url=url)
    context = ApiContext(
        store=components.store,
        blobs=components.blobs,
        settings=settings,
        notify=supervisor.notify,
        upstream_models=_no_models if upstream is None else upstream.models,
        clock=steady_clock,
        random=secrets.token_bytes,
        trouble=lambda: supervisor.trouble,
    )
    server = _Server(
        http_config(
            create_app(context),
            settings.api,
            loop="none",
            timeout_graceful_shutdown=max(1, int(settings.api.drain_s)),
        )
    )

    async def end_when_asked() -> None:
        await stop_request.to_stop.wait()
        await supervisor.drain(grace_s=settings.api.drain_s + 1)
        server.should_exit = True

    async def hurry_when_asked() -> None:
        await stop_request.to_hurry.wait()
        server.should_exit = server.force_exit = True

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(end_when_asked())
            hurrying = group.create_task(hurry_when_asked())
            source = "what its workers ask" if url is None else url
            say(f"nightmill listens on http://{shown}:{port}/v1 and answers from {source}")
            await server.serve(sockets=[listener])
            hurrying.cancel()
    finally:
        if upstream is not None:
            await upstream.close()


async def _no_models() -> bytes | None:
    """No upstream is named here; `upstream.models` says what is offered."""
    return None
