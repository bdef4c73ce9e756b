"""Failpoints: named places in the code at which a test can end this process as `kill -9` does.

A failpoint that is not armed costs one lookup of its name. An armed failpoint ends the process at once;
nothing is flushed, closed or logged. `nightmill torture` and the crash tests choose the failpoints.

A failpoint is named after the step just taken, or about to be taken (`before_`). Failpoints are before and
after each write that matters, never on the path of a single line.

`NIGHTMILL_CRASH_AT="name:3"` arms a failpoint for its third pass, counted in each process; commas separate
several. `NIGHTMILL_CRASH_FOLDER` names a folder in which a dying process leaves an empty file with the
failpoint's name. A failpoint whose file exists is not armed, so that the process that replaces the dead one
lives.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from nightmill.errors import SetupError

Failpoint: TypeAlias = Literal[
    "api.before_file",
    "api.file_added",
    "api.before_part",
    "api.part_added",
    "api.before_complete",
    "api.upload_completed",
    "api.before_upload_cancel",
    "api.upload_cancelled",
    "api.before_batch",
    "api.batch_created",
    "api.before_cancel",
    "api.batch_cancelling",
    "serve.before_recovery",
    "serve.recovered",
    "intake.leased",
    "intake.indexed",
    "intake.before_accept",
    "intake.accepted",
    "intake.before_reject",
    "intake.rejected",
    "worker.before_lease",
    "worker.leased",
    "worker.before_pin",
    "worker.pinned",
    "worker.before_beat",
    "worker.beaten",
    "worker.before_complete",
    "worker.completed",
    "worker.before_release",
    "worker.released",
    "part.before_write",
    "part.written",
    "part.synced",
    "part.named",
    "blob.opened",
    "blob.written",
    "blob.synced",
    "blob.renamed",
    "blob.named",
    "blob.before_delete",
    "blob.deleted",
    "finalizer.before_settle",
    "finalizer.settled",
    "finalizer.leased",
    "finalizer.before_output",
    "finalizer.output_done",
    "finalizer.error_done",
    "finalizer.before_cut",
    "finalizer.cut",
    "finalizer.slice_leased",
    "finalizer.before_slice",
    "finalizer.slice_joined",
    "finalizer.before_publish",
    "finalizer.published",
    "maintenance.before_lapse",
    "maintenance.lapsed",
    "maintenance.before_forget",
    "maintenance.forgotten",
    "maintenance.before_parts",
    "maintenance.parts_deleted",
]
FAILPOINTS: Final[tuple[Failpoint, ...]] = get_args(Failpoint)

AT: Final = "NIGHTMILL_CRASH_AT"
FOLDER: Final = "NIGHTMILL_CRASH_FOLDER"


def failpoint(name: Failpoint) -> None:
    """Ends the process here if the failpoint is armed and its pass has come."""
    if name in _passes_left:
        _pass(name)


def armed(environment: Mapping[str, str]) -> dict[str, int]:
    """The failpoints that the environment arms, and how many passes each of them has left.

    Raises:
        SetupError: a name is not a failpoint, or its pass is not a number from 1.
    """
    passes_left: dict[str, int] = {}
    for asked in environment.get(AT, "").split(","):
        name, _, number = asked.strip().partition(":")
        if not name:
            continue
        if name not in FAILPOINTS:
            raise SetupError(f"{AT} names '{name}', which is not a failpoint; see nightmill/failpoints.py")
        if not (number or "1").isdecimal() or int(number or "1") < 1:
            raise SetupError(f"{AT} asks for pass '{number}' of '{name}'; write a number from 1 up")
        folder = environment.get(FOLDER)
        if folder is None or not (Path(folder) / name).exists():
            passes_left[name] = int(number or "1")
    return passes_left


def _pass(name: str) -> None:
    _passes_left[name] -= 1
    if _passes_left[name] > 0:
        return
    folder = os.environ.get(FOLDER)
    if folder is not None:
        try:
            (Path(folder) / name).touch(exist_ok=False)
        except FileExistsError:  # another process died at this failpoint a moment ago
            del _passes_left[name]
            return
    os.kill(os.getpid(), signal.SIGKILL)


_passes_left: Final = armed(os.environ)
