"""Projects as tenants: what each may have open, what is held, what a key may do. No I/O.

Duty: the values and the decisions over them. Not its duty: counting (the store does, in the transaction that
creates), and who is asking (`api.auth`).
"""

from enum import StrEnum


class Scope(StrEnum):
    """What a key opens: its own project, or the operator's view of all of them too."""

    PROJECT = "project"
    ADMIN = "admin"


class HoldKind(StrEnum):
    """What can be under legal hold."""

    PROJECT = "project"
    FILE = "file"
    BATCH = "batch"
