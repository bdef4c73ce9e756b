"""Routing: which upstreams may answer a request line. No I/O.

`Routes` is the only code that chooses upstreams. Of the upstreams that have the endpoint of a line, those of
the first group that is not empty may answer the line:

| | the upstream | and what is known of the model |
|---|---|---|
| 1 | open | listed, or an alias |
| 2 | open | the upstream accepts any model |
| 3 | draining | listed, or an alias |
| 4 | draining | the upstream accepts any model |
| 5 | open | nothing: the upstream's list of models was not read yet |
| 6 | draining | nothing, as above |

So an upstream whose list is unknown gets a model only if no other is known to serve it, and a draining
upstream only what no open one is known to serve. A line without a model goes to the upstreams that accept any
model, or to the only upstream.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What an upstream answers.

    Attributes:
        name: the name of the upstream.
        endpoints: the endpoints it has; empty for all.
        models: the models that it lists, or that its settings name; None while its list is not known.
        aliases: other names of models: the model that a line asks for, and the model that is sent.
        accepts_any: whether it is sent every model: it is the only upstream and its settings name no model,
            or they name `*`.
        is_open: whether it gets new lines; False while it is draining, and when it is removed.
    """

    name: str
    endpoints: frozenset[str] = frozenset()
    models: frozenset[str] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    accepts_any: bool = False
    is_open: bool = True

    def sent_model(self, model: str) -> str:
        """The model that is sent in place of `model`: that of the alias, or `model` itself."""
        return self.aliases.get(model, model)

    def answers(self, model: str) -> bool:
        """Whether the upstream may be sent a model at some endpoint."""
        return self.accepts_any or model in self.aliases or self.models is None or model in self.models


class Routes:
    """The choice of upstreams for one state of all offers. An offer that changes needs new routes."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        self._offers = tuple(offers)
        # Models are named by clients, so their number has no other bound.
        self._cached = lru_cache(maxsize=1024)(partial(_serving, self._offers))

    def serving(self, model: str | None, endpoint: str) -> tuple[int, ...]:
        """The offers that may answer a line, as ascending indexes of `offers`.

        Args:
            model: the model that the line asks for, None if it names none.
            endpoint: the endpoint of the line, for example `/v1/embeddings`.
        """
        return self._cached(model, endpoint)

    def unserved(self, model: str | None, endpoint: str) -> bool:
        """Whether no upstream will answer such a line: all lists of models are known, and none has it.

        Upstreams without the endpoint do not count, and for a line without a model the lists do not count.
        """
        return not self._cached(model, endpoint)


def _serving(offers: tuple[Offer, ...], model: str | None, endpoint: str) -> tuple[int, ...]:
    able = [
        (index, offer)
        for index, offer in enumerate(offers)
        if not offer.endpoints or endpoint in offer.endpoints
    ]
    is_open = [(index, offer) for index, offer in able if offer.is_open]
    draining = [(index, offer) for index, offer in able if not offer.is_open]
    groups = _groups_without_model(is_open, draining) if model is None else _groups(is_open, draining, model)
    return next((tuple(group) for group in groups if group), ())


_Able = list[tuple[int, Offer]]


def _groups(is_open: _Able, draining: _Able, model: str) -> Iterator[list[int]]:
    for able in (is_open, draining):
        yield [index for index, offer in able if model in (offer.models or ()) or model in offer.aliases]
        yield _accepting_any(able)
    for able in (is_open, draining):
        yield [index for index, offer in able if offer.models is None]


def _groups_without_model(is_open: _Able, draining: _Able) -> Iterator[list[int]]:
    yield _accepting_any(is_open)
    if len(is_open) == 1:
        yield [is_open[0][0]]
    yield _accepting_any(draining)
    if len(draining) == 1 and not is_open:
        yield [draining[0][0]]


def _accepting_any(able: _Able) -> list[int]:
    return [index for index, offer in able if offer.accepts_any]
