"""Which upstream answers a line."""

from nightmill.core.request_line import RequestLine
from nightmill.core.routing import route


def test_the_only_upstream_answers_every_line():
    assert route(RequestLine(b'"a"', b"{}"), ("default",)) == "default"
