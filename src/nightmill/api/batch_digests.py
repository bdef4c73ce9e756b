"""Failures by code, and how tokens and durations are spread, under `/nightmill/v1/batches`.

Both are made of some of the answers (`some_answers`), so they cost the same for any batch, and say of how
many lines they are. They are kept for a moment, so that many clients cost no more than one.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import aclosing
from typing import Annotated, Any, Final, cast

import msgspec
from fastapi import APIRouter, Depends, Request

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import ApiContext, Context
from nightmill.api.distributions import distribution
from nightmill.api.envelope import JsonResponse
from nightmill.api.excerpts import excerpt_of
from nightmill.api.origin_lines import invalid_ordinals
from nightmill.api.some_answers import SeenAnswer, SomeAnswers, some_answers
from nightmill.core.batch import Batch, Status
from nightmill.core.result_filter import LineOutcome
from nightmill.core.written_line import codes_of, read_line, state_of_error
from nightmill.roles.attempt_log import attempts_prefix

SAMPLES: Final = 3
_MOST_GROUPS: Final = 50
_MOST_INVALID: Final = 50_000
_FRESH_S: Final = 5.0
_KEPT_S: Final = 60.0
_MOST_KEPT: Final = 128
_AT_ONCE: Final = 2
_MOST_ATTEMPT_BLOBS: Final = 32
_MOST_ATTEMPT_BYTES: Final = 4 << 20

_Document = dict[str, Any]

router = APIRouter(prefix="/nightmill/v1/batches", include_in_schema=False)


class Digests:
    """The documents of this process that were made last.

    A document is used again while the batch has not changed since, and for a few seconds in any case.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._kept: dict[tuple[str, str], tuple[object, float, _Document]] = {}

    async def get(self, kind: str, batch: Batch, make: Callable[[], Awaitable[_Document]]) -> _Document:
        """The document of a kind, made if it is missing or old."""
        key, state = (kind, batch.id), (batch.status, batch.tally)
        if (kept := self._usable(key, state)) is not None:
            return kept
        async with self._turns:
            if (kept := self._usable(key, state)) is not None:
                return kept
            document = await make()
        self._kept.pop(key, None)
        self._kept[key] = state, self._monotonic(), document
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return document

    def _usable(self, key: tuple[str, str], state: object) -> _Document | None:
        made_of, made_at, document = self._kept.get(key, (None, 0.0, {}))
        age_s = self._monotonic() - made_at
        is_usable = made_of == state if age_s >= _FRESH_S else made_of is not None
        return document if is_usable and age_s < _KEPT_S else None


async def digests_of(request: Request) -> Digests:
    return cast("Digests", request.app.state.digests)


_Digests = Annotated[Digests, Depends(digests_of)]


@router.get("/{batch_id}/failures")
async def failures(
    batch_id: str, context: Context, project: CurrentProject, digests: _Digests
) -> JsonResponse:
    """The failed lines that were read, grouped by code, the most frequent first, with three samples each.

    Of an ended batch, lines that were not sent before its end are among them, with a code of their own.
    `lines` says how many there are, `read` how many were read, and `is_whole` whether they were all.
    `invalid` of a group says how many of its lines were put aside before the batch began: a retry leaves
    them out.
    """
    batch = await require_batch(context, project, batch_id)
    return JsonResponse(await digests.get("failures", batch, lambda: _failures(context, batch)))


@router.get("/{batch_id}/distributions")
async def distributions(
    batch_id: str, context: Context, project: CurrentProject, digests: _Digests
) -> JsonResponse:
    """How the tokens of answers are spread, and how long attempts took.

    `attempts` is null for a batch that was created without `record_attempts`.
    """
    batch = await require_batch(context, project, batch_id)
    return JsonResponse(await digests.get("distributions", batch, lambda: _distributions(context, batch)))


async def _failures(context: ApiContext, batch: Batch) -> _Document:
    found = await some_answers(context, batch, LineOutcome.FAILED)
    left_out = await _invalid(context, batch) if batch.status.is_terminal else frozenset[int]()
    groups = await asyncio.to_thread(_groups, found.answers, left_out)
    return {
        "object": "nightmill.batch.failures",
        "id": batch.id,
        "failed": batch.tally.failed - batch.invalid,
        "lines": _lines_without_result(batch),
        "invalid": batch.invalid,
        "read": sum(group["count"] for group in groups),
        "is_whole": found.is_whole,
        "data": groups[:_MOST_GROUPS],
    }


async def _invalid(context: ApiContext, batch: Batch) -> Set[int]:
    """The ordinals of invalid lines, the first of them if there are very many.

    Only an ended batch has them among its failed lines.
    """
    found: set[int] = set()
    async with aclosing(invalid_ordinals(context, batch)) as ordinals:
        async for ordinal in ordinals:
            found.add(ordinal)
            if len(found) == _MOST_INVALID:
                break
    return found


def _lines_without_result(batch: Batch) -> int:
    """Failed lines, and at the end also those that were not sent."""
    if batch.status.is_terminal and batch.status is not Status.FAILED:
        return batch.total - batch.tally.completed
    return batch.tally.failed - batch.invalid


def _groups(answers: Sequence[SeenAnswer], left_out: Set[int]) -> list[_Document]:
    counts: Counter[str] = Counter()
    invalid: Counter[str] = Counter()
    samples: dict[str, list[_Document]] = {}
    for answer in answers:
        code = codes_of(read_line(answer.text))[0]
        counts[code] += 1
        invalid[code] += answer.ordinal in left_out
        shown = samples.setdefault(code, [])
        if len(shown) < SAMPLES:
            excerpt = excerpt_of(answer.text)
            shown.append(
                {
                    "ordinal": answer.ordinal,
                    "custom_id": excerpt.custom_id,
                    "status": excerpt.status,
                    "message": excerpt.text,
                }
            )
    return [
        {
            "code": code,
            "count": count,
            "invalid": invalid[code],
            "outcome": state_of_error(code),
            "samples": samples[code],
        }
        for code, count in counts.most_common()
    ]


async def _distributions(context: ApiContext, batch: Batch) -> _Document:
    found = await some_answers(context, batch, LineOutcome.COMPLETED)
    tokens = await asyncio.to_thread(_tokens, found)
    return {
        "object": "nightmill.batch.distributions",
        "id": batch.id,
        "answers": {
            "read": len(found.answers),
            "completed": batch.tally.completed,
            "is_whole": found.is_whole,
            **tokens,
        },
        "attempts": await _attempts(context, batch) if batch.options.record_attempts else None,
    }


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Body(msgspec.Struct, gc=False):
    usage: _Usage | None = None


class _Response(msgspec.Struct, gc=False):
    body: _Body


class _Line(msgspec.Struct, gc=False):
    response: _Response


_line: Final = msgspec.json.Decoder(_Line)


def _tokens(found: SomeAnswers) -> _Document:
    taken: list[float] = []
    given: list[float] = []
    for answer in found.answers:
        try:
            usage = _line.decode(answer.text).response.body.usage
        except (msgspec.DecodeError, RecursionError):
            continue
        if usage is None:
            continue
        inputs = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
        outputs = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
        taken += [] if inputs is None else [inputs]
        given += [] if outputs is None else [outputs]
    return {"input_tokens": distribution(taken), "output_tokens": distribution(given)}


class _Attempt(msgspec.Struct, gc=False):
    upstream: str
    duration_s: float


_attempt: Final = msgspec.json.Decoder(_Attempt)


async def _attempts(context: ApiContext, batch: Batch) -> _Document:
    """Of the segments that were leased last."""
    keys = sorted([key async for key in context.blobs.keys_under(attempts_prefix(batch.id))])
    chosen = keys[-_MOST_ATTEMPT_BLOBS:]
    texts: list[bytes] = []
    left_bytes = _MOST_ATTEMPT_BYTES
    for key in reversed(chosen):
        size_bytes = await context.blobs.size_bytes(key)
        if size_bytes is None or size_bytes > left_bytes:
            continue  # deleted meanwhile, or beyond the bound
        texts.append(await context.blobs.read(key, 0, size_bytes))
        left_bytes -= size_bytes
    durations = await asyncio.to_thread(_durations, texts)
    has_more = len(texts) < len(keys) or batch.status is Status.IN_PROGRESS
    return {"read": len(durations), "is_whole": not has_more, "duration_s": distribution(durations)}


def _durations(texts: Sequence[bytes]) -> list[float]:
    return [_attempt.decode(line).duration_s for text in texts for line in text.splitlines()]
