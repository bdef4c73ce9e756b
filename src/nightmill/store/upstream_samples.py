"""Samples of upstreams over time. The observer writes them; see `core.upstream_sample`.

Several observers may sample the same upstream. A sample belongs to a time on a grid, so that each is stored
once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, bindparam, cast, delete, func, select

from nightmill.core.upstream_sample import KEPT_S, MOST_SAMPLES, THINNED, UpstreamSample
from nightmill.store.rows import columns_of, insert_if_absent
from nightmill.store.upstream_schema import upstream_sample
from nightmill.store.verbs import Verbs, read, write

_COLUMNS = columns_of(UpstreamSample, upstream_sample)
_NEW: Final[dict[str, Any]] = {column.name: bindparam(f"new_{column.name}") for column in _COLUMNS}
_NEW["upstream"] = bindparam("new_upstream")
_ADD = insert_if_absent(upstream_sample, _NEW)
_OF = (
    select(*_COLUMNS)
    .where(upstream_sample.c.upstream == bindparam("of_upstream"), upstream_sample.c.at >= bindparam("since"))
    .order_by(upstream_sample.c.at.desc())
    .limit(2 * MOST_SAMPLES)
)
_GROWING: Final = ("answered", "refused", "failed", "output_tokens")
_RECENT = (
    select(
        upstream_sample.c.upstream,
        (func.max(upstream_sample.c.at) - func.min(upstream_sample.c.at)).label("over_s"),
        *(
            (func.max(upstream_sample.c[name]) - func.min(upstream_sample.c[name])).label(name)
            for name in _GROWING
        ),
    )
    .where(upstream_sample.c.at >= bindparam("since"))
    .group_by(upstream_sample.c.upstream)
)
_THIN = delete(upstream_sample).where(
    upstream_sample.c.at < bindparam("before"),
    cast(upstream_sample.c.at, BigInteger) % bindparam("grid_s", type_=BigInteger) != 0,
)
_FORGET = delete(upstream_sample).where(upstream_sample.c.at < bindparam("before"))


@dataclass(frozen=True, slots=True)
class Recent:
    """What was counted at an upstream lately, between the first and the last sample of a time.

    Args:
        over_s: seconds between the two; 0 if there is only one.
    """

    over_s: float
    answered: int
    refused: int
    failed: int
    output_tokens: int


class UpstreamSamples(Verbs):
    """Limit and goodput of each upstream over time."""

    @write
    @staticmethod
    def add(connection: Connection, samples: Mapping[str, UpstreamSample]) -> None:
        """Stores a sample of each upstream, unless there is one of that time.

        Args:
            samples: by the name of the upstream.
        """
        rows: list[dict[str, Any]] = [
            {"new_upstream": upstream} | {f"new_{name}": value for name, value in asdict(sample).items()}
            for upstream, sample in sorted(samples.items())
        ]
        if rows:
            connection.execute(_ADD[connection.dialect.name], rows)

    @read
    @staticmethod
    def of(connection: Connection, upstream: str, *, since: float) -> Sequence[UpstreamSample]:
        """The samples of an upstream since a time, in the order of time."""
        rows = connection.execute(_OF, {"of_upstream": upstream, "since": since})
        return [UpstreamSample(**row) for row in rows.mappings()][::-1]

    @read
    @staticmethod
    def recent(connection: Connection, *, since: float) -> Mapping[str, Recent]:
        """What was counted since a time, by the name of the upstream; without those that have no sample."""
        rows = connection.execute(_RECENT, {"since": since})
        return {
            row["upstream"]: Recent(row["over_s"], *(int(row[name]) for name in _GROWING))
            for row in rows.mappings()
        }

    @write
    @staticmethod
    def thin(connection: Connection, *, now: float) -> None:
        """Deletes the samples that are too old, or too old for the grid they are on."""
        connection.execute(_FORGET, {"before": now - KEPT_S})
        for age_s, grid_s in THINNED:
            connection.execute(_THIN, {"before": now - age_s, "grid_s": grid_s})
