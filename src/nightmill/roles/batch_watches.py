"""Watches of the observer: samples of the progress of running batches, and what limits them.

Both look at batches with leased segments, at most `_MOST_RUNNING` of them. What limits the others is looked
up in turns, some at each look. The API computes both for any batch at the time of a request, so nothing here
decides what a client sees but the history, the log, and how far back the samples reach.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from nightmill.core.batch import Batch, Status
from nightmill.core.why import RecordedWhy, Why, WhyCode, to_record
from nightmill.roles.batch_scene import Scene, read_scene
from nightmill.settings import Settings
from nightmill.store import Store
from nightmill.store.batch_watch import DENSE_S, SAMPLED_EVERY_S
from nightmill.telemetry import BatchLimited, Emit

_LOOK_S: Final = 1.9
_START_GRACE_S: Final = 20.0
"""After its start, while the workers that were started beside it may not have reported yet."""
_MOST_RUNNING: Final = 200
_MOST_OTHERS: Final = 32
_COARSE_SAMPLES: Final = 100
_THINNED_EVERY_S: Final = 60
_KEPT_S: Final = 7 * 86_400.0
_FORGOTTEN_AT_ONCE: Final = 50
_NOT_RECORDED: Final = frozenset({WhyCode.PAUSED, WhyCode.FINALIZING, WhyCode.CANCELLING})
"""The history has an entry of its own for these."""


class SampleWatch:
    """Stores how far each running batch is, every `SAMPLED_EVERY_S` seconds, and thins older samples out.

    A batch has at most about 160 samples: those of the last `DENSE_S` seconds, and before them at most
    `_COARSE_SAMPLES` on a grid of 5 s, 10 s, 20 s and so on, as its age grows. They are deleted a week after
    the end of the batch.
    """

    def __init__(self, store: Store, settings: Settings, *, wall: Callable[[], float]) -> None:
        self._store = store
        self._settings = settings
        self._wall = wall
        self._sampled_at = 0
        self._thinned_at = 0.0
        self._forgotten_after = ""

    async def look(self) -> None:
        now = self._wall()
        at = int(now) // SAMPLED_EVERY_S * SAMPLED_EVERY_S
        if at <= self._sampled_at:
            return
        self._sampled_at = at
        running = await self._store.batch_watch.running(most=_MOST_RUNNING)
        running = [batch for batch in running if batch.status is Status.IN_PROGRESS]
        if running:
            scene = await read_scene(self._store, self._settings, now=now)
            samples = [(batch, scene.in_flight(batch.id)) for batch in running]
            await self._store.batch_watch.add_samples(samples, at=at)
        if now >= self._thinned_at + _THINNED_EVERY_S:
            self._thinned_at = now
            await self._thin(running, now)

    async def _thin(self, running: Sequence[Batch], now: float) -> None:
        grids_s = {batch.id: grid_s(now - (batch.in_progress_at or now)) for batch in running}
        await self._store.batch_watch.thin_samples(grids_s, before=now - DENSE_S)
        self._forgotten_after = await self._store.batch_watch.forget_ended(
            after=self._forgotten_after, most=_FORGOTTEN_AT_ONCE, kept_s=_KEPT_S
        )


def grid_s(age_s: float) -> int:
    """The distance of the older samples of a batch that has run for `age_s` seconds."""
    doublings = math.ceil(math.log2(max(1.0, age_s / SAMPLED_EVERY_S / _COARSE_SAMPLES)))
    return SAMPLED_EVERY_S * 2**doublings


class WhyWatch:
    """Records in the history and in the log when something else limits a batch."""

    def __init__(self, store: Store, settings: Settings, *, emit: Emit, wall: Callable[[], float]) -> None:
        self._store = store
        self._settings = settings
        self._emit = emit
        self._wall = wall
        self._next = 0
        self._looked_at = -math.inf
        self._started_at = wall()

    async def look(self) -> None:
        if self._wall() < self._looked_at + _LOOK_S:
            return
        self._looked_at = self._wall()
        running = await self._store.batch_watch.running(most=_MOST_RUNNING)
        others, self._next = await self._store.batch_watch.next_in_progress(
            after=self._next, most=_MOST_OTHERS
        )
        batches = {batch.id: batch for batch in (*running, *others) if batch.status is Status.IN_PROGRESS}
        if not batches:
            return
        scene = await read_scene(self._store, self._settings, now=self._wall())
        recorded = await self._store.batch_watch.reports(list(batches))
        for batch in batches.values():
            await self._record(scene, batch, recorded.get(batch.id))

    async def _record(self, scene: Scene, batch: Batch, stored: str | None) -> None:
        limit = scene.why(batch)
        if limit is None or limit.code in _NOT_RECORDED:
            return
        if limit.code is WhyCode.NO_WORKER and scene.now < self._started_at + _START_GRACE_S:
            return
        new = to_record(limit, recorded_why(stored), now=scene.now)
        if new is None:
            return
        document = msgspec.json.encode(new).decode()
        is_first = await self._store.batch_watch.put_report(
            batch.id, document, before=stored, detail=_detail(limit)
        )
        if is_first:
            self._emit(BatchLimited(batch.id, limit.code.value, limit.sentence))


def recorded_why(document: str | None) -> RecordedWhy | None:
    """What was recorded last; None if nothing was, or by another version."""
    if document is None:
        return None
    try:
        return msgspec.json.decode(document, type=RecordedWhy)
    except msgspec.MsgspecError:
        return None


def _detail(limit: Why) -> dict[str, str | None]:
    return {"code": limit.code.value, "sentence": limit.sentence, "upstream": limit.upstream}
