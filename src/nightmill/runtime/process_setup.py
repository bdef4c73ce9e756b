"""Sets up a process: open files, memory and event loop; its log lines are in `logs`, its signals in
`stop_signals`."""

import asyncio
import ctypes
import gc
import resource
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

_MOST_OPEN_FILES: Final = 65_536
_YOUNG_OBJECTS: Final = 50_000
_M_ARENA_MAX: Final = -8  # from glibc's <malloc.h>


def raise_open_file_limit() -> None:
    """Raises the soft limit of open files as far as the system allows, to 65,536 at most.

    The usual soft limit of 1,024 is for programs that use select(), and less than `api.max_connections`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(ValueError, OSError):  # the real limit of macOS is lower than the one it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_memory_use() -> None:
    """Sets garbage collection and the C library's heap for a process that lives long. Call it after start-up.

    A role makes a few objects per line, which die by reference count, and hardly any cycles. At Python's own
    threshold the collector would look at them and at everything from start-up every few hundred lines: a
    third of the dispatcher's time. Objects that exist now are therefore never looked at again. The C library
    would keep the memory that was freed after loading the program, and one heap per thread: a tenth of the
    dispatcher's memory.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        with suppress(AttributeError):  # glibc has both functions, musl has neither
            library.mallopt(_M_ARENA_MAX, 1)
            library.malloc_trim(0)


def run_event_loop(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end, on uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        asyncio.run(work)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
