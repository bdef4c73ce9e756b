"""The newest answers of a batch under `/nightmill/v1/batches`: what a person watches while it runs.

Answers have no time of their own. Those of a running batch are read from the ends of the parts of a few
segments that workers hold at present, and only what was written since the last request; a batch that is
answered fast is not read whole. Of a batch that has ended, the last lines of its files are given.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Depends, Query, Request

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.excerpts import excerpt_of
from nightmill.api.some_answers import SeenAnswer, is_unchanged, last_lines, seen, segment_records
from nightmill.core.batch import Batch
from nightmill.core.result_filter import LineOutcome
from nightmill.core.written_line import codes_of, read_line
from nightmill.errors import ConflictError
from nightmill.parts import PartTail
from nightmill.parts.record import part_key
from nightmill.store.answered_segments import AnsweredSegment

MOST_LINES: Final = 50
_MOST_SEGMENTS: Final = 4
_MOST_TAILS: Final = 64
_KEPT_S: Final = 60.0
_END_BYTES: Final = 64 << 10

router = APIRouter(prefix="/nightmill/v1/batches", include_in_schema=False)


@dataclass(slots=True)
class _Tail:
    """What was read of one running batch, and how far."""

    read_at: float
    lines: deque[SeenAnswer] = field(default_factory=lambda: deque[SeenAnswer](maxlen=MOST_LINES))
    places: dict[str, PartTail] = field(default_factory=dict[str, PartTail])


class Tails:
    """The running batches whose newest answers are asked for in this process."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._kept: dict[str, _Tail] = {}

    async def newest(self, context: ApiContext, batch: Batch) -> Sequence[SeenAnswer]:
        """The newest answers that were read, the newest first."""
        now = self._monotonic()
        tail = self._kept.pop(batch.id, None)
        if tail is None or now - tail.read_at > _KEPT_S:
            tail = _Tail(now)
        tail.read_at = now
        self._kept[batch.id] = tail
        while len(self._kept) > _MOST_TAILS:
            del self._kept[next(iter(self._kept))]
        await _read_on(context, batch, tail)
        return list(tail.lines)[::-1]

    def forget(self, batch: Batch) -> None:
        """After its end."""
        self._kept.pop(batch.id, None)


async def tails_of(request: Request) -> Tails:
    return cast("Tails", request.app.state.tails)


@router.get("/{batch_id}/latest")
async def latest(
    batch_id: str,
    context: Context,
    project: CurrentProject,
    tails: Annotated[Tails, Depends(tails_of)],
    limit: Annotated[int, Query(ge=1, le=MOST_LINES)] = 20,
) -> JsonResponse:
    """Some of the newest answers, the newest first, each with the beginning of its text.

    Of a batch that has ended, the last lines of its output and error file, in the order of the input.
    """
    batch = await require_batch(context, project, batch_id)
    if batch.status.is_terminal:
        tails.forget(batch)
        answers = await _ends(context, batch, limit)
    else:
        answers = (await tails.newest(context, batch))[:limit]
    return JsonResponse(
        {
            "object": "list",
            "is_running": not batch.status.is_terminal,
            "data": [_on_wire(it) for it in answers],
        }
    )


async def _read_on(context: ApiContext, batch: Batch, tail: _Tail) -> None:
    segments = await context.store.answered_segments.newest(batch.id, most=4 * _MOST_SEGMENTS)
    held = {part_key(it.segment, it.token): it for it in segments if it.is_leased}
    tail.places = {key: place for key, place in tail.places.items() if key in held}
    for key in held:
        if len(tail.places) == _MOST_SEGMENTS:
            break
        tail.places.setdefault(key, PartTail(key))
    if not tail.places and not tail.lines:
        await _first_lines(context, segments, tail)
    for key, place in tail.places.items():
        records, after = await context.parts.tail(place)
        if records and await is_unchanged(context, held[key]):
            tail.lines.extend(seen(record) for record in records[-MOST_LINES:])
            tail.places[key] = after


async def _first_lines(context: ApiContext, segments: Sequence[AnsweredSegment], tail: _Tail) -> None:
    """While no worker holds a segment: of the one that was leased last."""
    for segment in segments[:1]:
        async for records in segment_records(context, segment):
            tail.lines.extend(seen(record) for record in records[-MOST_LINES:])


async def _ends(context: ApiContext, batch: Batch, limit: int) -> Sequence[SeenAnswer]:
    found: list[SeenAnswer] = []
    for outcome in LineOutcome:
        try:
            found += await last_lines(context, batch, outcome, most_bytes=_END_BYTES)
        except ConflictError:
            continue  # the file is deleted; the other may be there
    return sorted(found, key=lambda answer: answer.ordinal)[-limit:]


def _on_wire(answer: SeenAnswer) -> dict[str, Any]:
    excerpt = excerpt_of(answer.text)
    is_failed = answer.outcome is LineOutcome.FAILED
    return {
        "ordinal": answer.ordinal,
        "custom_id": excerpt.custom_id,
        "outcome": answer.outcome,
        "status": excerpt.status,
        "code": codes_of(read_line(answer.text))[0] if is_failed else None,
        "excerpt": excerpt.text,
    }
