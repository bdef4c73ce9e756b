"""The usage report: what ended batches used, summed by project, model and day. No I/O."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from nightmill.core.batch import Tally

DAY_S: Final = 86_400

UsageGroup: TypeAlias = Literal["project", "model", "day"]

USAGE_GROUPS: Final[tuple[UsageGroup, ...]] = get_args(UsageGroup)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One row of the usage report. `project_id`, `model` and `day` are None where the rows are not grouped by
    them.

    Args:
        model: empty for batches whose lines name several models.
        day: days since 1970.
        batches: ended batches.
        requests: lines of those batches, also lines without an answer.
        tally: of the lines with an answer.
    """

    project_id: str | None
    model: str | None
    day: int | None
    batches: int
    requests: int
    tally: Tally
