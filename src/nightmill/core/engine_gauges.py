"""What a model server publishes about its own load, in terms that are the same for every engine. No I/O.

`upstream/gauges.py` reads the values from `/metrics`; `core/adaptive_limit.py` decides with them.
"""

import math
from typing import Final

import msgspec


class EngineGauges(msgspec.Struct, frozen=True):
    """One reading of an engine's gauges, for example vLLM with 64 running requests and 3 waiting.

    The values count all clients of the engine, not only nightmill.

    Args:
        engine: the name of the engine: "vllm", "sglang", "llama.cpp", "tgi" or "tensorrt-llm".
        running: requests that the engine computes now.
        waiting: requests that the engine has accepted and not begun.
        kv_use: the used part of the KV cache, from 0 to 1; None if the engine does not say.
        hit_share: the part of prompt tokens that the prefix cache had, from 0 to 1; None if the engine does
            not say.
        preemptions: requests that lost their KV cache to others since the engine started; a counter, None if
            the engine does not say.
    """

    engine: str
    running: int
    waiting: int
    kv_use: float | None
    hit_share: float | None
    preemptions: int | None


_FLAGS: Final = {
    "vllm": "--max-num-seqs",
    "sglang": "--max-running-requests",
    "llama.cpp": "--parallel (-np)",
    "tgi": "--max-concurrent-requests",
    "tensorrt-llm": "--max_batch_size",
}
_FULL_CACHE = 0.9


def advice_on(engine: str, *, running: float, waiting: float, kv_use: float | None) -> str | None:
    """What to change at an engine that runs no more requests, for example "raise --max-num-seqs".

    Args:
        running: requests that the engine computes although more are sent: the mean of some readings. Some are
            made just after requests have ended, so the engine runs the next whole number at once, or more.
        waiting: requests in its queue; 0 if the others wait before the engine.
    """
    count = math.ceil(running)
    if kv_use is not None and kv_use >= _FULL_CACHE:
        return f"the KV cache is full at {count} running requests: give the engine more memory for it"
    flag = _FLAGS.get(engine)
    if flag is None:
        return None
    if waiting:
        return f"the engine runs {count} requests at once: raise {flag}"
    return f"the engine's queue stays empty at {count} running requests: raise {flag}"


class HitShare:
    """The share of hits in an engine's prefix cache, from two counters of the engine."""

    __slots__ = ("_before", "_share")

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None
        self._share: float | None = None

    def note(self, *, queries: float, hits: float) -> float | None:
        """The share of hits since the reading before, from 0 to 1.

        None after the first reading and after a restart of the engine. Unchanged when nothing was looked up
        since the reading before.

        Args:
            queries: prompt tokens that were looked up.
            hits: those that the cache had.
        """
        before, self._before = self._before, (queries, hits)
        if before is None or queries < before[0] or hits < before[1]:
            self._share = None
        elif queries > before[0]:
            self._share = min(1.0, (hits - before[1]) / (queries - before[0]))
        return self._share
