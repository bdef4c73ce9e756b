"""The gauges of an engine: what a page says, where the page is, and how often a server is asked."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nightmill.core.engine_gauges import EngineGauges
from nightmill.upstream import gauges as module
from nightmill.upstream.gauges import ABSENT_PAUSE_S, FAILED_PAUSE_S, GaugeReader, metrics_paths, read_page
from tests.upstream import metrics_pages as pages

LLAMA = EngineGauges("llama.cpp", 4, 46, None, None, None)
ENGINES = [
    (pages.VLLM, EngineGauges("vllm", 64, 3, 0.8125, None, 8)),
    (pages.OLD_VLLM, EngineGauges("vllm", 5, 2, 0.5, 0.75, 0)),
    (pages.SGLANG, EngineGauges("sglang", 31, 12, 0.28, 0.4, 6)),
    (pages.LLAMA_CPP, LLAMA),
    (pages.TGI, EngineGauges("tgi", 4, 7, None, None, None)),
    (pages.TEI, EngineGauges("tei", 0, 3, None, None, None)),
    (pages.TENSORRT_LLM, EngineGauges("tensorrt-llm", 3, 1, 0.62, 0.1, None)),
]


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reader(rogue, connect, clock):
    return GaugeReader(connect(rogue.url), url=rogue.url, monotonic=clock)


def lines_of(server):
    return [seen.line.split()[1] for seen in server.requests]


# --- the page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "gauges"), ENGINES)
def test_the_gauges_of_each_engine(page, gauges):
    assert read_page(page).gauges == gauges


@pytest.mark.parametrize(("page", "gauges"), ENGINES)
def test_an_underscore_may_stand_for_the_colon_and_the_last_line_may_be_cut(page, gauges):
    text = page.rstrip(b"\n")
    for prefix in (b"vllm", b"sglang", b"llamacpp"):
        text = text.replace(b"\n" + prefix + b":", b"\n" + prefix + b"_")
    assert read_page(text).gauges == gauges


@pytest.mark.parametrize("page", [b"", b"\n", b"<html>vllm:num_requests_running 1</html>", pages.NIGHTMILL])
def test_a_page_without_known_names_has_no_gauges(page):
    assert read_page(page) is None


def test_lines_that_can_not_be_read_and_values_that_are_no_count_are_left_out():
    page = b"""vllm:num_requests_running{model_name="a 5
vllm:num_requests_running{model_name="a"} many
vllm:num_requests_running{model_name="a"} NaN
vllm:num_requests_running{model_name="a"} +Inf
vllm:num_requests_running{model_name="a"} -3
vllm:num_requests_running{model_name="\xff"} 5
vllm:num_requests_running{model_name="%b"} 100
vllm:num_requests_waiting 1e300
vllm:kv_cache_usage_perc 1.5
vllm:gpu_prefix_cache_hit_rate -1
""" % (b"x" * 5_000)
    found = read_page(page).gauges
    assert (found.running, found.waiting, found.kv_use, found.hit_share) == (5, 10**9, 1.0, None)


def test_no_more_lines_than_an_engine_can_have_are_read(monkeypatch):
    monkeypatch.setattr(module, "_MAX_LINES", 3)
    assert read_page(b"tgi_queue_size 1\n" * 9).gauges.waiting == 3


PIECES = [line for page, _ in ENGINES for line in page.splitlines(keepends=True)]


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=20).map(b"".join) | st.binary())
@example(b'vllm:num_requests_running{a="\\')
@example(b"vllm:num_requests_running{")
def test_any_bytes_are_a_page_or_none(page):
    found = read_page(page)
    if found is not None:
        gauges = found.gauges
        assert gauges.running >= 0
        assert gauges.waiting >= 0
        assert all(share is None or 0 <= share <= 1 for share in (gauges.kv_use, gauges.hit_share))


# --- where it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "paths"),
    [
        ("http://h:8000/v1", ("/metrics", "/prometheus/metrics")),
        ("http://h:8000", ("/metrics", "/prometheus/metrics")),
        ("https://h/team/a/v1beta/?x=1", ("/team/a/metrics", "/team/a/prometheus/metrics", "/metrics")),
        ("https://h/api", ("/api/metrics", "/api/prometheus/metrics", "/metrics")),
    ],
)
def test_the_page_is_beside_the_base_path_or_at_the_root(url, paths):
    assert metrics_paths(url) == paths


async def test_the_page_is_read_with_the_headers_of_every_request(rogue, connect, clock, words):
    rogue.plays(words.answer(pages.LLAMA_CPP))
    reader = GaugeReader(connect(rogue.url, api_key="sk-secret"), url=rogue.url, monotonic=clock)
    assert await reader.read() == LLAMA
    [seen] = rogue.requests
    assert seen.line == "GET /metrics HTTP/1.1"
    assert seen.headers["authorization"] == "Bearer sk-secret"


async def test_the_path_that_has_the_page_is_remembered(rogue, connect, clock, words):
    url = rogue.url.replace("/v1", "/a/v1")
    reader = GaugeReader(connect(url), url=url, monotonic=clock)
    for _ in range(2):
        rogue.plays(words.answer(b"no", status=b"404 Not Found"))
    rogue.always = (words.answer(pages.LLAMA_CPP),)
    assert await reader.read() == LLAMA
    assert await reader.read() == LLAMA
    assert lines_of(rogue) == ["/a/metrics", "/a/prometheus/metrics", "/metrics", "/metrics"]


async def test_a_redirect_is_not_followed(rogue, reader, words):
    elsewhere = words.Rogue()
    await elsewhere.start()
    location = b"Location: " + elsewhere.url.encode()
    rogue.always = (words.answer(b"", status=b"307 Elsewhere", headers=[location]),)
    try:
        assert await reader.read() is None
    finally:
        await elsewhere.stop()
    assert elsewhere.connections == 0


# --- how often a server is asked --------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 401, 403, 404, 405, 501])
async def test_a_server_without_gauges_is_asked_again_after_a_minute(rogue, reader, clock, words, status):
    rogue.always = (words.answer(b"<html>", status=b"%d Whatever" % status),)
    assert await reader.read() is None
    clock.now += ABSENT_PAUSE_S - 1
    assert await reader.read() is None
    assert lines_of(rogue) == ["/metrics", "/prometheus/metrics"]
    rogue.always = (words.answer(pages.LLAMA_CPP),)
    clock.now += 1
    assert await reader.read() == LLAMA


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_starts_or_fails_is_asked_again_soon(rogue, reader, clock, words, status):
    rogue.plays(words.answer(b"", status=b"%d Later" % status))
    rogue.always = (words.answer(pages.LLAMA_CPP),)
    assert await reader.read() is None
    assert await reader.read() is None
    assert len(rogue.requests) == 1
    clock.now += FAILED_PAUSE_S
    assert await reader.read() == LLAMA


async def test_without_a_server_there_are_no_gauges(connect, clock):
    url = "http://127.0.0.1:1/v1"
    assert await GaugeReader(connect(url), url=url, monotonic=clock).read() is None


async def test_a_server_that_never_answers_is_given_up(rogue, reader, words, monkeypatch):
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.1)
    rogue.always = (words.HANG,)
    assert await reader.read() is None


async def test_the_deadline_is_one_for_all_paths(rogue, reader, words, monkeypatch):
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.3)
    rogue.plays(words.Pause(0.2), words.answer(b"", status=b"404 Not Found"))
    rogue.always = (words.Pause(0.2), words.answer(pages.LLAMA_CPP))
    assert await reader.read() is None


async def test_a_page_that_is_too_long_is_no_page(rogue, reader, words, monkeypatch):
    monkeypatch.setattr(module, "MAX_PAGE_BYTES", len(pages.LLAMA_CPP) - 1)
    rogue.always = (words.answer(pages.LLAMA_CPP),)
    assert await reader.read() is None


# --- the prefix cache -------------------------------------------------------------------------------


def vllm_page(queries, hits):
    return b"vllm:num_requests_running 1\n" + (
        b"vllm:prefix_cache_queries_total %d\nvllm:prefix_cache_hits_total %d\n" % (queries, hits)
    )


async def test_the_share_of_hits_is_that_since_the_reading_before(rogue, reader, words):
    shares = []
    for counters in [(1_000, 900), (1_100, 925), (1_100, 925), (1_200, 1_025), (10, 5), (20, 10)]:
        rogue.plays(words.answer(vllm_page(*counters)))
        shares.append((await reader.read()).hit_share)
    # Nothing was looked up before the third reading, and the engine restarted before the fifth.
    assert shares == [None, 0.25, 0.25, 1.0, None, 0.5]


async def test_a_gap_between_readings_begins_the_share_anew(rogue, reader, clock, words):
    rogue.plays(words.answer(vllm_page(100, 50)))
    rogue.plays(words.answer(b"", status=b"503 Later"))
    rogue.plays(words.answer(vllm_page(200, 150)))
    assert (await reader.read()).running == 1
    assert await reader.read() is None
    clock.now += FAILED_PAUSE_S
    assert (await reader.read()).hit_share is None
