"""The named upstreams of one worker process, each with its client and limits.

A single upstream is named `DEFAULT_NAME`. Events and log lines carry the name. Grants of slots
carry the name that all workers of the upstream share (see `Slots`), which differs from the name here: it
holds the address, so that workers of two servers never share a limit by accident. Lines in flight belong to
`roles.upstream_lines`; the choice of an upstream for a line belongs to `core.routing`.
"""

import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from nightmill.core.concurrency import Slots
from nightmill.core.loopback import is_loopback
from nightmill.core.rate_limit import RateLimits
from nightmill.core.routing import Route
from nightmill.settings import DEFAULT_NAME, Settings, UpstreamSettings, WorkerSettings
from nightmill.upstream.connect import open_upstream
from nightmill.upstream.port import Upstream

_REQUEST_BEATS = 0.75  # of a beat, so that each beat requests slots, also a beat that comes a little early


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRuntime:
    """One upstream at work in one worker process.

    Attributes:
        route: its name in events, log lines and routing, and the models that it offers.
        client: sends the attempts.
        slots: the worker's grant of the concurrency limit.
        rates: requests and tokens per minute.
        attempt_timeout_s: the longest time of one attempt.
        max_attempts: attempts of a line that may count before its outcome stands.
    """

    route: Route
    client: Upstream
    slots: Slots
    rates: RateLimits
    attempt_timeout_s: float
    max_attempts: int

    @property
    def name(self) -> str:
        return self.route.name


class UpstreamRegistry:
    """The upstreams of one worker process by name, in the order of the settings; at least one."""

    def __init__(self, *upstreams: UpstreamRuntime) -> None:
        self._upstreams = upstreams
        self.routes = tuple(upstream.route for upstream in upstreams)

    def __iter__(self) -> Iterator[UpstreamRuntime]:
        return iter(self._upstreams)


@asynccontextmanager
async def open_upstreams(settings: Settings) -> AsyncGenerator[UpstreamRegistry]:
    """Opens every upstream of the settings, and closes their clients in the end.

    Args:
        settings: each upstream has a URL, and there is one at least.
    """
    host = socket.gethostname()
    async with AsyncExitStack() as stack:
        runtimes: list[UpstreamRuntime] = []
        for upstream in settings.all_upstreams:
            assert upstream.url is not None
            client = open_upstream(upstream, url=upstream.url)
            stack.push_async_callback(client.close)
            runtimes.append(
                start_upstream(
                    client,
                    settings=upstream,
                    worker=settings.worker,
                    shared_name=_shared_name(upstream.url, host=host),
                    name=upstream.name,
                )
            )
        yield UpstreamRegistry(*runtimes)


def start_upstream(
    client: Upstream,
    *,
    settings: UpstreamSettings,
    worker: WorkerSettings,
    shared_name: str,
    name: str = DEFAULT_NAME,
) -> UpstreamRuntime:
    """The runtime of an open upstream, with no slots granted yet.

    Args:
        shared_name: the name under which all workers of the upstream share its limits in the store.
    """
    return UpstreamRuntime(
        route=Route(name, frozenset(settings.models)),
        client=client,
        slots=Slots(
            shared_name,
            concurrency_limit=settings.concurrency,
            ttl_s=worker.lease_ttl_s,
            ask_every_s=_REQUEST_BEATS * worker.beat_s,
        ),
        rates=RateLimits(
            requests_per_minute=settings.requests_per_minute, tokens_per_minute=settings.tokens_per_minute
        ),
        attempt_timeout_s=settings.timeout_s,
        max_attempts=settings.max_attempts,
    )


def _shared_name(url: str, *, host: str) -> str:
    """The name under which all workers of one upstream share its limits, without credentials.

    Args:
        url: the upstream's URL.
        host: this machine's name, which becomes part of the name of an upstream on loopback.
    """
    target = urlsplit(url)
    place = f"{target.scheme}://{target.hostname}:{target.port or ''}{target.path}"
    return f"{place} at {host}" if is_loopback(target.hostname or "") else place
