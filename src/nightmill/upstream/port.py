"""The interfaces through which the worker uses an upstream.

Guarantees: `send` never raises for anything the network or the upstream does; only cancellation passes
through. The path comes from the batch's endpoint, the host only from settings. Retries and pauses belong to
`core.retry` and `core.health`, counting to the worker.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from nightmill.core.outcome import Outcome

Tag = TypeVar("Tag")


class Upstream(Protocol):
    """A server that answers request lines."""

    async def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Outcome:
        """One attempt. `endpoint` is '/v1/...' as on the wire; `body` goes out byte for byte."""
        ...

    async def models(self) -> bytes | None:
        """The body of the upstream's answer to GET /models, or None without a 200."""
        ...

    async def get(self, path: str, *, timeout_s: float, max_answer_bytes: int) -> Outcome:
        """One GET at a path of the host, which may lie outside the base path, such as '/metrics'.

        The headers are those of every request. An answer with a longer body ends as too long.
        """
        ...

    async def close(self) -> None:
        """Closes every connection. Attempts in flight end as broken."""
        ...


@runtime_checkable
class Attempts(Protocol):
    """Attempts with a callback instead of an awaitable, so that no attempt needs a task or future."""

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

        `tag` is any hashable object of the caller; no two attempts in flight have the same tag.
        """
        ...

    def give_up(self, tag: object) -> None:
        """Ends the attempt; `on_outcome` will not be called."""
        ...


@runtime_checkable
class TimesFirstBytes(Protocol):
    """An upstream that measures when answers begin."""

    def time_first_bytes(self, note: Callable[[float], None]) -> None:
        """Calls `note` with the seconds from the start of an attempt to the first byte of its answer.

        Of many attempts in a short time only some are timed.
        """
        ...
