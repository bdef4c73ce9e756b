"""Routing: which upstream answers a request line. No I/O.

`route` is the only code that chooses an upstream. The dispatcher calls `route` once for each line, when the
line is first taken from its segment; attempts that follow go to the same upstream. Today a process has one
upstream, so nothing of the line is read. A rule that depends on the model reads `RequestLine.model`, which is
decoded from the body only when asked for.
"""

from collections.abc import Sequence

from nightmill.core.request_line import RequestLine


def route(request: RequestLine, upstreams: Sequence[str]) -> str:  # noqa: ARG001 - the only upstream needs no choice
    """The name of the upstream that a line is sent to.

    Args:
        request: the line; its model is `request.model`.
        upstreams: the names of the process's upstreams, at least one.
    """
    return upstreams[0]
