"""The lock that allows one server per data folder.

The lock ends with the process that holds it, whatever the cause of the exit. Workers that outlive their
server are fenced by leases, not by this lock.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from nightmill.admin.delete_lock import take_lock
from nightmill.errors import SetupError


@contextmanager
def locked_folder(folder: Path) -> Generator[None]:
    """Makes the folder, readable by its owner only, and holds its lock.

    Raises:
        SetupError: another process holds it, or the folder can't be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SetupError(f"the data folder {folder} can't be used: {reason}; choose another") from None
    try:
        if not take_lock(descriptor):
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise SetupError(
                f"the data folder {folder} is in use by process {holder}; "
                "stop that one or choose another folder"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
