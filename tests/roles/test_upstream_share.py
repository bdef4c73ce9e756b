"""The share of an upstream in a worker: it follows the wall clock and reaches every group of slots."""

from datetime import UTC, datetime

import pytest

from nightmill.core.load_share import LoadShare
from nightmill.roles.connected_upstream import ConnectedUpstream
from nightmill.roles.upstream_lines import UpstreamLines
from nightmill.settings import UpstreamSettings, WorkerSettings
from nightmill.settings.effective import EffectiveUpstream
from nightmill.upstream.connect import open_upstream

URL = "http://127.0.0.1:9/v1"
QUIET = "22:00-06:00 UTC"


class Wall:
    def __init__(self, hour: int, minute: int = 0, second: int = 0) -> None:
        self.set(hour, minute, second)

    def set(self, hour: int, minute: int = 0, second: int = 0) -> None:
        self.now = datetime(2026, 3, 2, hour, minute, second, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


def connected(wall: Wall, **settings: object) -> ConnectedUpstream:
    made = UpstreamSettings.model_validate({"url": URL} | settings)
    return ConnectedUpstream(
        EffectiveUpstream(made),
        open_upstream(made, url=URL),
        worker=WorkerSettings(),
        shared_name="u",
        on_list=lambda: None,
        wall=wall,
    )


def lines_of(upstream: ConnectedUpstream) -> UpstreamLines:
    return UpstreamLines(upstream.runtime(is_only=True), on_arrival=lambda: None, on_change=lambda *_: None)


def test_the_share_of_a_fixed_concurrency_begins_and_ends_with_the_quiet_hours():
    wall = Wall(21, 59, 59)
    upstream = connected(wall, concurrency=11, share=0.5, quiet_hours=QUIET)
    lines = lines_of(upstream)
    slots = lines.group_of("m").slots
    assert (slots.concurrency_limit, slots.rule) == (5, "hold: share")
    wall.set(22)
    lines.change(upstream.runtime(is_only=True))
    assert (slots.concurrency_limit, slots.rule) == (11, "")
    assert slots.is_due(0.0, wanted=1)
    wall.set(6)
    lines.change(upstream.runtime(is_only=True))
    assert slots.concurrency_limit == 5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"share": 0.5}, LoadShare(0.5, may_search=True)),
        ({"share": 0.5, "quiet_hours": QUIET}, LoadShare(0.5)),
        ({"share": 0.5, "quiet_hours": "12:00-13:00 UTC"}, LoadShare(1.0)),
    ],
)
def test_a_search_at_full_load_is_allowed_only_without_quiet_hours(settings, expected):
    assert connected(Wall(12), **settings).runtime(is_only=True).load_share == expected


def test_a_change_of_the_settings_takes_effect_with_the_client_that_is_open():
    upstream = connected(Wall(12), concurrency=10)
    lines = lines_of(upstream)
    slots = lines.group_of(None).slots
    assert slots.concurrency_limit == 10
    changed = UpstreamSettings(url=URL, concurrency=10, share=0.2, quiet_hours=QUIET)
    assert upstream.may_become(EffectiveUpstream(changed))
    upstream.become(EffectiveUpstream(changed))
    lines.change(upstream.runtime(is_only=True))
    assert slots.concurrency_limit == 2
    upstream.become(EffectiveUpstream(UpstreamSettings(url=URL, concurrency=10)))
    lines.change(upstream.runtime(is_only=True))
    assert slots.concurrency_limit == 10


def test_each_model_with_a_limit_of_its_own_sends_the_share_with_its_requests():
    upstream = connected(Wall(12), models=("a", "b"), share=0.5)
    lines = lines_of(upstream)
    for model in ("a", "b"):
        request = lines.group_of(model).slots.request("w", in_flight=0, wanted=1)
        assert request.load_share == LoadShare(0.5, may_search=True)
