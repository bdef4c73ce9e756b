"""What surrounds unfinished batches at one moment: upstreams, reports of workers, and other batches.

One `Scene` is read for many batches. What limits a batch is decided by `core.why`, and its end by
`core.forecast`; both see the same scene.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nightmill.core.batch import Batch, Status
from nightmill.core.forecast import Forecast, Outlook, Sample, forecast
from nightmill.core.prices import price_of
from nightmill.core.quiet_hours import QuietHours
from nightmill.core.routing import Offer, Routes
from nightmill.core.schedule import OpenBatch
from nightmill.core.upstream_report import UpstreamReport, merged
from nightmill.core.upstream_setting import UpstreamState
from nightmill.core.why import ServingUpstream, Situation, Why, why
from nightmill.ids import BatchId
from nightmill.roles.offered_models import read_reports
from nightmill.settings import Settings
from nightmill.settings.effective import EffectiveUpstream, effective_of
from nightmill.store import Store
from nightmill.store.batch_watch import Around
from nightmill.telemetry import shown_model
from nightmill.upstream.registry import offer_of


@dataclass(frozen=True, slots=True)
class _Known:
    """One upstream; without settings if only the settings of worker hosts have it."""

    offer: Offer
    report: UpstreamReport | None
    effective: EffectiveUpstream | None = None


class Scene:
    """The surroundings at `now` (Unix seconds)."""

    def __init__(
        self,
        known: Sequence[_Known],
        in_flight: Mapping[BatchId, OpenBatch],
        *,
        settings: Settings,
        now: float,
    ) -> None:
        self._known = known
        self._routes = Routes(one.offer for one in known)
        self._in_flight = in_flight
        self._prices = settings.token_prices
        self.now = now

    @property
    def _reports(self) -> list[UpstreamReport]:
        return [one.report for one in self._known if one.report is not None]

    @property
    def upstreams(self) -> Sequence[str]:
        """The names of all upstreams."""
        return [one.offer.name for one in self._known]

    def serving(self, model: str | None, endpoint: str) -> Sequence[str]:
        """The upstreams that may answer lines with this model; None for lines of any models."""
        return [one.offer.name for one in self._of(model, endpoint)]

    def in_flight(self, batch_id: BatchId) -> int:
        """Attempts of a batch in flight at all upstreams."""
        return sum(
            lines.in_flight
            for report in self._reports
            for lines in report.batches
            if lines.batch_id == batch_id
        )

    def retrying(self, batch_id: BatchId) -> int:
        """Lines of a batch that failed and wait to be sent again, at all upstreams."""
        return sum(
            lines.waiting
            for report in self._reports
            for lines in report.batches
            if lines.batch_id == batch_id
        )

    def why(self, batch: Batch, around: Around | None = None) -> Why | None:
        """What limits a batch; None for one that has ended.

        Args:
            around: only needed while the batch is validated or paused.
        """
        upstreams = self._serving_all(batch)
        return why(
            Situation(
                batch,
                self.now,
                is_leased=around is not None and around.is_leased,
                paused_by=None if around is None else around.paused_by,
                upstreams=upstreams,
                has_upstreams=bool(self._known),
                has_workers=bool(self._reports),
                stalled=next((one.stalled for one in self._reports if one.stalled is not None), None),
                others=self._others_in_flight(upstreams, batch),
            )
        )

    def forecast(self, batch: Batch, around: Around) -> Forecast | None:
        """The forecast of a batch; None for one that has ended."""
        limit = self.why(batch, around)
        if limit is None:
            return None
        usage = batch.tally.usage
        present = Sample(
            self.now,
            batch.tally.answered,
            usage.input_tokens,
            usage.output_tokens,
            self.in_flight(batch.id),
        )
        samples = [sample for sample in around.samples if sample.at < self.now]
        started_at = batch.in_progress_at
        if started_at is not None and started_at < self.now and (not samples or samples[0].at > started_at):
            samples.insert(0, Sample(started_at, 0))
        pauses = around.pauses
        if batch.paused_at is not None and all(end is not None for _, end in pauses):
            pauses = [*pauses, (float(batch.paused_at), None)]
        return forecast(
            Outlook(
                samples=(*samples, present),
                total=batch.total if batch.status is Status.IN_PROGRESS else 0,
                deadline=batch.expires_at,
                pauses=pauses,
                is_shared=any(self._others_in_flight(self._serving_all(batch), batch)),
                goes_on_at=limit.goes_on_at,
                price=price_of(self._prices, batch.model),
                usage=usage,
            )
        )

    def _others_in_flight(self, upstreams: Sequence[ServingUpstream], batch: Batch) -> list[OpenBatch]:
        ids = {BatchId(other) for upstream in upstreams for other in upstream.batches_in_flight} - {batch.id}
        return [self._in_flight[other] for other in sorted(ids) if other in self._in_flight]

    def _serving_all(self, batch: Batch) -> list[ServingUpstream]:
        return [self._serving(one, batch) for one in self._of(batch.model, batch.endpoint)]

    def _of(self, model: str | None, endpoint: str) -> list[_Known]:
        if model is None:  # the lines may name any models
            return [one for one in self._known if not one.offer.endpoints or endpoint in one.offer.endpoints]
        return [self._known[index] for index in self._routes.serving(model, endpoint)]

    def _serving(self, one: _Known, batch: Batch) -> ServingUpstream:
        model = batch.model
        names = () if model is None else (model, one.offer.sent_model(model))
        models = frozenset(shown_model(name) or "" for name in names)
        if one.effective is None:
            return ServingUpstream(one.offer.name, models, one.report)
        settings = one.effective.settings
        quiet_at: float | None = None
        if settings.quiet_hours is not None:
            hours = QuietHours.parse(settings.quiet_hours)
            quiet_at = None if hours.contains(self.now) else hours.next_change(self.now)
        return ServingUpstream(
            one.offer.name,
            models,
            one.report,
            one.effective.state,
            settings.share,
            quiet_at,
        )


async def read_scene(store: Store, settings: Settings, *, now: float) -> Scene:
    """Reads what surrounds all batches; a bounded number of queries, however many there are."""
    effective = effective_of(settings, await store.upstreams.settings())
    reports = {name: merged(found) for name, found in (await read_reports(store)).items()}
    # Of a removed upstream there may be reports of the last seconds.
    names = dict.fromkeys((*(one.name for one in effective), *reports))
    by_name = {one.name: one for one in effective}
    is_only = len(names) == 1
    known = [_known(name, by_name.get(name), reports.get(name), is_only=is_only) for name in names]
    ids = {lines.batch_id for report in reports.values() for lines in report.batches if lines.in_flight}
    in_flight = {batch.id: batch for batch in await store.batch_watch.some(sorted(ids))}
    return Scene(known, in_flight, settings=settings, now=now)


def _known(
    name: str, effective: EffectiveUpstream | None, report: UpstreamReport | None, *, is_only: bool
) -> _Known:
    listed = None if report is None or report.models is None else frozenset(report.models)
    if effective is None:
        return _Known(Offer(name=name, models=listed, accepts_any=is_only), report)
    offer = offer_of(
        effective.settings,
        is_only=is_only,
        listed=listed,
        is_open=effective.state is not UpstreamState.DRAINING,
    )
    return _Known(offer, report, effective)
