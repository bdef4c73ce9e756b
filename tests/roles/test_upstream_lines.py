"""The lines of one upstream, without a model server."""

from types import SimpleNamespace
from typing import Any

from nightmill.roles.model_lines import PendingLine
from nightmill.roles.upstream_lines import UpstreamLines


def test_a_line_that_failed_at_another_upstream_is_seen_where_nothing_is_wrong():
    nothing: Any = SimpleNamespace(changes_bodies=False)
    upstream = UpstreamLines(nothing, on_arrival=list, on_change=lambda *_: None)
    assert upstream.is_calm  # then only lines that were never sent are looked at
    segment: Any = SimpleNamespace(lease=SimpleNamespace(endpoint="/v1/chat/completions"))
    request: Any = SimpleNamespace(body=b"{}")
    upstream.retry(PendingLine(segment, 0, request, "small"), until=0.0)
    assert not upstream.is_calm
    assert upstream.models["small"].waiting == 1
