"""A file lock that keeps maintenance from deleting blobs while a backup or a check reads them.

The lock ends with its process. Maintenance never waits for it: it skips its deletes. A reader waits at most
for one sweep. A second server on the folder is kept out by `runtime.data_folder_lock`.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from nightmill.errors import SetupError, UnavailableError

_NAME = "backup.lock"
_LOOK_S = 0.05


@contextmanager
def may_delete(folder: Path) -> Generator[bool]:
    """Yields whether blobs may be deleted now; if so, no reader starts before the end of the block."""
    if not folder.is_dir():  # database and blobs are elsewhere: there is no folder to copy
        yield True
        return
    descriptor = _opened(folder)
    try:
        yield take_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def no_deletes(folder: Path, *, timeout_s: float = 60.0) -> Generator[None]:
    """Within the block, no blob that the database references is deleted.

    Raises:
        SetupError: the folder is not a data folder, or cannot be used.
        UnavailableError: a sweep of maintenance takes longer than `timeout_s`.
    """
    descriptor = _opened(folder)
    try:
        give_up_at = monotonic() + timeout_s
        while not take_lock(descriptor, fcntl.LOCK_SH):
            if monotonic() > give_up_at:
                raise UnavailableError(
                    f"the server of {folder} has been deleting for {timeout_s:.0f} s; try again"
                )
            sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    try:
        return os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise SetupError(f"there is no data folder at {folder}; name the server's with --folder") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SetupError(
            f"the data folder {folder} can't be used: {reason}; see its owner and mode"
        ) from None


def take_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Locks an open file or folder; False when another process has the lock.

    Args:
        kind: LOCK_EX, or LOCK_SH for a lock that several processes may have.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
