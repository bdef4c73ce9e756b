"""The child processes that hold the roles: one for each worker, and one, the keeper, for all other roles.

With engine `ray` the workers run on the cluster, and one child launches them. Ids are made anew at each
start, so no process needs a name or a disk that outlives it.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from nightmill.errors import SetupError, UnavailableError
from nightmill.ids import WorkerId, new_worker_id
from nightmill.roles.registry import ROLE_NAMES, WORKER, ProcessGroup, roles_of
from nightmill.runtime import child
from nightmill.runtime.prefork import PreforkedChild, prefork
from nightmill.runtime.supervisor import Program, Supervisor
from nightmill.settings import Settings, as_message
from nightmill.store import Store

_EMBEDDED: Final = (
    "engine 'ray' needs a store and a place for bytes that every node reaches:"
    " NIGHTMILL_STORE=postgresql://user@host/database, and NIGHTMILL_BLOBS__URL=s3://bucket or a folder"
    " that all share"
)
_NO_TRACES: Final = "traces.enabled needs OpenTelemetry; run: pip install 'nightmill[otel]'"
_MISSING: Final = "engine 'ray' needs Ray; run: pip install 'nightmill[ray]'"


def check_engine(settings: Settings) -> Settings:
    """The settings, with the values that follow from the engine filled in.

    Raises:
        SetupError: traces without their library; with engine `ray`: other machines can't reach the store, Ray
            is not installed, or a bound makes no sense.
    """
    if settings.traces.enabled and find_spec("opentelemetry") is None:
        raise SetupError(_NO_TRACES)
    if settings.engine == "local":
        return settings
    if find_spec("ray") is None:
        raise SetupError(_MISSING)
    if settings.is_embedded:
        raise SetupError(_EMBEDDED)
    ray = settings.ray
    if ray.min_workers > ray.max_workers:
        raise SetupError(
            f"ray.min_workers ({ray.min_workers}) is more than ray.max_workers ({ray.max_workers})"
        )
    if ray.model.name is None or settings.models:
        return settings
    upstream = settings.upstream.model_copy(update={"models": (ray.model.name,)})
    return settings.model_copy(update={"upstream": upstream})


def worker_arguments(worker_id: WorkerId, number: int) -> tuple[str, ...]:
    """The arguments of a child process that runs one worker."""
    return worker_id, f"{WORKER}:{number}"


def role_programs(settings: Settings, roles: Sequence[str] = ROLE_NAMES) -> list[Program]:
    """The programs that run the roles. With 0 worker processes there are none: other processes hold the
    roles.
    """
    if settings.worker.processes == 0:
        return []
    message = as_message(settings)
    programs: list[Program] = []
    if WORKER in roles and settings.engine == "local":
        programs.extend(
            Program(f"worker {number}", child.ROLES, worker_arguments(_new_id(), number), message)
            for number in range(settings.worker.processes)
        )
    kept = tuple(role for role in roles_of(ProcessGroup.KEEPER) if role in roles)
    if kept:
        programs.append(Program("keeper", child.ROLES, (_new_id(), *kept), message))
    if WORKER in roles and settings.engine == "ray":
        programs.append(Program("launcher", child.LAUNCHER, (secrets.token_hex(8),), message))
    return programs


def prefork_roles(settings: Settings, roles: Sequence[str] = ROLE_NAMES) -> list[PreforkedChild]:
    """Forks a process for each of `role_programs` that runs roles. Call it before there is an event loop."""
    import_module("nightmill.runtime.role_process")  # loads all that roles need, for the children to share

    count = sum(program.kind == child.ROLES for program in role_programs(settings, roles))
    return prefork(count, kind=child.ROLES, main=child.main)


def release_leases_on_exit(store: Store, supervisor: Supervisor) -> Callable[[Program], Awaitable[None]]:
    """The supervisor's `on_exit`: other processes take over the work of an exited child at once."""

    async def on_exit(program: Program) -> None:
        if program.kind != child.ROLES:
            return
        try:
            await store.leases.release_of_worker(WorkerId(program.arguments[0]))
        except UnavailableError:
            return  # the leases lapse by themselves
        supervisor.notify()

    return on_exit


def _new_id() -> WorkerId:
    return new_worker_id(secrets.token_bytes(16))
