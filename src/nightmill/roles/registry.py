"""The list of roles, read by the command line, the child processes and the deployment tests.

Imports nothing heavy, because `nightmill --help` loads it.

A role is one of the long-running tasks of a server. To add a role: write its module in `roles`, add a method
of the same name to `runtime.components.Components` that makes it, add its entry here, and name it in
compose.yaml and the Helm chart (a test compares both with this list).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nightmill.errors import SetupError


class ProcessGroup(Enum):
    """Which child process of `nightmill serve` or `nightmill work` runs a role."""

    WORKER = "worker"
    """A process for each worker, `worker.processes` in all."""
    KEEPER = "keeper"
    """One process for all roles of this group."""


@dataclass(frozen=True, slots=True)
class RoleEntry:
    """A role as operators see it.

    `name` is also the name of the method of `Components` that makes the role. `aliases` are earlier names,
    accepted wherever a role is named.
    """

    name: str
    summary: str
    group: ProcessGroup
    aliases: tuple[str, ...] = ()


WORKER: Final = "worker"

ROLES: Final = (
    RoleEntry(WORKER, "Sends request lines to the upstream and stores the answers.", ProcessGroup.WORKER),
    RoleEntry("intake", "Validates the input file of a new batch.", ProcessGroup.KEEPER),
    RoleEntry("finalizer", "Joins the answers of a batch into its output files.", ProcessGroup.KEEPER),
    RoleEntry(
        "maintenance",
        "Takes back lapsed leases, ends overdue batches, deletes expired files and orphaned blobs.",
        ProcessGroup.KEEPER,
        aliases=("warden",),  # until 0.2
    ),
    RoleEntry(
        "observer", "Watches running batches: what limits them, budgets, canaries.", ProcessGroup.KEEPER
    ),
    RoleEntry("courier", "Delivers webhooks.", ProcessGroup.KEEPER),
)

ROLE_NAMES: Final = tuple(role.name for role in ROLES)
_CANONICAL: Final = {name: role.name for role in ROLES for name in (role.name, *role.aliases)}


def resolve_roles(names: Sequence[str]) -> tuple[str, ...]:
    """The roles of these names or aliases, each once, in the order of the list.

    Raises:
        SetupError: there is no role of a given name, or no name is given.
    """
    unknown = [name for name in names if name not in _CANONICAL]
    if unknown or not names:
        raise SetupError(f"there is no role '{', '.join(unknown)}'; choose from {', '.join(ROLE_NAMES)}")
    resolved = {_CANONICAL[name] for name in names}
    return tuple(name for name in ROLE_NAMES if name in resolved)


def roles_of(group: ProcessGroup) -> tuple[str, ...]:
    """The names of the group's roles."""
    return tuple(role.name for role in ROLES if role.group is group)
