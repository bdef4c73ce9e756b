"""The named upstreams of one worker process, each with its client and limits.

A single upstream is named `DEFAULT_NAME`. Events and log lines carry the name. Grants of slots carry the name
that all workers of the upstream share (see `Slots`), which differs from the name here: it holds the address,
so that workers of two servers never share a limit by accident. Lines in flight belong to
`roles.upstream_lines`; the choice of upstreams for a line belongs to `core.routing`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nightmill.core.concurrency import Slots
from nightmill.core.counts import UpstreamCounts
from nightmill.core.limit_state import Bounds
from nightmill.core.load_share import LoadShare
from nightmill.core.loopback import is_loopback
from nightmill.core.rate_limit import RateLimits
from nightmill.core.routing import Offer
from nightmill.settings import ANY_MODEL, UpstreamSettings, WorkerSettings
from nightmill.upstream.port import TimesFirstBytes, Upstream

_REQUEST_BEATS = 0.75  # of a beat, so that each beat requests slots, also a beat that comes a little early


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRuntime:
    """One upstream at work in one worker process.

    Attributes:
        offer: its name in events, log lines and routing, and what it answers.
        client: sends the attempts.
        slots_of: the worker's grant of slots for a model with a limit of its own; None for all other models.
        limited_models: the models, as the upstream knows them, with a concurrency limit of their own.
        rates: requests and tokens per minute.
        attempt_timeout_s: the longest time of one attempt.
        max_attempts: attempts of a line that may count before its outcome stands.
        weight: of several upstreams with free slots the one with the greater weight is filled first.
        priority: sent in each body, None for none.
        load_share: the share of the upstream that batches may use now; None if it is always the whole.
        may_start: whether attempts may start.
        counts: what was counted of its attempts.
    """

    offer: Offer
    client: Upstream
    slots_of: Callable[[str | None], Slots]
    rates: RateLimits
    attempt_timeout_s: float
    max_attempts: int
    limited_models: frozenset[str] = frozenset()
    weight: float = 1.0
    priority: int | None = None
    load_share: LoadShare | None = None
    may_start: bool = True
    counts: UpstreamCounts = field(default_factory=UpstreamCounts, compare=False)

    @property
    def name(self) -> str:
        return self.offer.name

    @property
    def changes_bodies(self) -> bool:
        """Whether bodies are not sent as they are in the input file."""
        return bool(self.offer.aliases) or self.priority is not None

    def sent_model(self, model: str | None) -> str | None:
        """The name under which the upstream knows a model."""
        return None if model is None else self.offer.sent_model(model)


class UpstreamRegistry:
    """The upstreams of one worker process, in the order of the settings."""

    def __init__(self, *upstreams: UpstreamRuntime) -> None:
        self._upstreams = upstreams

    def __iter__(self) -> Iterator[UpstreamRuntime]:
        return iter(self._upstreams)


class SlotsByModel:
    """The grants of one worker at one upstream, made when they are first needed."""

    def __init__(self, new: Callable[[str | None], Slots]) -> None:
        self._new = new
        self._slots: dict[str | None, Slots] = {}

    def __call__(self, model: str | None) -> Slots:
        slots = self._slots.get(model)
        if slots is None:
            slots = self._slots[model] = self._new(model)
        return slots


def start_upstream(
    client: Upstream,
    *,
    settings: UpstreamSettings,
    worker: WorkerSettings,
    shared_name: str,
    is_only: bool = True,
    counts: UpstreamCounts | None = None,
) -> UpstreamRuntime:
    """The runtime of an open upstream, with no slots granted yet.

    Args:
        shared_name: the name under which all workers of the upstream share its limits in the store.
        is_only: whether there is no other upstream.
        counts: of earlier clients of the upstream; None starts at zero.
    """
    counts = counts or UpstreamCounts()
    if isinstance(client, TimesFirstBytes):
        client.time_first_bytes(counts.note_first_byte)

    def new_slots(model: str | None) -> Slots:
        return Slots(
            shared_name if model is None else f"{shared_name} model {model}",
            concurrency_limit=0 if settings.concurrency == "auto" else settings.concurrency,
            ttl_s=worker.lease_ttl_s,
            ask_every_s=_REQUEST_BEATS * worker.beat_s,
            bounds=Bounds(most=settings.max_concurrency) if settings.concurrency == "auto" else None,
        )

    return UpstreamRuntime(
        offer=offer_of(settings, is_only=is_only, listed=None),
        client=client,
        slots_of=SlotsByModel(new_slots),
        rates=RateLimits(
            requests_per_minute=settings.requests_per_minute, tokens_per_minute=settings.tokens_per_minute
        ),
        attempt_timeout_s=settings.timeout_s,
        max_attempts=settings.max_attempts,
        weight=settings.weight,
        priority=settings.priority,
        counts=counts,
    )


def offer_of(
    settings: UpstreamSettings, *, is_only: bool, listed: frozenset[str] | None, is_open: bool = True
) -> Offer:
    """What an upstream answers.

    Args:
        is_only: whether there is no other upstream. A single one is sent every model, unless its settings
            name the models.
        listed: the models that it lists, None while the list is not known.
        is_open: see `Offer`.
    """
    named = frozenset(settings.models) - {ANY_MODEL}
    return Offer(
        name=settings.name,
        endpoints=frozenset(settings.endpoints),
        models=named or listed,
        aliases=settings.aliases,
        accepts_any=ANY_MODEL in settings.models or (is_only and not settings.models),
        is_open=is_open,
    )


def shared_name(url: str, *, host: str) -> str:
    """The name under which all workers of one upstream share its limits, without credentials.

    Args:
        url: the upstream's URL.
        host: this machine's name, which becomes part of the name of an upstream on loopback.
    """
    target = urlsplit(url)
    place = f"{target.scheme}://{target.hostname}:{target.port or ''}{target.path}"
    return f"{place} at {host}" if is_loopback(target.hostname or "") else place
