"""Reads unfinished batches again and again until they have ended, and makes a snapshot of each for a display.

Any server will do; what only nightmill says (limit, forecast, failures of a running batch) is left out for
others. Of several batches, nightmill is asked for all in one request. The display belongs to `progress`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic, sleep, time
from typing import Any, Final

from openai import APIError, APIStatusError, OpenAI
from openai.types import Batch

from nightmill.client.error_family import AWAY
from nightmill.client.failures import FailureReader
from nightmill.client.insight import Forecast, InsightApi, Why
from nightmill.client.polling import POLL_GROWTH
from nightmill.client.progress import ShowAll, Snapshot
from nightmill.client.results import PATIENCE_S
from nightmill.client.steering import BatchSelection, Steering
from nightmill.core.batch import TERMINAL
from nightmill.core.words import failures_text, kinds_text
from nightmill.errors import UnavailableError

UNFINISHED: Final = ("validating", "in_progress", "finalizing", "cancelling")
MOST_AT_ONCE: Final = 100
_FIRST_PAUSE_S: Final = 0.05
_PAUSE_S: Final = 1.0
_PAUSE_FOR_EACH_S: Final = 0.1
_TIMEOUT_S: Final = 10.0
_FAILURES_EVERY_S: Final = 5.0


class SnapshotSource:
    """Makes snapshots of batches, with what the server says of them besides, as long as it is nightmill."""

    def __init__(self, openai: OpenAI, *, now: Callable[[], float] = monotonic) -> None:
        self._openai = openai
        self._insight: InsightApi | None = InsightApi(openai)
        self._now = now
        self._readers: dict[str, FailureReader] = {}
        self._failures: dict[str, tuple[int, float, str]] = {}

    def of(self, batch: Batch) -> Snapshot:
        return replace(snapshot(batch, *self._both(batch)), failures=self._failures_of(batch))

    def _both(self, batch: Batch) -> tuple[Why | None, Forecast | None]:
        if self._insight is None or batch.status in TERMINAL:
            return None, None
        try:
            return self._insight.both(batch.id)
        except AWAY:
            return None, None
        except APIError:
            self._insight = None
            return None, None

    def _failures_of(self, batch: Batch) -> str:
        """Read again when there are more failures, after a while."""
        failed = batch.request_counts.failed if batch.request_counts else 0
        known, next_at, text = self._failures.get(batch.id, (0, 0.0, ""))
        has_ended = batch.status in TERMINAL
        if (failed != known or has_ended) and (has_ended or self._now() >= next_at):
            if has_ended or self._insight is not None:
                reader = self._readers.setdefault(batch.id, FailureReader(self._openai))
                groups = reader.read(batch)
                # While it runs without the number of failures: the counts beside it are newer.
                text = f"failed: {kinds_text(groups)}" if groups else ""
                text = failures_text(groups, failed) if has_ended else text
            self._failures[batch.id] = failed, self._now() + _FAILURES_EVERY_S, text
        return text


def snapshot(batch: Batch, why: Why | None = None, forecast: Forecast | None = None) -> Snapshot:
    counts = batch.request_counts
    known = Snapshot(
        batch_id=batch.id,
        status=batch.status,
        total=counts.total if counts else 0,
        completed=counts.completed if counts else 0,
        failed=counts.failed if counts else 0,
        started_at=batch.created_at,
        ended_at=ended_at(batch),
        tokens=batch.usage.total_tokens if batch.usage else None,
        deadline=batch.expires_at,
        why=None if why is None else why.sentence,
        limit=None if why is None else _in_words(why.code),
    )
    if forecast is None:
        return known
    return replace(
        known,
        in_flight=forecast.in_flight,
        retrying=forecast.retrying,
        lines_per_s=forecast.lines_per_s,
        tokens_per_s=forecast.output_tokens_per_s,
        ends_at=forecast.ends_at,
        latest_at=forecast.latest_at,
    )


def ended_at(batch: Batch) -> int | None:
    """When the batch ended, in Unix seconds; None until then."""
    if batch.status not in TERMINAL:
        return None
    return batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at


def unfinished_ids(openai: OpenAI) -> list[str]:
    """The newest batches that have not ended, at most `MOST_AT_ONCE`, newest first."""
    own = _own_page(openai)
    if own is not None:
        return list(own)
    newest = openai.batches.list(limit=MOST_AT_ONCE).data
    return [batch.id for batch in newest if batch.status not in TERMINAL]


def watch(
    openai: OpenAI,
    batch_ids: Sequence[str],
    show: ShowAll,
    *,
    patience_s: float = PATIENCE_S,
    pause: Callable[[float], None] = sleep,
    now: Callable[[], float] = monotonic,
) -> list[Batch]:
    """Shows the batches about every second until all have ended, and returns them.

    Args:
        patience_s: how long the server may be away.

    Raises:
        UnavailableError: it was away for longer. The batches continue on it.
        openai.APIError: the server refused, or was unreachable from the start.
    """
    watched = _Watched(openai, batch_ids, now)
    watched.begin()
    show(watched.snapshots())
    pause_s = _FIRST_PAUSE_S
    longest_s = max(_PAUSE_S, _PAUSE_FOR_EACH_S * len(batch_ids))
    seen, seen_at = now(), time()
    while watched.open_ids:
        pause(pause_s)
        pause_s = min(pause_s * POLL_GROWTH, longest_s)
        try:
            watched.read()
        except AWAY as error:
            if now() - seen > patience_s:
                message = f"the server did not answer for {patience_s:g} s; the batches continue on it"
                raise UnavailableError(message) from error
            show([replace(it, away_since=seen_at) if not it.has_ended else it for it in watched.snapshots()])
            continue
        seen, seen_at = now(), time()
        show(watched.snapshots())
    return watched.batches()


class _Watched:
    """The batches that are watched, each as it was read last."""

    def __init__(self, openai: OpenAI, batch_ids: Sequence[str], now: Callable[[], float]) -> None:
        self._ids = tuple(dict.fromkeys(batch_ids))
        self._batches: dict[str, Batch] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._given = openai
        # The loop tries again, so that the display can say that the server is away.
        self._openai = openai.with_options(max_retries=0, timeout=_TIMEOUT_S)
        self._source = SnapshotSource(self._openai, now=now)
        self._is_own = len(self._ids) > 1
        self.open_ids = self._ids

    def snapshots(self) -> list[Snapshot]:
        return [self._snapshots[batch_id] for batch_id in self._ids]

    def batches(self) -> list[Batch]:
        return [self._batches[batch_id] for batch_id in self._ids]

    def begin(self) -> None:
        for batch_id in self._ids:
            self._note(self._given.batches.retrieve(batch_id))

    def read(self) -> None:
        own = _own_page(self._openai) if self._is_own else None
        self._is_own = own is not None
        for batch_id in self.open_ids:
            document = None if own is None else own.get(batch_id)
            if document is None:
                self._note(self._openai.batches.retrieve(batch_id))
            else:
                self._snapshots[batch_id] = _own_snapshot(document)

    def _note(self, batch: Batch) -> None:
        self._batches[batch.id] = batch
        self._snapshots[batch.id] = self._source.of(batch)
        if batch.status in TERMINAL:
            self.open_ids = tuple(it for it in self.open_ids if it != batch.id)


def _own_page(openai: OpenAI) -> dict[str, Mapping[str, Any]] | None:
    """The documents of the newest unfinished batches by their ids; None if the server is not nightmill."""
    selection = BatchSelection(status=UNFINISHED)
    try:
        page = Steering(openai).list(selection, limit=MOST_AT_ONCE)
    except AWAY:
        raise
    except APIStatusError:
        return None
    return {document["id"]: document for document in page["data"]}


def _own_snapshot(document: Mapping[str, Any]) -> Snapshot:
    counts, why = document["request_counts"], document.get("why")
    return Snapshot(
        batch_id=document["id"],
        status=document["status"],
        total=counts["total"],
        completed=counts["completed"],
        failed=counts["failed"],
        started_at=document["created_at"],
        deadline=document["deadline"],
        limit=_in_words(why["code"]) if why else None,
    )


def _in_words(code: str) -> str:
    return code.replace("_", " ")
