"""What the worker knows of an upstream.

Duty: HTTP to one upstream, over a transport. Promise: `send` never raises for anything the network or the
upstream does; only cancellation passes through. The path comes from the batch's endpoint, the host only from
settings. Not its duty: retries, pacing and counting (the worker, `pacing`).
"""

from collections.abc import Coroutine
from typing import Any, Protocol

from nightmill.pacing import Outcome


class Upstream(Protocol):
    def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Coroutine[Any, Any, Outcome]:
        """One attempt. `endpoint` is '/v1/...' as on the wire; `body` goes out byte for byte."""
        ...

    async def models(self) -> bytes | None:
        """The upstream's own answer to GET /models, or None when it gave none."""
        ...

    async def close(self) -> None:
        """Closes every connection. What is in flight ends as broken."""
        ...
