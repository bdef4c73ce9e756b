"""Reports the lines that a worker holds, while a client asks for lines of their batch.

A report has no content of a line: only its ordinal, where it is, since when, and when it is sent again.
"""

from collections import defaultdict
from collections.abc import Iterable, Set
from typing import Any

import msgspec

from nightmill.core.clocks import Clocks
from nightmill.core.health import Held, LineRecord
from nightmill.ids import BatchId
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.upstream_set import UpstreamSet
from nightmill.store import LineReport, Store


class LineReporter:
    """Writes reports about leased segments.

    Args:
        upstreams: where the lines are in flight, or wait to be sent again.
    """

    def __init__(self, store: Store, upstreams: UpstreamSet, *, clocks: Clocks) -> None:
        self._store = store
        self._upstreams = upstreams
        self._clocks = clocks

    async def report(self, wanted: Set[BatchId], segments: Iterable[LeasedSegment]) -> None:
        """Reports the segments of the wanted batches."""
        held = [segment for segment in segments if segment.batch_id in wanted and not segment.is_lost]
        if not held:
            return
        in_flight: dict[tuple[str, int], list[list[Any]]] = defaultdict(list)
        retries: dict[tuple[str, int], list[list[Any]]] = defaultdict(list)
        offset_s = self._clocks.wall() - self._clocks.monotonic()
        for upstream in self._upstreams:
            name = upstream.runtime.name
            for line in upstream.lines_in_flight:
                if line.segment.batch_id in wanted:
                    in_flight[line.segment.key].append([line.ordinal, name, line.started_at + offset_s])
            for lines in upstream.models.values():
                for until, line in lines.waiting_lines:
                    if line.segment.batch_id in wanted:
                        reason = _reason(line.record, lines.health.held)
                        retries[line.segment.key].append([line.ordinal, name, until + offset_s, reason])
        reports = [
            LineReport(
                segment.batch_id,
                segment.lease.segment.number,
                segment.lease.token,
                msgspec.json.encode(
                    {"in_flight": in_flight[segment.key], "retries": retries[segment.key]}
                ).decode(),
            )
            for segment in held
        ]
        await self._store.line_reports.put(reports)


def _reason(record: LineRecord | None, held: Held | None) -> str:
    """Why a line is sent again."""
    failures = 0 if record is None else record.failures
    said = "1 attempt has failed" if failures == 1 else f"{failures} attempts have failed"
    if record is not None and record.is_late:
        said += ", the latest without an answer in time"
    return said if held is None else f"{said}; the model is held: {held.reason}"
