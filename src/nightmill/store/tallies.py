"""Tallies and pinned parts as columns, the same on a batch and on its segments."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, bindparam

from nightmill.core.batch import Tally, Usage
from nightmill.core.segment import PinnedPart
from nightmill.store.schema import TALLY_COLUMNS

TALLY_WIDTH = len(TALLY_COLUMNS)


def tally_of(columns: Sequence[Any]) -> Tally:
    """From the tally's columns in their order."""
    completed, failed, *usage = columns
    return Tally(completed, failed, Usage(*usage))


def tally_values(tally: Tally) -> dict[str, int]:
    usage = tally.usage
    counts = (
        tally.completed,
        tally.failed,
        usage.input_tokens,
        usage.cached_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.total_tokens,
    )
    return dict(zip(TALLY_COLUMNS, counts, strict=True))


def tally_parameters(tally: Tally) -> dict[str, int]:
    """For the statements that name their parameters `tally_<column>`."""
    return {f"tally_{name}": value for name, value in tally_values(tally).items()}


def set_tally() -> dict[str, Any]:
    return {name: bindparam(f"tally_{name}") for name in TALLY_COLUMNS}


def add_tally(table: Table) -> dict[str, Any]:
    return {name: table.c[name] + bindparam(f"tally_{name}") for name in TALLY_COLUMNS}


def minus(new: Tally, old: Tally) -> Tally:
    """The change of a batch's tally when the tally of one of its segments goes from `old` to `new`."""
    values, before = tally_values(new), tally_values(old)
    return tally_of([values[name] - before[name] for name in TALLY_COLUMNS])


def dump_parts(parts: Sequence[PinnedPart]) -> str:
    return json.dumps([[part.key, part.length_bytes] for part in parts], separators=(",", ":"))


def load_parts(text: str) -> tuple[PinnedPart, ...]:
    return tuple(PinnedPart(key, length_bytes) for key, length_bytes in json.loads(text))


def joined_parts(pinned: str, parts: Sequence[PinnedPart]) -> Sequence[PinnedPart]:
    """Pinned parts stay as they are pinned; the lease holder's own part comes behind them."""
    earlier = load_parts(pinned)
    keys = {part.key for part in earlier}
    return [*earlier, *(part for part in parts if part.key not in keys)]
