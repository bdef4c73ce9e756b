"""`nightmill serve`: the API in this process, the roles and any upstream of our own in children.

Order of a start: fork the roles' processes (`preforked`), lock, listen (who connects from now on waits a
moment instead of being refused), recover, let the children begin, and meanwhile load the API (`front`). Order
of an
end: drain the roles while the API still answers, then close it.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from importlib import import_module

from nightmill import telemetry
from nightmill.errors import SetupError
from nightmill.roles.loop import Notifier
from nightmill.runtime.data_folder_lock import locked_folder
from nightmill.runtime.logs import start_logs
from nightmill.runtime.on_ray import check_engine
from nightmill.runtime.prefork import PreforkedChild
from nightmill.runtime.programs import role_programs
from nightmill.runtime.recovery import recovered
from nightmill.runtime.signals import install_signal_handlers
from nightmill.runtime.supervisor import Supervisor
from nightmill.runtime.upstreams import choose_upstream
from nightmill.settings import Settings

Say = Callable[[str], None]

_NOBODY_WORKS = (
    "with 0 workers somebody else must answer the lines, over a store that both reach: "
    "NIGHTMILL_STORE=postgresql://user@host/database, and 'nightmill work' on any machine"
)


async def serve(settings: Settings, *, say: Say, preforked: Sequence[PreforkedChild] = ()) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    Args:
        preforked: see `preforked.prefork_roles`; without them each child is started anew.

    Raises:
        SetupError: there is no upstream, the folder is in use, the address is taken or not allowed.
    """
    start_logs(settings.log_level)
    settings = check_engine(settings)
    if settings.worker.processes == 0 and settings.is_embedded:
        raise SetupError(_NOBODY_WORKS)
    has_roles = settings.worker.processes > 0
    settings, programs = await choose_upstream(settings, say=say) if has_roles else (settings, [])
    lock = locked_folder(settings.folder) if settings.is_embedded else contextlib.nullcontext()
    with lock, contextlib.closing(_listen(settings)) as listener:
        notifier = Notifier()
        supervisor = Supervisor(
            emit=telemetry.log,
            notify_local=notifier.notify_local,
            monotonic=time.monotonic,
            preforked=preforked,
        )
        supervisor.close_start_barrier()
        async with asyncio.TaskGroup() as group:
            for program in [*programs, *role_programs(settings)]:
                group.create_task(supervisor.keep(program))
            async with recovered(settings, supervisor=supervisor, notifier=notifier) as components:
                stop_request = install_signal_handlers(supervisor)
                supervisor.open_start_barrier()
                # In a thread, so that the children's bells are passed on meanwhile.
                await asyncio.to_thread(import_module, "nightmill.runtime.api_server")
                from nightmill.runtime.api_server import serve_front  # noqa: PLC0415 - see above

                await serve_front(
                    components, supervisor=supervisor, listener=listener, stop_request=stop_request, say=say
                )
    return 0


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
