"""Reads the load that a model server publishes on its metrics page: running and waiting requests, KV cache.

Known are vLLM, SGLang, llama.cpp, TGI, Text Embeddings Inference and TensorRT-LLM. Only the lines with known
names are taken out of the page, which may have thousands of others. Guarantees: reading never raises,
whatever the server sends; every wait has a deadline; requests go to the upstream's own host only. What
follows from the gauges is decided by `core.adaptive_limit`.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec

from nightmill.core.engine_gauges import EngineGauges, HitShare
from nightmill.core.outcome import Answered, Outcome, TooLong
from nightmill.upstream.port import Upstream

READ_TIMEOUT_S: Final = 2.0
"""For one reading, over all paths that are tried."""
ABSENT_PAUSE_S: Final = 60.0
"""The pause before a server that published no gauges is asked again."""
FAILED_PAUSE_S: Final = 5.0
"""The pause before a server that gave no answer, or an error of its own, is asked again."""
MAX_PAGE_BYTES: Final = 4 << 20

_OK: Final = 200
_NOT_IMPLEMENTED: Final = 501  # llama.cpp's answer when it was started without --metrics
_MAX_LINE_BYTES: Final = 4 << 10
_MAX_LINES: Final = 512
_MAX_COUNT: Final = 1e9
_API_VERSION: Final = re.compile(r"/v[0-9][^/]*\Z")
_AFTER_NAME: Final = (b"{", b" ", b"\t")
_RANKS: Final = ("tp_rank", "pp_rank")


@dataclass(frozen=True, slots=True)
class _Engine:
    """The names of an engine's metrics after its prefix. Of several names the first that is present counts.

    Args:
        hit_share: gauges that have the share; otherwise the counters `hits` and `queries` give it.
    """

    name: str
    prefix: bytes
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    kv_use: tuple[str, ...] = ()
    hit_share: tuple[str, ...] = ()
    hits: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    preemptions: tuple[str, ...] = ()


_ENGINES: Final = (
    _Engine(
        "vllm",
        b"vllm",
        running=("num_requests_running",),
        waiting=("num_requests_waiting",),
        kv_use=("kv_cache_usage_perc", "gpu_cache_usage_perc"),
        hit_share=("gpu_prefix_cache_hit_rate",),
        hits=("prefix_cache_hits_total", "gpu_prefix_cache_hits_total"),
        queries=("prefix_cache_queries_total", "gpu_prefix_cache_queries_total"),
        preemptions=("num_preemptions_total",),
    ),
    _Engine(
        "sglang",
        b"sglang",
        running=("num_running_reqs",),
        waiting=("num_queue_reqs",),
        kv_use=("token_usage",),
        hit_share=("cache_hit_rate",),
        preemptions=("num_retracted_requests_total",),
    ),
    _Engine(
        "llama.cpp",
        b"llamacpp",
        running=("requests_processing",),
        waiting=("requests_deferred",),
        kv_use=("kv_cache_usage_ratio",),
    ),
    _Engine("tgi", b"tgi", running=("batch_current_size",), waiting=("queue_size",)),
    _Engine("tei", b"te", waiting=("queue_size",)),
    _Engine(
        "tensorrt-llm",
        b"trtllm",
        running=("num_requests_running",),
        waiting=("num_requests_waiting",),
        kv_use=("kv_cache_utilization",),
        hit_share=("kv_cache_hit_rate",),
    ),
)


class MetricsPage(msgspec.Struct, frozen=True):
    """What a metrics page says.

    Args:
        gauges: without a share of hits where the engine only counts them.
        queries: prompt tokens looked up in the prefix cache since the engine started; None if not counted.
        hits: those that the cache had; None if not counted.
    """

    gauges: EngineGauges
    queries: float | None = None
    hits: float | None = None


class GaugeReader:
    """Reads the gauges of one upstream. One reading at a time.

    Args:
        upstream: the upstream's client.
        url: the base URL that the client was opened with.
        monotonic: seconds, for the pauses after a reading without gauges.
    """

    def __init__(
        self, upstream: Upstream, *, url: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._upstream = upstream
        self._paths = metrics_paths(url)
        self._known_path: str | None = None
        self._monotonic = monotonic
        self._next_at = -math.inf
        self._hit_share = HitShare()

    async def read(self) -> EngineGauges | None:
        """The gauges; None when the server publishes none, gives no answer, or was asked too recently."""
        if self._monotonic() < self._next_at:
            return None
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                found = await self._find()
        except TimeoutError:
            found = FAILED_PAUSE_S
        if not isinstance(found, MetricsPage):
            self._next_at = self._monotonic() + found
            self._hit_share = HitShare()
            return None
        gauges = found.gauges
        if gauges.hit_share is None and found.queries is not None and found.hits is not None:
            share = self._hit_share.note(queries=found.queries, hits=found.hits)
            gauges = msgspec.structs.replace(gauges, hit_share=share)
        return gauges

    async def _find(self) -> MetricsPage | float:
        """The first page with known gauges, or the pause in seconds when there is none."""
        paths = self._paths if self._known_path is None else (self._known_path,)
        for path in paths:
            outcome = await self._upstream.get(
                path, timeout_s=READ_TIMEOUT_S, max_answer_bytes=MAX_PAGE_BYTES
            )
            if _may_pass(outcome):
                return FAILED_PAUSE_S
            if isinstance(outcome, Answered) and outcome.status == _OK:
                found = read_page(outcome.body)
                if found is not None:
                    self._known_path = path
                    return found
        self._known_path = None
        return ABSENT_PAUSE_S


def metrics_paths(url: str) -> tuple[str, ...]:
    """The paths where a server with this base URL may publish its metrics, the most likely first."""
    base = _API_VERSION.sub("", urlsplit(url.strip()).path.rstrip("/"))
    paths = (f"{base}/metrics", f"{base}/prometheus/metrics", "/metrics")  # the second is TensorRT-LLM's
    return tuple(dict.fromkeys(paths))


def read_page(page: bytes) -> MetricsPage | None:
    """What a metrics page says; None without known gauges.

    Several engines of one server, or several models, are added up; of the KV cache the fullest counts.
    """
    page = b"\n" + page
    for engine in _ENGINES:
        for separator in (b":", b"_"):
            prefix = b"\n" + engine.prefix + separator
            if prefix in page:
                found = _gauges(page, engine, prefix)
                if found is not None:
                    return found
    return None


def _gauges(page: bytes, engine: _Engine, prefix: bytes) -> MetricsPage | None:
    def values(names: Iterable[str]) -> list[float]:
        for name in names:
            found = _values(page, prefix + name.encode("ascii"))
            if found:
                return found
        return []

    running, waiting = values(engine.running), values(engine.waiting)
    if not running and not waiting:
        return None
    queries, hits = values(engine.queries), values(engine.hits)
    preemptions = values(engine.preemptions)
    gauges = EngineGauges(
        engine=engine.name,
        running=_count(running),
        waiting=_count(waiting),
        kv_use=_share(values(engine.kv_use)),
        hit_share=_share(values(engine.hit_share)),
        preemptions=_count(preemptions) if preemptions else None,
    )
    return MetricsPage(gauges, sum(queries) if queries else None, sum(hits) if hits else None)


def _count(values: list[float]) -> int:
    return int(min(sum(values), _MAX_COUNT))


def _share(values: list[float]) -> float | None:
    return min(1.0, max(values)) if values else None


def _values(page: bytes, name: bytes) -> list[float]:
    """The values of a metric, without those that are not a number, are negative, or count again what another
    line counts.
    """
    # Imported late: only a server with gauges needs the library, and the start must stay under a second.
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - see above

    found: list[float] = []
    for line in _lines(page, name):
        try:
            [family] = text_string_to_metric_families(line.decode("utf-8", "replace"))
            [sample] = family.samples
        except Exception:  # noqa: BLE001, S112 - any error of the parser is that of a line that can't be read
            continue
        if _counts_once(sample.labels) and 0 <= sample.value < math.inf:
            found.append(sample.value)
    return found


def _counts_once(labels: dict[str, str]) -> bool:
    """Whether the line counts requests that no other line counts.

    SGLang may repeat its numbers for each rank of one model, and beside its totals for each priority.
    """
    return all(labels.get(rank, "0") == "0" for rank in _RANKS) and not labels.get("priority")


def _lines(page: bytes, name: bytes) -> Iterator[bytes]:
    """The lines of a metric, at most `_MAX_LINES`. `name` begins with the end of the line before."""
    start = page.find(name)
    count = 0
    while start >= 0 and count < _MAX_LINES:
        end = page.find(b"\n", start + 1)
        end = len(page) if end < 0 else end
        after = start + len(name)
        if page[after : after + 1] in _AFTER_NAME and end - start <= _MAX_LINE_BYTES:
            count += 1
            yield page[start + 1 : end]
        start = page.find(name, end)


def _may_pass(outcome: Outcome) -> bool:
    """Whether the outcome says nothing about the path: no answer, or an error of the server itself."""
    match outcome:
        case Answered(status=status):
            return status == 429 or (status >= 500 and status != _NOT_IMPLEMENTED)
        case TooLong():
            return False
        case _:
            return True
