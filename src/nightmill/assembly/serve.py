"""`nightmill serve`: the API in this process, the roles and any upstream of our own in children.

Order of a start: lock, listen (who connects from now on waits a moment instead of being refused), start the
children, and while they load, load the API (`front`), recover, let the children begin. Order of an end: drain
the roles while the API still answers, then close it.
"""

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable
from importlib import import_module

from nightmill import telemetry
from nightmill.assembly.folder_lock import locked_folder
from nightmill.assembly.logs import start_logs
from nightmill.assembly.upstreams import choose_upstream
from nightmill.engine.local import LocalEngine, Program
from nightmill.errors import SetupError
from nightmill.ids import new_worker_id
from nightmill.roles.loop import Bell
from nightmill.settings import Settings, as_message

Say = Callable[[str], None]


async def serve(settings: Settings, *, say: Say) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    Raises:
        SetupError: there is no upstream, the folder is in use, the address is taken or not allowed.
    """
    start_logs(settings.log_level)
    settings, programs = await choose_upstream(settings, say=say)
    with locked_folder(settings.folder), contextlib.closing(_listen(settings)) as listener:
        bell = Bell()
        engine = LocalEngine(emit=telemetry.log, ring_here=bell.ring_here, monotonic=time.monotonic)
        engine.hold()
        async with asyncio.TaskGroup() as group:
            for program in [*programs, *_roles(settings)]:
                group.create_task(engine.keep(program))
            # In a thread, so that the children are started meanwhile and load theirs at the same time.
            await asyncio.to_thread(import_module, "nightmill.assembly.front")
            from nightmill.assembly.front import serve_front  # noqa: PLC0415 - see above

            await serve_front(settings, engine=engine, bell=bell, listener=listener, say=say)
    return 0


def _roles(settings: Settings) -> list[Program]:
    workers = [(f"worker {number}", (f"worker:{number}",)) for number in range(settings.worker.processes)]
    return [
        Program(
            name,
            "nightmill.assembly.work",
            (new_worker_id(secrets.token_bytes(16)), *roles),
            as_message(settings),
        )
        for name, roles in [*workers, ("keeper", ("intake", "finalizer", "warden"))]
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
