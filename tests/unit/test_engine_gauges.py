"""The share of hits in a prefix cache, from counters."""

from nightmill.core.engine_gauges import HitShare


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
