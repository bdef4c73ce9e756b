"""The models that all upstreams together offer, from the settings and from what workers report."""

from collections.abc import Iterable, Sequence

import msgspec

from nightmill.core.upstream_report import UpstreamReport, merged
from nightmill.settings import ANY_MODEL, Settings
from nightmill.settings.effective import EffectiveUpstream, effective_of
from nightmill.store import Store

_LISTS_KEPT_S = 60.0
"""For how long the models of a worker that reports no more still count."""
_REPORT_AGE_S = 15.0


async def read_reports(store: Store, *, max_age_s: float = _REPORT_AGE_S) -> dict[str, list[UpstreamReport]]:
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
        upstreams: those in effect.
        reports: by the name of the upstream.
    """

    def __init__(self, upstreams: Sequence[EffectiveUpstream], reports: dict[str, UpstreamReport]) -> None:
        self._upstreams = upstreams
        self._reports = reports

    @property
    def known(self) -> list[str]:
        """Every model and alias that is known to be offered, by name."""
        return sorted({name for upstream in self._upstreams for name in self._of(upstream) or ()})

    @property
    def is_decided_by_upstream(self) -> bool:
        """Whether a single upstream is sent every model, so that only its own list says what there is."""
        return len(self._upstreams) == 1 and not self._upstreams[0].settings.models

    def required(self, endpoint: str) -> frozenset[str]:
        """The models that a line for an endpoint may name; empty when any may be named.

        Any model may be named while a list is not known, and if an upstream is sent every model.
        """
        models: set[str] = set()
        for upstream in self._upstreams:
            settings = upstream.settings
            if settings.endpoints and endpoint not in settings.endpoints:
                continue
            is_sent_any = ANY_MODEL in settings.models or (len(self._upstreams) == 1 and not settings.models)
            listed = self._of(upstream)
            if is_sent_any or listed is None:
                return frozenset()
            models.update(listed)
        return frozenset(models)

    def _of(self, upstream: EffectiveUpstream) -> Iterable[str] | None:
        """The models and aliases of one upstream; None while its list is not known."""
        settings = upstream.settings
        named = [model for model in settings.models if model != ANY_MODEL]
        report = self._reports.get(settings.name)
        listed = named or (None if report is None else report.models)
        return None if listed is None else (*listed, *settings.aliases)


async def offered_models(store: Store, settings: Settings) -> OfferedModels:
    """What is offered now. The reports are read only if the settings leave a model open."""
    upstreams = effective_of(settings, await store.upstreams.settings())
    if not upstreams:  # the URL may be known to the workers only
        upstreams = [EffectiveUpstream(settings.upstream)]
    if all(upstream.settings.models for upstream in upstreams) or len(upstreams) < 2:
        return OfferedModels(upstreams, {})
    reports = await read_reports(store, max_age_s=_LISTS_KEPT_S)
    return OfferedModels(upstreams, {name: merged(of_workers) for name, of_workers in reports.items()})
