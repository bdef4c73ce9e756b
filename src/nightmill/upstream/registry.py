"""The named upstreams of one worker process, each with its client, limits and circuit breaker.

A worker has one upstream today, named `DEFAULT_NAME`. Events and log lines carry the name. Grants of slots
carry the name that all workers of the upstream share (see `Slots`), which differs from the name here: it
holds the address, so that workers of two servers never share a limit by accident. Lines in flight belong to
`roles.upstream_lines`; the choice of an upstream for a line belongs to `core.routing`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nightmill.core.circuit_breaker import CircuitBreaker
from nightmill.core.concurrency import Slots
from nightmill.core.rate_limit import RateLimits
from nightmill.settings import UpstreamSettings, WorkerSettings
from nightmill.upstream.port import Upstream

DEFAULT_NAME = "default"
_REQUEST_BEATS = 0.75  # of a beat, so that each beat requests slots, also a beat that comes a little early


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRuntime:
    """One upstream at work in one worker process.

    Attributes:
        name: the name in events, log lines and routing.
        client: sends the attempts.
        slots: the worker's grant of the concurrency limit.
        breaker: whether the upstream is called at all.
        rates: requests and tokens per minute.
        attempt_timeout_s: the longest time of one attempt.
        max_attempts: attempts of a line that may count before its outcome stands.
    """

    name: str
    client: Upstream
    slots: Slots
    breaker: CircuitBreaker
    rates: RateLimits
    attempt_timeout_s: float
    max_attempts: int


class UpstreamRegistry:
    """The upstreams of one worker process by name, in the order of the settings; at least one."""

    def __init__(self, *upstreams: UpstreamRuntime) -> None:
        self._upstreams = upstreams
        self.names = tuple(upstream.name for upstream in upstreams)

    def __iter__(self) -> Iterator[UpstreamRuntime]:
        return iter(self._upstreams)


def start_upstream(
    client: Upstream,
    *,
    settings: UpstreamSettings,
    worker: WorkerSettings,
    shared_name: str,
    concurrency_limit: int | None = None,
    name: str = DEFAULT_NAME,
) -> UpstreamRuntime:
    """The runtime of an open upstream, with no slots granted yet and a breaker that lets attempts through.

    Args:
        shared_name: the name under which all workers of the upstream share its limits in the store.
        concurrency_limit: attempts in flight at once over all workers; None takes the upstream's setting.
    """
    return UpstreamRuntime(
        name=name,
        client=client,
        slots=Slots(
            shared_name,
            concurrency_limit=concurrency_limit or settings.concurrency,
            ttl_s=worker.lease_ttl_s,
            ask_every_s=_REQUEST_BEATS * worker.beat_s,
        ),
        breaker=CircuitBreaker(),
        rates=RateLimits(
            requests_per_minute=settings.requests_per_minute, tokens_per_minute=settings.tokens_per_minute
        ),
        attempt_timeout_s=settings.timeout_s,
        max_attempts=settings.max_attempts,
    )
