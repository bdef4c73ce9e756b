"""Memory for a process that makes many short-lived objects and hardly any cycles, and lives long.

Each line makes a few objects that die by reference count. At Python's own threshold the collector looks at
them, and at all that start-up left, every few hundred lines: a third of the dispatcher's time. And the C
library keeps what loading the program left free, and a heap of its own for each thread: a tenth of the
dispatcher's memory.
"""

import ctypes
import gc
import sys
from contextlib import suppress

_YOUNG_OBJECTS = 50_000
_ARENA_MAX = -8  # M_ARENA_MAX of glibc's <malloc.h>


def spare_collections() -> None:
    """Call it once start-up is over: what lives by now is never looked at again, and what is free is gone."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        with suppress(AttributeError):  # glibc has them, musl does not
            library.mallopt(_ARENA_MAX, 1)
            library.malloc_trim(0)
