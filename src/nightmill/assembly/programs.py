"""The child processes that hold the roles: one for each worker, one that keeps the others.

Promise: ids are made fresh at each start, so no process needs a name or a disk that outlives it.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from nightmill.engine.local import LocalEngine, Program
from nightmill.errors import UnavailableError
from nightmill.ids import WorkerId, new_worker_id
from nightmill.settings import Settings, as_message
from nightmill.store import Store

WORKER: Final = "worker"
KEEPERS: Final = ("intake", "finalizer", "warden")
ROLES: Final = (WORKER, *KEEPERS)
_MODULE: Final = "nightmill.assembly.work"


def role_programs(settings: Settings, roles: Sequence[str] = ROLES) -> list[Program]:
    """No worker process means no roles at all: others hold them."""
    if settings.worker.processes == 0:
        return []
    numbers = range(settings.worker.processes) if WORKER in roles else range(0)
    groups: list[tuple[str, tuple[str, ...]]] = [
        (f"worker {number}", (f"worker:{number}",)) for number in numbers
    ]
    keepers = tuple(role for role in KEEPERS if role in roles)
    if keepers:
        groups.append(("keeper", keepers))
    return [
        Program(name, _MODULE, (new_worker_id(secrets.token_bytes(16)), *names), as_message(settings))
        for name, names in groups
    ]


def take_back(store: Store, engine: LocalEngine) -> Callable[[Program], Awaitable[None]]:
    """What the engine does with a child of ours that has died."""

    async def bury(program: Program) -> None:
        """What a dead child held goes to others at once, not when its leases lapse."""
        if program.module != _MODULE:
            return
        try:
            await store.release_leases_of(WorkerId(program.arguments[0]))
        except UnavailableError:
            return  # they lapse by themselves
        engine.ring()

    return bury
