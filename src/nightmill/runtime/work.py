"""`nightmill work`: roles without an API, in child processes, on any number of machines.

The store and the blobs must be ones that all machines reach. SIGTERM finishes the requests in flight and
gives every lease back. Any other end of this process costs other processes the wait until its leases lapse.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from nightmill import telemetry
from nightmill.errors import SetupError
from nightmill.roles.registry import WORKER
from nightmill.runtime.banner import data_text, say_fields, say_upstreams
from nightmill.runtime.logs import operator_lines, start_logs
from nightmill.runtime.prefork import PreforkedChild
from nightmill.runtime.programs import check_engine, release_leases_on_exit, role_programs
from nightmill.runtime.stop_signals import StopSignals, drain_on_signals, stop_signals
from nightmill.runtime.storage import check_storage, has_stored_upstreams, open_stored, prepare
from nightmill.runtime.supervisor import Program, Supervisor, change_log_level_on_signals
from nightmill.runtime.systemd import notify_ready
from nightmill.runtime.upstreams import choose_upstream
from nightmill.settings import Settings

_EMBEDDED = (
    "nightmill work needs a store that other machines reach: NIGHTMILL_STORE=postgresql://user@host/database;"
    " on one machine 'nightmill serve' holds the roles too"
)
_STOPPED = "nightmill stopped; other processes, or the next start, go on with its work"
_EXTRA_S = 1.0


async def work(
    settings: Settings,
    *,
    roles: Sequence[str],
    say: Callable[[str], None],
    preforked: Sequence[PreforkedChild] = (),
) -> int:
    """Runs the roles until SIGTERM or SIGINT; returns the exit code.

    Args:
        roles: names as `roles.registry.resolve_roles` returns them.
        say, preforked: as for `serve`.

    Raises:
        SetupError: other machines can't reach the store, the store is not fit to start on, or there is no
            upstream.
    """
    start_logs(settings.log_level, settings.log_format, role="supervisor")
    say = operator_lines(say, settings.log_format)
    settings = check_engine(settings)
    _check(settings)
    with stop_signals(say) as signals:
        await _work(settings, roles=roles, say=say, preforked=preforked, signals=signals)
    return 0


async def _work(
    settings: Settings,
    *,
    roles: Sequence[str],
    say: Callable[[str], None],
    preforked: Sequence[PreforkedChild],
    signals: StopSignals,
) -> None:
    programs: list[Program] = []
    if WORKER in roles:
        settings, programs = await choose_upstream(
            settings, say=say, are_stored=partial(has_stored_upstreams, settings)
        )
    await prepare(settings)
    await check_storage(settings)
    supervisor = Supervisor(
        emit=telemetry.log, notify_local=_no_local_roles, monotonic=time.monotonic, preforked=preforked
    )
    store = open_stored(settings)
    try:
        supervisor.on_exit = release_leases_on_exit(store, supervisor)
        async with asyncio.TaskGroup() as group:
            supervisor.start([*programs, *role_programs(settings, roles)], group=group)
            drain_on_signals(signals, supervisor, say=say, drain_s=settings.api.drain_s)
            change_log_level_on_signals(supervisor, configured=settings.log_level)
            say(f"nightmill works: {', '.join(roles)}")
            say_fields([("data", data_text(settings, unfinished=None, is_new=False))], say=say)
            notify_ready()
            speaking = group.create_task(say_upstreams(settings, store, say=say)) if WORKER in roles else None
            await signals.to_stop.wait()
            if speaking is not None:
                speaking.cancel()
            await supervisor.drain(grace_s=settings.api.drain_s + _EXTRA_S)
            say(_STOPPED)
    finally:
        await store.close()


def _check(settings: Settings) -> None:
    if settings.is_embedded:
        raise SetupError(_EMBEDDED)
    if settings.worker.processes == 0:
        raise SetupError("nightmill work with 0 worker processes does nothing; leave out --workers")


def _no_local_roles() -> None:
    """This process runs no roles itself that could be woken."""
