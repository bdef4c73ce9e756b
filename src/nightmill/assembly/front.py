"""The API of `nightmill serve`: recover, answer, and at the end answer on while the roles drain.

Promise: the children begin only when nobody holds a lease any more (whoever held the folder before is dead:
the lock proves it). Not its duty: the lock, the listener and the children themselves (`serve`).
"""

import asyncio
import contextlib
import ipaddress
import secrets
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn

from nightmill import telemetry
from nightmill.api.app import create_app
from nightmill.api.connection import http_config
from nightmill.api.context import ApiContext
from nightmill.assembly.clock import steady_clock
from nightmill.assembly.open_files import raise_open_file_limit
from nightmill.assembly.places import check_places
from nightmill.assembly.programs import take_back
from nightmill.assembly.rooms import Rooms, open_rooms
from nightmill.assembly.start import prepare
from nightmill.crash import point
from nightmill.engine.local import LocalEngine
from nightmill.errors import SetupError
from nightmill.roles.loop import Bell
from nightmill.settings import Settings
from nightmill.store import Store
from nightmill.upstream.connect import open_upstream


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: a signal here drains the roles first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def serve_front(
    settings: Settings,
    *,
    engine: LocalEngine,
    bell: Bell,
    listener: socket.socket,
    say: Callable[[str], None],
) -> None:
    """Serves until SIGTERM or SIGINT, and ends every child."""
    raise_open_file_limit()
    await prepare(settings)
    await check_places(settings)
    async with open_rooms(settings, emit=telemetry.log, bell=bell) as rooms:
        await _check_keys(settings, rooms.store)
        point("serve.before_recovery")
        if settings.is_embedded:  # over a store that others share, leases lapse and writers may be alive
            await rooms.store.release_all_leases()
            await rooms.blobs.sweep_unfinished()
        point("serve.recovered")
        engine.bury = take_back(rooms.store, engine)
        engine.let_go()
        await _answer(rooms, engine, listener, say)


async def _answer(
    rooms: Rooms, engine: LocalEngine, listener: socket.socket, say: Callable[[str], None]
) -> None:
    settings = rooms.settings
    url = settings.upstream.url
    upstream = None if url is None else open_upstream(settings.upstream, url=url)
    context = ApiContext(
        store=rooms.store,
        blobs=rooms.blobs,
        settings=settings,
        ring=engine.ring,
        upstream_models=_no_models if upstream is None else upstream.models,
        clock=steady_clock,
        random=secrets.token_bytes,
        trouble=lambda: engine.trouble,
    )
    server = _Server(
        http_config(
            create_app(context),
            settings.api,
            loop="none",
            timeout_graceful_shutdown=max(1, int(settings.api.drain_s)),
        )
    )
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            server.should_exit = server.force_exit = True
            engine.kill()
        stopping.set()
        engine.start_drain()

    async def end_when_asked() -> None:
        await stopping.wait()
        await engine.drain(grace_s=settings.api.drain_s + 1)
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(end_when_asked())
            source = "what its workers ask" if url is None else url
            say(f"nightmill listens on http://{shown}:{port}/v1 and answers from {source}")
            await server.serve(sockets=[listener])
    finally:
        if upstream is not None:
            await upstream.close()


async def _no_models() -> bytes | None:
    """No upstream is named here; `upstream.models` says what is offered."""
    return None


async def _check_keys(settings: Settings, store: Store) -> None:
    if _is_loopback(settings.api.host) and settings.keyless_on_loopback:
        return
    if await store.has_api_keys():
        return
    message = (
        f"refusing to listen on {settings.api.host} without API keys; make one with "
        f"'nightmill keys create NAME --folder {settings.folder}', or listen on 127.0.0.1"
    )
    raise SetupError(message)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
