"""`nightmill work`: roles without an API, beside as many others as are wanted.

Duty: the children that hold the roles, on a store and a blob store that all machines reach. Promise: SIGTERM
finishes what is in flight and gives every lease back; whatever else ends it costs others one lease. Not its
duty: the roles themselves (`work`).
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from nightmill import telemetry
from nightmill.errors import SetupError
from nightmill.runtime.logs import start_logs
from nightmill.runtime.on_ray import check_engine
from nightmill.runtime.prefork import PreforkedChild
from nightmill.runtime.programs import ROLES, WORKER, release_leases_on_exit, role_programs
from nightmill.runtime.signals import install_signal_handlers
from nightmill.runtime.start import open_stored, prepare
from nightmill.runtime.storage import check_storage
from nightmill.runtime.supervisor import Program, Supervisor
from nightmill.runtime.systemd import notify_ready
from nightmill.runtime.upstreams import choose_upstream
from nightmill.settings import Settings

_EMBEDDED = (
    "nightmill work needs a store that other machines reach: NIGHTMILL_STORE=postgresql://user@host/database;"
    " on one machine 'nightmill serve' holds the roles too"
)
_EXTRA_S = 1.0


async def work(
    settings: Settings,
    *,
    roles: Sequence[str],
    say: Callable[[str], None],
    preforked: Sequence[PreforkedChild] = (),
) -> int:
    """Holds the roles until SIGTERM or SIGINT; returns the exit code. `preforked` as for `serve`.

    Raises:
        SetupError: the store is this machine's own or not fit to start on, or there is no upstream.
    """
    start_logs(settings.log_level)
    settings = check_engine(settings)
    _check(settings, roles)
    programs: list[Program] = []
    if WORKER in roles:
        settings, programs = await choose_upstream(settings, say=say)
    await prepare(settings)
    await check_storage(settings)
    supervisor = Supervisor(
        emit=telemetry.log, notify_local=_no_local_roles, monotonic=time.monotonic, preforked=preforked
    )
    store = open_stored(settings)
    try:
        supervisor.on_exit = release_leases_on_exit(store, supervisor)
        async with asyncio.TaskGroup() as group:
            for program in [*programs, *role_programs(settings, roles)]:
                group.create_task(supervisor.keep(program))
            stop_request = install_signal_handlers(supervisor)
            say(f"nightmill works: {', '.join(roles)}")
            notify_ready()
            await stop_request.to_stop.wait()
            await supervisor.drain(grace_s=settings.api.drain_s + _EXTRA_S)
    finally:
        await store.close()
    return 0


def _check(settings: Settings, roles: Sequence[str]) -> None:
    if settings.is_embedded:
        raise SetupError(_EMBEDDED)
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles:
        raise SetupError(f"there is no role '{', '.join(unknown)}'; choose from {', '.join(ROLES)}")
    if settings.worker.processes == 0:
        raise SetupError("nightmill work with 0 worker processes does nothing; leave out --workers")


def _no_local_roles() -> None:
    """This process has no roles of its own to wake."""
