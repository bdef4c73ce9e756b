"""Which batches a request means: the filter of `GET /nightmill/v1/batches`, in its query or in a JSON body.

`FilterFields` is the filter as a client writes it, and may be stored as it is; `filter_of` makes a
`BatchFilter` of it, for which it looks up what an upstream serves at the moment. `BatchQuery` is the type of
a route's parameter that takes the filter from the query. A key names batches of its own project; an admin key
those of any project, or of all with `*`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Query
from pydantic import Field

from nightmill.api.auth import Caller, caller_of, require_project
from nightmill.api.batch_wire import Priority
from nightmill.api.context import ApiContext, Context
from nightmill.api.violations import unsupported_value
from nightmill.api.wire import OwnModel
from nightmill.core.batch import HIGHEST_PRIORITY, LOWEST_PRIORITY, Status
from nightmill.core.steering import BatchFilter
from nightmill.errors import RequestError
from nightmill.ids import ProjectId
from nightmill.roles.batch_scene import read_scene

ALL_PROJECTS: Final = "*"
_LATEST: Final = 253_402_300_799
_LONGEST_TEXT: Final = 500


class FilterFields(OwnModel):
    """The filter of a client; every field that is given must match."""

    status: list[str] | str | None = None
    metadata: dict[str, str] | None = None
    older_than_s: Annotated[float, Field(ge=0)] | None = None
    created_after: Annotated[int, Field(ge=0, le=_LATEST)] | None = None
    """Created at this Unix second or later."""
    created_before: Annotated[int, Field(ge=0, le=_LATEST)] | None = None
    """Created before this Unix second."""
    endpoint: str | None = None
    model: str | None = None
    upstream: str | None = None
    """Batches whose model this upstream serves."""
    paused: bool | None = None
    priority: Priority | None = None
    q: Annotated[str, Field(max_length=_LONGEST_TEXT)] | None = None
    """In the id (its beginning), the name of the input file, or the metadata."""
    id_prefix: str | None = None
    """The beginning of the id."""

    @property
    def is_empty(self) -> bool:
        """Whether it would match every batch."""
        return all(value in (None, [], {}, "") for value in self.model_dump().values())


async def filter_of(
    context: ApiContext, fields: FilterFields, *, otherwise: Iterable[Status] = (), within: str = ""
) -> BatchFilter:
    """The filter as the store takes it.

    Args:
        otherwise: the statuses if none is given.
        within: what precedes the name of a field in an error, such as `filter.`.

    Raises:
        RequestError: a status or upstream does not exist.
    """
    given = [fields.status] if isinstance(fields.status, str) else fields.status
    served = None
    if fields.upstream is not None:
        served = await served_by(context, fields.upstream, param=f"{within}upstream")
    return BatchFilter(
        statuses=statuses_of(given, param=f"{within}status") if given else frozenset(otherwise),
        metadata=fields.metadata or None,
        older_than_s=fields.older_than_s,
        endpoint=fields.endpoint,
        model=fields.model,
        is_paused=fields.paused,
        id_prefix=fields.id_prefix,
        created_after=fields.created_after,
        created_before=fields.created_before,
        text=fields.q or None,
        priority=fields.priority,
        served=served,
    )


async def served_by(context: ApiContext, upstream: str, *, param: str) -> dict[str, frozenset[str]]:
    """By endpoint, those models of stored batches that the upstream serves; "" for batches without a model.

    Raises:
        RequestError: there is no such upstream.
    """
    scene = await read_scene(context.store, context.settings, now=context.clock())
    if upstream not in scene.upstreams:
        raise unsupported_value(upstream, scene.upstreams, param=param)
    served: dict[str, set[str]] = {}
    for group in await context.store.batch_counts.groups(None, BatchFilter()):
        if upstream in scene.serving(group.model or None, group.endpoint):
            served.setdefault(group.endpoint, set()).add(group.model)
    return {endpoint: frozenset(models) for endpoint, models in served.items()}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The batches that a query names.

    Args:
        project: None for all projects.
    """

    project: ProjectId | None
    filter: BatchFilter


async def wanted_of(
    context: Context,
    caller: Annotated[Caller, Depends(caller_of)],
    status: Annotated[Sequence[str] | None, Query(description="Repeatable.")] = None,
    metadata: Annotated[Sequence[str] | None, Query(description="KEY=VALUE, repeatable.")] = None,
    older_than_s: Annotated[float | None, Query(ge=0)] = None,
    created_after: Annotated[
        int | None, Query(ge=0, le=_LATEST, description="Created at this Unix second or later.")
    ] = None,
    created_before: Annotated[
        int | None, Query(ge=0, le=_LATEST, description="Created before this Unix second.")
    ] = None,
    endpoint: Annotated[str | None, Query()] = None,
    model: Annotated[str | None, Query()] = None,
    upstream: Annotated[str | None, Query(description="Batches whose model it serves.")] = None,
    paused: Annotated[bool | None, Query()] = None,
    priority: Annotated[int | None, Query(ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)] = None,
    q: Annotated[
        str | None,
        Query(
            max_length=_LONGEST_TEXT,
            description="In the id (its beginning), the name of the input file, or the metadata.",
        ),
    ] = None,
    id_prefix: Annotated[str | None, Query(description="The beginning of the id.")] = None,
    project: Annotated[
        str | None, Query(description="With an admin key: another project, or * for all projects.")
    ] = None,
) -> Wanted:
    """The dependency behind `BatchQuery`. Raises RequestError and AuthenticationError."""
    fields = FilterFields(
        status=list(status or ()),
        metadata=_pairs_of(metadata or ()),
        older_than_s=older_than_s,
        created_after=created_after,
        created_before=created_before,
        endpoint=endpoint,
        model=model,
        upstream=upstream,
        paused=paused,
        priority=priority,
        q=q,
        id_prefix=id_prefix,
    )
    return Wanted(project_wanted(caller, project), await filter_of(context, fields))


BatchQuery = Annotated[Wanted, Depends(wanted_of)]
"""The type of a route's parameter: the batches that the query of the request names."""


def project_wanted(caller: Caller, project: str | None) -> ProjectId | None:
    """The project that a client names: its own if it names none; None for all projects.

    Raises:
        AuthenticationError: the project is not the caller's, and the key is not an admin key.
    """
    if not project:
        return caller.project_id
    return require_project(caller, None if project == ALL_PROJECTS else project)


def statuses_of(given: Sequence[str], *, param: str = "status") -> frozenset[Status]:
    """Raises RequestError when a status does not exist."""
    known = [status.value for status in Status]
    for status in given:
        if status not in known:
            raise unsupported_value(status, known, param=param)
    return frozenset(map(Status, given))


def _pairs_of(given: Sequence[str]) -> dict[str, str] | None:
    pairs: dict[str, str] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RequestError(
                "Invalid 'metadata': expected KEY=VALUE.", param="metadata", code="invalid_value"
            )
        pairs[key] = value
    return pairs or None
