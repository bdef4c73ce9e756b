"""Usage by project, model and day: what ended batches used, counted when each is published.

A batch is counted once, in the transaction that ends it, under the day it ended (UTC, by the store's clock),
which `usage_day` of the batch records. A batch that failed validation sent nothing and is not counted.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Insert, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from nightmill.core.batch import Batch
from nightmill.core.usage import DAY_S, USAGE_GROUPS, UsageGroup, UsageRow
from nightmill.ids import ProjectId
from nightmill.store.clock import stamp
from nightmill.store.schema import TALLY_COLUMNS, USAGE_COLUMNS, usage
from nightmill.store.tallies import tally_of, tally_values
from nightmill.store.verbs import Verbs, read

TODAY: Final[ColumnElement[int]] = stamp() // DAY_S

_KEY = ("project_id", "model", "day")
_GROUP_COLUMNS = {"project": usage.c.project_id, "model": usage.c.model, "day": usage.c.day}
_VALUES: dict[str, Any] = {
    "project_id": bindparam("of_project_id"),
    "model": bindparam("of_model"),
    "day": TODAY,
    "batches": 1,
    **{name: bindparam(f"more_{name}") for name in ("requests", *TALLY_COLUMNS)},
}


def _adding(make: Any) -> Insert:
    made = make(usage).values(_VALUES)
    return made.on_conflict_do_update(
        index_elements=list(_KEY), set_={name: usage.c[name] + made.excluded[name] for name in USAGE_COLUMNS}
    )


_COUNT: dict[str, Insert] = {"sqlite": _adding(sqlite.insert), "postgresql": _adding(postgresql.insert)}


def count(connection: Connection, after: Batch) -> None:
    given = {
        "of_project_id": after.project_id,
        "of_model": after.model or "",
        "more_requests": after.total,
        **{f"more_{name}": value for name, value in tally_values(after.tally).items()},
    }
    connection.execute(_COUNT[connection.dialect.name], given)


class UsageTotals(Verbs):
    """Sums of what ended batches used."""

    @read
    @staticmethod
    def totals(
        connection: Connection,
        groups: Sequence[UsageGroup],
        *,
        project_id: ProjectId | None = None,
        model: str | None = None,
        first_day: int | None = None,
        last_day: int | None = None,
    ) -> Sequence[UsageRow]:
        """Sums over ended batches, one row a group. Days count from 1970-01-01; both ends are included."""
        chosen = [_GROUP_COLUMNS[group] for group in USAGE_GROUPS if group in groups]
        query = select(*chosen, *(func.sum(usage.c[name]) for name in USAGE_COLUMNS))
        for given, condition in (
            (project_id, usage.c.project_id == project_id),
            (model, usage.c.model == model),
            (first_day, usage.c.day >= (first_day or 0)),
            (last_day, usage.c.day <= (last_day or 0)),
        ):
            if given is not None:
                query = query.where(condition)
        # Without a group a sum over nothing is a row of NULLs.
        query = query.group_by(*chosen).order_by(*chosen).having(func.count() > 0)
        return [
            _as_row(row, [group for group in USAGE_GROUPS if group in groups])
            for row in connection.execute(query)
        ]


def _as_row(row: Sequence[Any], groups: Sequence[UsageGroup]) -> UsageRow:
    key = dict(zip(groups, row, strict=False))
    batches, requests, *tally = (int(value) for value in row[len(groups) :])
    return UsageRow(key.get("project"), key.get("model"), key.get("day"), batches, requests, tally_of(tally))
