"""How many batches there are of each status, model, endpoint and project: the counts beside a filter. No I/O.

Each of these four is counted as if the filter had no condition on it, so that its other values can still be
chosen: with the filter `status=failed` the statuses are those of all batches that match the rest.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from nightmill.core.batch import Status
from nightmill.core.steering import BatchFilter
from nightmill.ids import ProjectId

T = TypeVar("T", bound=str)


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """Batches that are alike.

    Args:
        model: "" without one.
        count: how many there are.
    """

    project_id: ProjectId
    status: Status
    is_paused: bool
    endpoint: str
    model: str
    count: int

    def matches(self, wanted: BatchFilter) -> bool:
        """Whether the batches match the fields of a filter that a group knows; others are not compared."""
        return (
            (not wanted.statuses or self.status in wanted.statuses)
            and wanted.is_paused in (None, self.is_paused)
            and wanted.endpoint in (None, self.endpoint)
            and wanted.model in (None, self.model)
            and (wanted.served is None or self.model in wanted.served.get(self.endpoint, frozenset()))
        )


@dataclass(frozen=True, slots=True)
class Facets:
    """Counts by value, the most frequent first.

    Args:
        total: batches that match the whole filter.
        paused: batches that are paused, under the filter without its condition on pauses.
        groups: what matches the filter without its condition on upstreams, to count those.
    """

    total: int
    paused: int
    statuses: Mapping[Status, int]
    models: Mapping[str, int]
    endpoints: Mapping[str, int]
    projects: Mapping[ProjectId, int]
    groups: Sequence[BatchGroup]


def is_of_groups(wanted: BatchFilter) -> bool:
    """Whether groups know every field that the filter gives."""
    bare = replace(wanted, statuses=frozenset(), is_paused=None, endpoint=None, model=None, served=None)
    return bare == BatchFilter()


def facets_of(groups: Sequence[BatchGroup], wanted: BatchFilter) -> Facets:
    """Counts the groups."""
    return Facets(
        total=sum(group.count for group in groups if group.matches(wanted)),
        paused=sum(
            group.count
            for group in groups
            if group.is_paused and group.matches(replace(wanted, is_paused=None))
        ),
        statuses=_counted(groups, replace(wanted, statuses=frozenset()), lambda group: group.status),
        models=_counted(groups, replace(wanted, model=None), lambda group: group.model),
        endpoints=_counted(groups, replace(wanted, endpoint=None), lambda group: group.endpoint),
        projects=_counted(groups, wanted, lambda group: group.project_id),
        groups=[group for group in groups if group.matches(replace(wanted, served=None))],
    )


def _counted(
    groups: Iterable[BatchGroup], wanted: BatchFilter, of: Callable[[BatchGroup], T]
) -> Mapping[T, int]:
    counter: Counter[T] = Counter()
    for group in groups:
        if group.matches(wanted):
            counter[of(group)] += group.count
    return {value: count for value, count in counter.most_common() if value and count > 0}


def metadata_facets(
    found: Iterable[Mapping[str, str]], *, most_keys: int, most_values: int
) -> Mapping[str, tuple[Sequence[tuple[str, int]], int]]:
    """The most frequent keys of the metadata of some batches, each with its most frequent values and the
    number of all its values."""
    by_key: dict[str, Counter[str]] = {}
    for metadata in found:
        for key, value in metadata.items():
            by_key.setdefault(key, Counter())[value] += 1
    keys = sorted(by_key, key=lambda key: (-by_key[key].total(), key))[:most_keys]
    return {key: (by_key[key].most_common(most_values), len(by_key[key])) for key in keys}
