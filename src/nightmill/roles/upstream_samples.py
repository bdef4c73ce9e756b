"""The watch of the observer that samples each upstream's limit and counts.

It reads what workers have stored already, so that no worker does anything for it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from nightmill.core.upstream_report import merged
from nightmill.core.upstream_sample import SAMPLED_EVERY_S, UpstreamSample, sampled
from nightmill.roles.offered_models import read_reports
from nightmill.store import Store

_UNCHANGED_S: Final = 60
"""Nothing is written of an upstream at rest between times that are divisible by so many seconds."""
_THINNED_EVERY_S: Final = 300.0


class UpstreamSampleWatch:
    """Stores a sample of each upstream that a worker reports, every `SAMPLED_EVERY_S` seconds."""

    def __init__(self, store: Store, *, wall: Callable[[], float]) -> None:
        self._store = store
        self._wall = wall
        self._sampled_at = 0
        self._thinned_at = 0.0
        self._last: dict[str, UpstreamSample] = {}

    async def look(self) -> None:
        now = self._wall()
        at = int(now) // SAMPLED_EVERY_S * SAMPLED_EVERY_S
        if at <= self._sampled_at:
            return
        self._sampled_at = at
        await self._sample(at)
        if now >= self._thinned_at + _THINNED_EVERY_S:
            self._thinned_at = now
            await self._store.upstream_samples.thin(now=now)

    async def _sample(self, at: int) -> None:
        reports = await read_reports(self._store)
        if not reports:
            self._last = {}
            return
        counts = await self._store.counts.total()
        found = {
            name: sampled(merged(of_workers), counts.of_upstream(name), at=at)
            for name, of_workers in reports.items()
        }
        new = {
            name: sample
            for name, sample in found.items()
            if at % _UNCHANGED_S == 0 or not _is_same(sample, self._last.get(name))
        }
        self._last = found
        await self._store.upstream_samples.add(new)


def _is_same(new: UpstreamSample, old: UpstreamSample | None) -> bool:
    return old is not None and replace(new, at=old.at) == old
