"""Garbage collection for a process that makes many short-lived objects and hardly any cycles.

Each line makes a few objects that die by reference count. At Python's own threshold the collector looks at
them, and at all that start-up left, every few hundred lines: a third of the dispatcher's time.
"""

import gc

_YOUNG_OBJECTS = 50_000


def spare_collections() -> None:
    """Call it once start-up is over: what lives by now is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)
