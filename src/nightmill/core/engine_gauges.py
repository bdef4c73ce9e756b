"""What a model server publishes about its own load, in terms that are the same for every engine. No I/O.

`upstream/gauges.py` reads the values from `/metrics`; `core/adaptive_limit.py` decides with them.
"""

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
