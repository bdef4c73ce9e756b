"""`nightmill serve`: the API in this process; the roles, and any model server of our own, in child processes.

Order of a start: fork the processes of the roles (`prefork`); lock the data folder; listen, so that a client
that connects from now on waits a moment instead of being refused; recover; let the children begin; and
meanwhile load the API (`api_server`). A data folder that does not exist is made once nothing refuses the
start, so it is locked after the server listens. Order of an end: drain the roles while the API still answers,
then close the API.

After recovery no lease is held in a store of this machine's own (the lock proves that all earlier holders are
dead), and no half-written blob is left. Recovery does not need the API, so the roles begin while the API
loads.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module

from nightmill import telemetry
from nightmill.core.loopback import is_loopback
from nightmill.errors import SetupError
from nightmill.failpoints import failpoint
from nightmill.roles.loop import Notifier
from nightmill.runtime.banner import data_found
from nightmill.runtime.components import Components, open_components
from nightmill.runtime.data_folder_lock import locked_folder
from nightmill.runtime.logs import operator_lines, start_logs
from nightmill.runtime.prefork import PreforkedChild
from nightmill.runtime.programs import check_engine, release_leases_on_exit, role_programs
from nightmill.runtime.stop_signals import (
    StopSignals,
    drain_on_signals,
    stop_signals,
    stopped_text,
)
from nightmill.runtime.storage import check_storage, has_stored_upstreams, prepare
from nightmill.runtime.supervisor import Program, Supervisor, change_log_level_on_signals
from nightmill.runtime.upstreams import choose_upstream, refuse_own_address
from nightmill.settings import Settings
from nightmill.settings.origins import SettingsInEffect
from nightmill.store.database_url import sqlite_file

Say = Callable[[str], None]

_NO_WORKERS = (
    "with 0 workers other processes must answer the lines, over a store that both reach: "
    "NIGHTMILL_STORE=postgresql://user@host/database, and 'nightmill work' on any machine"
)


async def serve(
    settings: Settings,
    *,
    say: Say,
    preforked: Sequence[PreforkedChild] = (),
    in_effect: SettingsInEffect = lambda _: (),
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    Args:
        say: shows a line to the operator.
        preforked: see `programs.prefork_roles`; without them each child is started anew.
        in_effect: says where each setting comes from.

    Raises:
        SetupError: there is no upstream, the folder is in use, the address is taken or not allowed.
    """
    start_logs(settings.log_level, settings.log_format, role="server")
    say = operator_lines(say, settings.log_format)
    settings = check_engine(settings)
    if settings.worker.processes == 0 and settings.is_embedded:
        raise SetupError(_NO_WORKERS)
    refuse_own_address(settings)
    with stop_signals(say) as signals:
        await _serve(settings, say=say, preforked=preforked, signals=signals, in_effect=in_effect)
    return 0


async def _serve(
    settings: Settings,
    *,
    say: Say,
    preforked: Sequence[PreforkedChild],
    signals: StopSignals,
    in_effect: SettingsInEffect,
) -> None:
    has_roles = settings.worker.processes > 0
    programs: list[Program] = []
    if has_roles:
        settings, programs = await choose_upstream(
            settings, say=say, are_stored=partial(has_stored_upstreams, settings)
        )
    is_new = settings.is_embedded and not sqlite_file(settings.store_url).exists()
    if is_new:
        _check_keys(settings, any_exist=False)
    await check_storage(settings)
    with _locked_and_listening(settings) as listener:
        notifier = Notifier()
        supervisor = Supervisor(
            emit=telemetry.log,
            notify_local=notifier.notify_local,
            monotonic=time.monotonic,
            preforked=preforked,
        )
        supervisor.close_start_barrier()
        async with asyncio.TaskGroup() as group:
            supervisor.start([*programs, *role_programs(settings)], group=group)
            async with _recovered(settings, supervisor=supervisor, notifier=notifier) as components:
                drain_on_signals(signals, supervisor, say=say, drain_s=settings.api.drain_s)
                change_log_level_on_signals(supervisor, configured=settings.log_level)
                data = await data_found(settings, components.store, is_new=is_new)
                supervisor.open_start_barrier()
                # Loaded in a thread, so that notifications from the children are passed on meanwhile.
                await asyncio.to_thread(import_module, "nightmill.runtime.api_server")
                from nightmill.runtime.api_server import serve_api  # noqa: PLC0415 - see above

                await serve_api(
                    components,
                    supervisor=supervisor,
                    listener=listener,
                    signals=signals,
                    data=data,
                    say=say,
                    in_effect=in_effect,
                )
                say(await stopped_text(components.store))


@contextmanager
def _locked_and_listening(settings: Settings) -> Generator[socket.socket]:
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(locked_folder(settings.folder))

        def listening() -> socket.socket:
            return stack.enter_context(contextlib.closing(_listen(settings)))

        if not settings.is_embedded:
            yield listening()
        elif settings.folder.exists():
            lock()  # first, since a server that uses the folder mostly has the address too
            yield listening()
        else:
            listener = listening()
            lock()
            yield listener


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


@asynccontextmanager
async def _recovered(
    settings: Settings, *, supervisor: Supervisor, notifier: Notifier
) -> AsyncGenerator[Components]:
    """The components, once the children may begin to work on the store.

    Raises:
        SetupError: the store or the address is not fit to start on.
    """
    await prepare(settings)
    async with open_components(settings, emit=telemetry.log, notifier=notifier) as components:
        _check_keys(settings, any_exist=await components.store.api_keys.any_exist())
        failpoint("serve.before_recovery")
        # In a store that other machines share, the holders may be alive; leases of dead holders lapse.
        if settings.is_embedded:
            await components.store.leases.release_all()
            await components.blobs.sweep_unfinished()
        failpoint("serve.recovered")
        supervisor.on_exit = release_leases_on_exit(components.store, supervisor)
        yield components


def _check_keys(settings: Settings, *, any_exist: bool) -> None:
    if any_exist or (is_loopback(settings.api.host) and settings.keyless_on_loopback):
        return
    otherwise = "set keyless_on_loopback" if is_loopback(settings.api.host) else "listen on 127.0.0.1"
    message = (
        f"refusing to listen on {settings.api.host} without API keys; make one with "
        f"'nightmill keys create NAME --folder {settings.folder.absolute()}', or {otherwise}"
    )
    raise SetupError(message)
