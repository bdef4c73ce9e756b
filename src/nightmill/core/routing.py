"""Routing: which upstream answers a request line. No I/O.

`route` is the only code that chooses an upstream. The dispatcher calls it once for each line, when the
line is first taken from its segment; attempts that follow go to the same upstream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nightmill.core.request_line import RequestLine


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A way to an upstream. Two routes are never equal, so that a route is a cheap key of a dictionary.

    Attributes:
        name: the name of the upstream in this process.
        models: the models that the upstream offers; empty when it is sent every model.
    """

    name: str
    models: frozenset[str] = frozenset()


def route(request: RequestLine, routes: Sequence[Route]) -> Route:
    """The route of a line: the first one that offers the model of the line, or else the first one.

    Args:
        request: the line. Its model is decoded only where there is a choice.
        routes: the upstreams of the process in the order of the settings, at least one.
    """
    if len(routes) > 1:
        model = request.model
        for candidate in routes:
            if not candidate.models or model in candidate.models:
                return candidate
    return routes[0]
