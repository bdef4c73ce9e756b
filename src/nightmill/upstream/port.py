"""What the worker knows of an upstream.

Duty: HTTP to one upstream, over a transport. Promise: `send` never raises for anything the network or the
upstream does; only cancellation passes through. The path comes from the batch's endpoint, the host only from
settings. Not its duty: retries, pacing and counting (the worker, `pacing`).
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from nightmill.core.outcome import Outcome

Tag = TypeVar("Tag")


class Upstream(Protocol):
    async def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Outcome:
        """One attempt. `endpoint` is '/v1/...' as on the wire; `body` goes out byte for byte."""
        ...

    async def models(self) -> bytes | None:
        """The upstream's own answer to GET /models, or None when it gave none."""
        ...

    async def close(self) -> None:
        """Closes every connection. What is in flight ends as broken."""
        ...


@runtime_checkable
class Attempts(Protocol):
    """Attempts that tell their outcome instead of being awaited: no task and no future for each of them."""

    def start(
        self,
        tag: Tag,
        endpoint: str,
        body: bytes,
        *,
        timeout_s: float,
        on_outcome: Callable[[Tag, Outcome], None],
    ) -> None:
        """As `Upstream.send`; `on_outcome(tag, outcome)` is called once, perhaps before this returns.

        `tag` is the caller's, hashable, and of one attempt at a time.
        """
        ...

    def give_up(self, tag: object) -> None:
        """Nobody wants the attempt's outcome any more: `told` will not be called."""
        ...
