"""The share of hits in a prefix cache, from counters, and advice on the options of an engine."""

import pytest

from nightmill.core.engine_gauges import HitShare, advice_on

FLAGS = pytest.mark.parametrize(
    ("engine", "flag"),
    [
        ("vllm", "--max-num-seqs"),
        ("sglang", "--max-running-requests"),
        ("llama.cpp", "--parallel (-np)"),
        ("tgi", "--max-concurrent-requests"),
        ("tensorrt-llm", "--max_batch_size"),
    ],
)


def test_the_share_is_that_since_the_reading_before():
    share = HitShare()
    assert share.note(queries=1_000, hits=900) is None
    assert share.note(queries=1_100, hits=925) == 0.25
    assert share.note(queries=1_200, hits=1_025) == 1.0
    assert share.note(queries=1_300, hits=1_200) == 1.0  # the counters are not read at one moment


def test_without_lookups_the_share_stays():
    share = HitShare()
    share.note(queries=0, hits=0)
    assert share.note(queries=0, hits=0) is None
    share.note(queries=4, hits=2)
    assert share.note(queries=4, hits=2) == 0.5


def test_a_restart_of_the_engine_begins_the_share_anew():
    for queries, hits in [(10, 60), (200, 5)]:
        share = HitShare()
        share.note(queries=50, hits=20)
        share.note(queries=100, hits=50)
        assert share.note(queries=queries, hits=hits) is None
        assert share.note(queries=queries + 10, hits=hits + 5) == 0.5


@FLAGS
def test_advice_names_the_option_of_the_engine(engine, flag):
    queued = advice_on(engine, running=64, waiting=9, kv_use=0.3)
    assert queued == f"the engine runs 64 requests at once: raise {flag}"
    empty = advice_on(engine, running=64, waiting=0, kv_use=None)
    assert empty == f"the engine's queue stays empty at 64 running requests: raise {flag}"


@FLAGS
def test_a_full_cache_is_the_reason_whatever_the_option_is(engine, flag):
    for waiting in (0, 9):
        advice = advice_on(engine, running=40, waiting=waiting, kv_use=0.95)
        assert advice == "the KV cache is full at 40 running requests: give the engine more memory for it"


def test_there_is_no_advice_on_an_engine_whose_options_are_unknown():
    assert advice_on("other", running=64, waiting=9, kv_use=None) is None


def test_advice_names_how_many_the_engine_runs_although_some_readings_are_made_when_requests_have_ended():
    advice = advice_on("vllm", running=3.4, waiting=9, kv_use=0.2)
    assert "4" in (advice or "")
    assert "3" not in (advice or "")
