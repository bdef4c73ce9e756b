"""Which upstream answers a line."""

import pytest

from nightmill.core.request_line import RequestLine
from nightmill.core.routing import Route, route


def asking_for(model: str) -> RequestLine:
    return RequestLine(b'"a"', b'{"model": "%b"}' % model.encode())


def test_the_only_upstream_answers_every_line():
    only = Route("default", frozenset({"small"}))
    assert route(asking_for("large"), (only,)) is only


@pytest.mark.parametrize(("model", "name"), [("small", "a"), ("large", "b"), ("other", "c")])
def test_a_line_goes_to_the_first_upstream_that_offers_its_model(model: str, name: str):
    routes = (Route("a", frozenset({"small"})), Route("b", frozenset({"large", "small"})), Route("c"))
    assert route(asking_for(model), routes).name == name


def test_a_line_whose_model_is_offered_nowhere_goes_to_the_first_upstream():
    routes = (Route("a", frozenset({"small"})), Route("b", frozenset({"large"})))
    assert route(asking_for("other"), routes).name == "a"
