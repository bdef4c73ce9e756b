"""Lists, counts, searches and pages of the dashboard, with many ended batches beside a huge running one."""

import asyncio
import http.client
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from bench import inputs, stubs, tools
from bench.figures import Bench, Figure
from bench.fleet_postgres import Postgres
from bench.seeding import seed
from bench.server import Server, serving

ROW = "many batches on screen"
_TARGET_MS: Final = 200
_TIMES: Final = 40
_LINE_BYTES: Final = 250
_DAY_S: Final = 86_400
_LIST: Final = "/nightmill/v1/batches"
_FACETS: Final = "/nightmill/v1/batches/facets"
_FILTERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "no filter": {},
    "failed": {"status": "failed"},
    "validating": {"status": "validating"},
    "paused": {"paused": "true"},
    "a model": {"model": "qwen3-8b"},
    "an endpoint": {"endpoint": "/v1/embeddings"},
    "a priority": {"priority": 5},
    "common metadata": {"metadata": "team=ads"},
    "rare metadata": {"metadata": "run=77"},
    "a common text": {"q": "quality"},
    "a rare text": {"q": "quality-001"},
    "an unknown text": {"q": "not there"},
    "an id": {"q": "batch_3f2"},
    "24 hours": {"created_after": -_DAY_S},
    "all at once": {"status": "expired", "model": "qwen3-8b", "q": "maps", "created_after": -80 * _DAY_S},
}
_PAGES: Final = (
    "/",
    "/ui/batches/{running}",
    "/ui/batches/{ended}",
    "/ui/new",
    "/ui/try",
    "/ui/files",
    "/ui/upstreams",
    "/ui/workers",
    "/ui/webhooks",
    "/ui/projects",
    "/ui/system",
)


def measure(bench: Bench) -> list[Figure]:
    lines = bench.sizes.many_lines[1]
    figures: list[Figure] = []
    with stubs.slow(mean_s=30) as stub:
        for store, environment in _stores(bench.folder, bench.sizes.stored_batches):
            kept = bench.folder / "kept"
            with serving(
                bench.folder / "data",
                upstream=stub.url,
                source=bench.source,
                pinned=False,
                begin_with=kept if kept.exists() else None,
                environment=environment,
            ) as server:
                batch_id = server.create(server.upload(_input(bench.folder, lines)))
                server.wait(batch_id, every_s=0.2, until=("in_progress",))
                figures += _figures(store, _samples(server, batch_id))
                server.call("POST", f"/v1/batches/{batch_id}/cancel")
    return figures


def _input(folder: Path, lines: int) -> Path:
    return inputs.input_file(folder, lines, line_bytes=_LINE_BYTES)


def _stores(folder: Path, batches: int) -> Iterator[tuple[str, dict[str, str]]]:
    """The name of each kind of store that there is here, filled, and the settings that choose it."""
    kept = folder / "kept"
    kept.mkdir()
    asyncio.run(seed(f"sqlite:///{kept / 'nightmill.sqlite'}", batches=batches, now=time.time()))
    yield "SQLite", {}
    try:
        postgres = Postgres(folder / "postgres")
    except tools.CannotInstallError:
        return
    with postgres.running():
        url = postgres.fresh()
        asyncio.run(seed(url, batches=batches, now=time.time()))
        yield "Postgres", {"NIGHTMILL_STORE": url}


def _samples(server: Server, running: str) -> dict[str, list[float]]:
    """Milliseconds of each request, by what it asks for."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    now = int(time.time())
    ended = server.call("GET", f"{_LIST}?status=completed&limit=1")["data"][0]["id"]
    upstream = server.call("GET", "/nightmill/v1/upstreams")["data"][0]["name"]
    asked = {"the published list": "/v1/batches?limit=100"}
    for name, given in {**_FILTERS, "an upstream": {"upstream": upstream}}.items():
        since = {key: now + value for key, value in given.items() if key == "created_after"}
        query = urlencode({**given, **since})
        asked[f"list, {name}"] = f"{_LIST}?{query}&limit=50&order=unfinished_first"
        asked[f"facets, {name}"] = f"{_FACETS}?{query}"
    for page in _PAGES:
        asked[f"page {page}"] = page.format(running=running, ended=ended)
    samples: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(_TIMES):
        for name, path in asked.items():
            began = time.perf_counter()
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"GET {path}: {response.status}")
            samples[name].append((time.perf_counter() - began) * 1e3)
    connection.close()
    return samples


def _figures(store: str, samples: Mapping[str, list[float]]) -> list[Figure]:
    """One figure for each page and for the published list, and those of the slowest filter."""
    figures: list[Figure] = []
    for kind in ("list, ", "facets, "):
        of_kind = {name: times for name, times in samples.items() if name.startswith(kind)}
        slowest = max(of_kind, key=lambda name: _p95(of_kind[name]))
        note = f"slowest of {len(of_kind)} filters: {slowest.removeprefix(kind)}"
        figures.append(_figure(store, kind.removesuffix(", "), of_kind[slowest], note))
    others = {name: times for name, times in samples.items() if not name.startswith(("list, ", "facets, "))}
    return figures + [_figure(store, name, times) for name, times in others.items()]


def _figure(store: str, name: str, times: list[float], note: str = "") -> Figure:
    median = f"median {sorted(times)[len(times) // 2]:.1f}"
    return Figure(
        ROW,
        f"{name}, {store}, p95",
        _p95(times),
        "ms",
        _TARGET_MS,
        note="; ".join(filter(None, [note, median])),
        samples=[{"ms": [round(one, 1) for one in sorted(times)]}],
    )


def _p95(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.95)]
