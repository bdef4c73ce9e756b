"""What ended batches used, summed by project, model and day. No I/O."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from nightmill.core.batch import Tally

DAY_S: Final = 86_400

Group: TypeAlias = Literal["project", "model", "day"]

GROUPS: Final[tuple[Group, ...]] = get_args(Group)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What ended batches used. `project_id`, `model` and `day` (days since 1970) are None if not grouped by.

    An empty `model` stands for batches whose lines name several. `requests` holds the unanswered too.
    """

    project_id: str | None
    model: str | None
    day: int | None
    batches: int
    requests: int
    tally: Tally
