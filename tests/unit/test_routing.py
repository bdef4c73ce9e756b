"""Which upstreams answer a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.routing import Offer, Routes

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def offer(
    name: str,
    *models: str,
    aliases: dict[str, str] | None = None,
    endpoints: tuple[str, ...] = (),
    accepts_any: bool = False,
    is_open: bool = True,
) -> Offer:
    """An upstream whose list is known."""
    return Offer(
        name=name,
        endpoints=frozenset(endpoints),
        models=frozenset(models),
        aliases=aliases or {},
        accepts_any=accepts_any,
        is_open=is_open,
    )


def names(offers: list[Offer], model: str | None, endpoint: str = CHAT) -> list[str]:
    return [offers[index].name for index in Routes(offers).serving(model, endpoint)]


def test_every_upstream_that_lists_the_model_may_answer():
    offers = [offer("a", "small"), offer("b", "large"), offer("c", "large", "small")]
    assert names(offers, "small") == ["a", "c"]
    assert names(offers, "large") == ["b", "c"]
    assert names(offers, "other") == []


def test_an_alias_serves_like_a_listed_model():
    offers = [
        offer("a", "llama", aliases={"gpt": "llama"}),
        offer("b", "gpt"),
        offer("any", accepts_any=True),
    ]
    assert names(offers, "gpt") == ["a", "b"]


def test_an_upstream_that_accepts_any_model_gets_what_no_other_lists():
    offers = [offer("a", "small"), offer("any", accepts_any=True), offer("c", "small", accepts_any=True)]
    assert names(offers, "small") == ["a", "c"]
    assert names(offers, "other") == ["any", "c"]


def test_an_upstream_with_an_unknown_list_gets_what_no_other_is_known_to_serve():
    unknown = Offer(name="unknown")
    assert names([offer("a", "small"), unknown], "small") == ["a"]
    assert names([offer("a", "small"), unknown], "other") == ["unknown"]
    assert names([offer("any", accepts_any=True), unknown], "other") == ["any"]


def test_an_alias_is_known_before_the_list_is():
    offers = [Offer(name="a"), Offer(name="b", aliases={"gpt": "llama"})]
    assert names(offers, "gpt") == ["b"]


def test_upstreams_without_the_endpoint_do_not_count():
    offers = [
        offer("chat", "small", endpoints=(CHAT,)),
        offer("vectors", "other", accepts_any=True, endpoints=(EMBEDDINGS,)),
        Offer(name="unknown", endpoints=frozenset({CHAT})),
    ]
    assert names(offers, "small", EMBEDDINGS) == ["vectors"]
    assert names(offers, "small", "/v1/moderations") == []
    assert Routes(offers).unserved("small", "/v1/moderations")


def test_a_draining_upstream_gets_only_what_no_open_one_is_known_to_serve():
    draining = offer("draining", "small", "large", is_open=False)
    unknown = Offer(name="unknown")
    assert names([draining, offer("a", "small"), unknown], "small") == ["a"]
    assert names([draining, offer("a", accepts_any=True), unknown], "large") == ["a"]
    assert names([draining, offer("a", "small"), unknown], "large") == ["draining"]
    assert names([offer("any", accepts_any=True, is_open=False), unknown], "large") == ["any"]
    assert names([Offer(name="draining", is_open=False), unknown], "small") == ["unknown"]
    assert names([Offer(name="draining", is_open=False), offer("a")], "small") == ["draining"]


@pytest.mark.parametrize(
    ("offers", "serving"),
    [
        ([offer("a", "small")], ["a"]),
        ([Offer(name="a")], ["a"]),
        ([offer("a", "small"), offer("b", endpoints=(EMBEDDINGS,))], ["a"]),
        ([offer("a", "small"), offer("any", accepts_any=True)], ["any"]),
        ([offer("a", "small"), offer("b", "small")], []),
        ([offer("a", "small"), offer("b", is_open=False)], ["a"]),
        ([offer("a"), offer("b"), offer("any", accepts_any=True, is_open=False)], ["any"]),
        ([offer("a"), offer("b"), offer("c", is_open=False)], []),
        ([offer("a", is_open=False)], ["a"]),
        ([offer("a", is_open=False), offer("b", is_open=False)], []),
    ],
)
def test_a_line_without_a_model_goes_where_any_is_accepted_or_to_the_only_upstream(
    offers: list[Offer], serving: list[str]
):
    assert names(offers, None) == serving


def test_a_model_is_unserved_only_when_every_list_is_known():
    listed = offer("a", "small")
    assert Routes([listed]).unserved("other", CHAT)
    assert Routes([]).unserved("other", CHAT)
    assert not Routes([listed]).unserved("small", CHAT)
    assert not Routes([listed, Offer(name="unknown")]).unserved("other", CHAT)
    assert not Routes([listed, offer("any", accepts_any=True)]).unserved("other", CHAT)


def test_the_model_that_is_sent_is_that_of_the_alias():
    first, second = offer("a", "llama", aliases={"gpt": "llama", "same": "same"}), offer("b", "gpt")
    assert first.sent_model("gpt") == "llama"
    assert first.sent_model("llama") == "llama"
    assert first.sent_model("same") == "same"
    assert second.sent_model("gpt") == "gpt"


def test_more_models_than_the_cache_keeps_are_routed_too():
    routes = Routes([offer("a", "m1999"), offer("any", accepts_any=True)])
    assert [routes.serving(f"m{number}", CHAT) for number in range(2000)] == [(1,)] * 1999 + [(0,)]
    assert routes.serving("m0", CHAT) == (1,)


MODELS = ["small", "large", "gpt"]
SUBSETS = st.frozensets(st.sampled_from(MODELS))
OFFERS = st.lists(
    st.builds(
        Offer,
        name=st.just("any name"),
        endpoints=st.frozensets(st.sampled_from([CHAT, EMBEDDINGS])),
        models=st.none() | SUBSETS,
        aliases=st.dictionaries(st.sampled_from(MODELS), st.sampled_from(MODELS), max_size=2),
        accepts_any=st.booleans(),
        is_open=st.booleans(),
    ),
    max_size=5,
)


def rank(one: Offer, model: str) -> int:
    """The place of an offer among those that could answer; the lowest place answers."""
    if model in (one.models or ()) or model in one.aliases:
        return 1 if one.is_open else 3
    if one.accepts_any:
        return 2 if one.is_open else 4
    if one.models is None:
        return 5 if one.is_open else 6
    return 7


@given(OFFERS, st.sampled_from([*MODELS, "other"]), st.sampled_from([CHAT, EMBEDDINGS]))
def test_the_upstreams_of_the_best_rank_answer_a_model(offers: list[Offer], model: str, endpoint: str):
    ranks = [7 if one.endpoints and endpoint not in one.endpoints else rank(one, model) for one in offers]
    best = min(ranks, default=7)
    expected = tuple(index for index, found in enumerate(ranks) if found == best < 7)
    routes = Routes(offers)
    assert routes.serving(model, endpoint) == routes.serving(model, endpoint) == expected
    assert routes.unserved(model, endpoint) == (not expected)


@given(OFFERS, st.sampled_from([CHAT, EMBEDDINGS]))
def test_a_line_without_a_model_never_goes_where_it_is_one_of_several_models(
    offers: list[Offer], endpoint: str
):
    serving = Routes(offers).serving(None, endpoint)
    able = [one for one in offers if not one.endpoints or endpoint in one.endpoints]
    chosen = [offers[index] for index in serving]
    assert all(one in able for one in chosen)
    if any(one.accepts_any and one.is_open for one in able):
        assert all(one.accepts_any and one.is_open for one in chosen)
    elif not all(one.accepts_any for one in chosen):
        assert len(chosen) == 1
        assert chosen[0].is_open or len(able) == 1
    if len(able) == 1:
        assert chosen == able
