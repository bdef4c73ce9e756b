"""The child processes that hold the roles: one for each worker, one that keeps the others.

With engine `ray` the workers are elsewhere, and one child launches them.

Promise: ids are made fresh at each start, so no process needs a name or a disk that outlives it.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from nightmill.errors import UnavailableError
from nightmill.ids import WorkerId, new_worker_id
from nightmill.runtime.prefork import PreforkedChild, prefork
from nightmill.runtime.supervisor import Program, Supervisor
from nightmill.settings import Settings, as_message
from nightmill.store import Store

WORKER: Final = "worker"
KEEPERS: Final = ("intake", "finalizer", "warden")
ROLES: Final = (WORKER, *KEEPERS)
WORKER_MODULE: Final = "nightmill.runtime.child_main"
_LAUNCHER_MODULE: Final = "nightmill.runtime.launch"


def role_programs(settings: Settings, roles: Sequence[str] = ROLES) -> list[Program]:
    """No worker process means no roles at all: others hold them."""
    if settings.worker.processes == 0:
        return []
    has_workers = WORKER in roles and settings.engine == "local"
    numbers = range(settings.worker.processes) if has_workers else range(0)
    groups: list[tuple[str, tuple[str, ...]]] = [
        (f"worker {number}", (f"worker:{number}",)) for number in numbers
    ]
    keepers = tuple(role for role in KEEPERS if role in roles)
    if keepers:
        groups.append(("keeper", keepers))
    message = as_message(settings)
    programs = [
        Program(name, WORKER_MODULE, (new_worker_id(secrets.token_bytes(16)), *names), message)
        for name, names in groups
    ]
    if WORKER in roles and settings.engine == "ray":
        programs.append(Program("launcher", _LAUNCHER_MODULE, (secrets.token_hex(8),), message))
    return programs


def prefork_roles(settings: Settings, roles: Sequence[str] = ROLES) -> list[PreforkedChild]:
    """For each of `role_programs` a process that has loaded all it needs. Call it before there is a loop."""
    from nightmill.runtime import child_main  # noqa: PLC0415 - it loads all that roles need

    programs = [one for one in role_programs(settings, roles) if one.module == WORKER_MODULE]
    return prefork(len(programs), module=WORKER_MODULE, main=child_main.main)


def release_leases_on_exit(store: Store, supervisor: Supervisor) -> Callable[[Program], Awaitable[None]]:
    """What the engine does with a child of ours that has died."""

    async def on_exit(program: Program) -> None:
        """What a dead child held goes to others at once, not when its leases lapse."""
        if program.module != WORKER_MODULE:
            return
        try:
            await store.leases.release_of_worker(WorkerId(program.arguments[0]))
        except UnavailableError:
            return  # they lapse by themselves
        supervisor.notify()

    return on_exit
