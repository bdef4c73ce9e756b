"""What a process of a fleet says of itself. No I/O."""

from typing import Final

import msgspec

REPORTED_EVERY_S: Final = 60.0
"""A process reports at least so often, also when nothing has changed."""
_SILENT_S: Final = 90.0


def is_silent(silent_s: float) -> bool:
    """Whether a process that reported last so many seconds ago may be lost: its machine, or its network."""
    return silent_s >= _SILENT_S


class ProcessInfo(msgspec.Struct, frozen=True):
    """A process that runs roles, for example the worker of process 4711 on gpu-3.

    Args:
        host: the name of its machine.
        pid: its number on that machine.
        roles: the names of its roles.
        version: of nightmill.
        started_at: Unix seconds.
    """

    host: str
    pid: int
    roles: tuple[str, ...]
    version: str
    started_at: float


def read_process_info(document: str | None) -> ProcessInfo | None:
    """None if a process of another version says nothing that this one can read."""
    if document is None:
        return None
    try:
        return msgspec.json.decode(document, type=ProcessInfo)
    except msgspec.MsgspecError:
        return None
