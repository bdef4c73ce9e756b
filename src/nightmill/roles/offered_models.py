"""The models that all upstreams together offer, from the settings and from what workers report."""

from collections.abc import Sequence

import msgspec

from nightmill.core.routing import Offer
from nightmill.core.upstream_report import UpstreamReport, merged
from nightmill.settings import ANY_MODEL, Settings
from nightmill.settings.effective import effective_of
from nightmill.store import Store
from nightmill.upstream.registry import offer_of

_LISTS_KEPT_S = 60.0
"""For how long the models of a worker that reports no more still count."""
REPORT_AGE_S = 15.0


async def read_reports(store: Store, *, max_age_s: float = REPORT_AGE_S) -> dict[str, list[UpstreamReport]]:
    """What the workers have reported lately, by the name of the upstream."""
    found: dict[str, list[UpstreamReport]] = {}
    for row in await store.upstreams.reports(max_age_s=max_age_s):
        try:
            report = msgspec.json.decode(row.document, type=UpstreamReport)
        except msgspec.MsgspecError:
            continue  # of a worker of another version
        found.setdefault(row.upstream, []).append(report)
    return found


class OfferedModels:
    """What the upstreams in effect offer.

    Args:
        offers: of all upstreams in effect.
        is_decided_by_upstream: whether a single upstream is sent every model, so that only its own list says
            what there is.
    """

    def __init__(self, offers: Sequence[Offer], *, is_decided_by_upstream: bool) -> None:
        self.offers = offers
        self.is_decided_by_upstream = is_decided_by_upstream

    @property
    def known(self) -> list[str]:
        """Every model and alias that is known to be offered, by name."""
        known = [offer for offer in self.offers if offer.models is not None]
        return sorted({name for offer in known for name in (*(offer.models or ()), *offer.aliases)})

    def required(self, endpoint: str) -> frozenset[str]:
        """The models that a line for an endpoint may name; empty when any may be named.

        Any model may be named while a list is not known, and if an upstream is sent every model.
        """
        required: set[str] = set()
        for offer in self.offers:
            if offer.endpoints and endpoint not in offer.endpoints:
                continue
            if offer.accepts_any or offer.models is None:
                return frozenset()
            required.update(offer.models, offer.aliases)
        return frozenset(required)


async def offered_models(store: Store, settings: Settings) -> OfferedModels:
    """What is offered now. The reports are read only if the settings leave a model open."""
    effective = effective_of(settings, await store.upstreams.settings())
    # Without an upstream, its URL may be known to the workers only.
    upstreams = [upstream.settings for upstream in effective] or [settings.upstream]
    is_only = len(upstreams) == 1
    reports: dict[str, list[UpstreamReport]] = {}
    if not is_only and not all(upstream.models for upstream in upstreams):
        reports = await read_reports(store, max_age_s=_LISTS_KEPT_S)
    offers: list[Offer] = []
    for upstream in upstreams:
        of_workers = reports.get(upstream.name)
        models = merged(of_workers).models if of_workers else None
        listed = None if models is None else frozenset(models)
        offers.append(offer_of(upstream, is_only=is_only, listed=listed))
    return OfferedModels(offers, is_decided_by_upstream=is_only and set(upstreams[0].models) <= {ANY_MODEL})
