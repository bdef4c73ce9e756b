"""`nightmill serve`: the API in this process, the roles and any upstream of our own in children.

Order of a start: lock, migrate, take back the leases of whoever held the folder before (nobody alive does:
the lock proves it), listen, then start the roles. Order of an end: stop listening, drain the roles, close.
"""

import asyncio
import contextlib
import ipaddress
import secrets
import signal
import socket
import time
from collections.abc import Callable, Generator

import uvicorn

from nightmill import telemetry
from nightmill.api.app import create_app
from nightmill.api.context import ApiContext
from nightmill.assembly.folder_lock import locked_folder
from nightmill.assembly.logs import start_logs
from nightmill.assembly.rooms import open_rooms
from nightmill.assembly.upstreams import choose_upstream
from nightmill.engine.local import LocalEngine, Program
from nightmill.errors import SetupError
from nightmill.roles.loop import Bell
from nightmill.settings import Settings, as_message
from nightmill.store import Store
from nightmill.store.migrate import migrate
from nightmill.upstream.connect import open_upstream

Say = Callable[[str], None]


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: a signal here drains the roles too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def serve(settings: Settings, *, say: Say) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    Raises:
        SetupError: there is no upstream, the folder is in use, the address is taken or not allowed.
    """
    start_logs(settings.log_level)
    settings, programs = await choose_upstream(settings, say=say)
    with locked_folder(settings.folder):
        await migrate(settings.store_url)
        bell = Bell()
        engine = LocalEngine(emit=telemetry.log, ring_here=bell.ring_here, monotonic=time.monotonic)
        async with open_rooms(settings, emit=telemetry.log, bell=bell) as rooms:
            await _check_keys(settings, rooms.store)
            await rooms.store.release_all_leases()
            await rooms.blobs.sweep_unfinished()
            assert settings.upstream.url is not None
            upstream = open_upstream(settings.upstream, url=settings.upstream.url)
            context = ApiContext(
                store=rooms.store,
                blobs=rooms.blobs,
                settings=settings,
                ring=engine.ring,
                upstream_models=upstream.models,
                clock=time.time,
                random=secrets.token_bytes,
            )
            try:
                return await _run(settings, context, engine, [*programs, *_roles(settings)], say)
            finally:
                await upstream.close()


async def _run(
    settings: Settings, context: ApiContext, engine: LocalEngine, programs: list[Program], say: Say
) -> int:
    listener = _listen(settings)
    server = _Server(
        uvicorn.Config(
            create_app(context),
            http="httptools",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=2048,
            timeout_keep_alive=settings.api.keep_alive_s,
            limit_concurrency=settings.api.max_connections,
            timeout_graceful_shutdown=max(1, int(settings.api.drain_s)),
        )
    )

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True
            engine.kill()
        server.should_exit = True
        engine.start_drain()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    host, port = listener.getsockname()[:2]
    async with asyncio.TaskGroup() as group:
        for program in programs:
            group.create_task(engine.keep(program))
        shown = f"[{host}]" if ":" in host else host
        say(f"nightmill listens on http://{shown}:{port}/v1 and answers from {settings.upstream.url}")
        await server.serve(sockets=[listener])
        await engine.drain(grace_s=settings.api.drain_s + 1)
    return 0


def _roles(settings: Settings) -> list[Program]:
    message = as_message(settings)
    module = "nightmill.assembly.work"
    return [
        *(
            Program(f"worker {number}", module, (f"worker:{number}",), message)
            for number in range(settings.worker.processes)
        ),
        Program("keeper", module, ("intake", "finalizer", "warden"), message),
    ]


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.api.host, settings.api.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = error.strerror or type(error).__name__
        message = f"can't listen on {host}:{port}: {reason}; choose another with --host and --port"
        raise SetupError(message) from None
    return listener


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
