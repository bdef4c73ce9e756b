"""Upstreams at run time under `/nightmill/v1/upstreams`: list, add, change, pause, drain, remove, try.

All routes need an admin key. A change is stored, so it survives restarts, and every worker of the store
applies it within seconds. A change that names a revision (`If-Match`, or `revision` in the body) is refused
with 409 when the upstream was changed after that revision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel, ConfigDict

from nightmill.api.auth import CurrentActor, require_admin
from nightmill.api.body import read_json
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse, echo
from nightmill.api.upstream_samples import recent_by_upstream
from nightmill.api.upstream_wire import (
    added_settings,
    changed_settings,
    diagnosis_on_wire,
    reported_on_wire,
    upstream_on_wire,
)
from nightmill.core.audit import Actor, AuditAction
from nightmill.core.nearest_name import nearest_name
from nightmill.core.upstream_report import UpstreamReport
from nightmill.core.upstream_setting import UpstreamSetting, UpstreamState
from nightmill.errors import ConflictError, NotFoundError, RequestError
from nightmill.roles.offered_models import read_reports
from nightmill.settings.effective import (
    EffectiveUpstream,
    document_of,
    effective_of,
    invalid_settings,
    managed_upstreams,
)
from nightmill.upstream.diagnosis import diagnose

_TRIAL_TIMEOUT_S: Final = 60.0
"""For each request of a trial; a server may load the model first."""
_ROUNDS: Final = 5
"""How often a change that names no revision is tried while others change the same upstream."""
_MOST_NAMED: Final = 5


router = APIRouter(
    prefix="/nightmill/v1/upstreams", include_in_schema=False, dependencies=[Depends(require_admin)]
)

IfMatch = Annotated[str | None, Header()]


class _Fields(BaseModel):
    """Any JSON object; `upstream_wire` checks its fields."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a change makes of the stored setting."""

    document: str | None
    state: UpstreamState


class _Known:
    """What this server knows of all upstreams at one moment."""

    def __init__(
        self,
        context: ApiContext,
        stored: Sequence[UpstreamSetting],
        reports: Mapping[str, list[UpstreamReport]],
        recent: Mapping[str, dict[str, Any]],
    ) -> None:
        self.stored = {setting.name: setting for setting in stored}
        self.effective = {upstream.name: upstream for upstream in effective_of(context.settings, stored)}
        self.invalid = invalid_settings(stored)
        self.reports = reports
        self.recent = recent
        self._in_settings = {upstream.name for upstream in context.settings.all_upstreams}

    def names(self) -> list[str]:
        """Those in effect, and then those that only workers know."""
        reported = sorted(name for name in self.reports if self._is_only_reported(name))
        return [*self.effective, *reported]

    def is_invalid(self, name: str) -> bool:
        """Whether this version cannot read the stored settings of an upstream."""
        return any(invalid.name == name for invalid in self.invalid)

    def revision(self, name: str) -> int:
        return self.stored[name].revision if name in self.stored else 0

    def on_wire(self, name: str) -> dict[str, Any]:
        """Raises NotFoundError."""
        reports, recent = self.reports.get(name, []), self.recent.get(name)
        if name in self.effective:
            return upstream_on_wire(self.effective[name], reports, recent=recent)
        self.require(name)
        state = self.stored[name].state if name in self.stored else UpstreamState.ACTIVE
        return reported_on_wire(
            name, state=state, revision=self.revision(name), reports=reports, recent=recent
        )

    def require(self, name: str) -> None:
        """Raises NotFoundError when no upstream of that name is in effect, and no worker reports one."""
        if name not in self.effective and not self._is_only_reported(name):
            raise self._not_found(name)

    def settings_of(self, name: str) -> EffectiveUpstream:
        """Raises NotFoundError, or ConflictError when only workers have the settings."""
        self.require(name)
        if name not in self.effective:
            message = (
                f"The upstream '{name}' is in the settings of the workers that report it, which this server"
                " does not know. Change or test it there."
            )
            raise ConflictError(message)
        return self.effective[name]

    def _is_only_reported(self, name: str) -> bool:
        is_removed = name in self.stored and self.stored[name].state is UpstreamState.REMOVED
        return name in self.reports and name not in self.effective and not is_removed

    def _not_found(self, name: str) -> NotFoundError:
        setting = self.stored.get(name)
        shown = echo(name)
        if setting is not None and setting.state is UpstreamState.REMOVED and name in self._in_settings:
            message = f"The upstream '{shown}' was removed; a reset brings it back as the settings have it."
        elif self.is_invalid(name):
            message = (
                f"This version can't read the settings of the upstream '{shown}'; remove it and add it again."
            )
        else:
            near = nearest_name(name, self.effective)
            others = ", ".join(f"'{other}'" for other in list(self.effective)[:_MOST_NAMED])
            hint = f" Did you mean '{near}'?" if near else f" The names are: {others}." if others else ""
            message = f"There is no upstream '{shown}'.{hint}"
        return NotFoundError(message, param="name", code="upstream_not_found")


@router.get("")
async def list_upstreams(context: Context) -> JsonResponse:
    known = await _known(context)
    problems = [{"name": invalid.name, "message": invalid.reason} for invalid in known.invalid]
    data = [known.on_wire(name) for name in known.names()]
    return JsonResponse({"object": "list", "data": data, "problems": problems})


@router.get("/{name}")
async def get_upstream(name: str, context: Context) -> JsonResponse:
    return _response(await _known(context), name)


@router.post("")
async def add_upstream(
    request: Request, context: Context, by: CurrentActor, if_match: IfMatch = None
) -> JsonResponse:
    """Adds an upstream; one that was removed may be added again."""
    fields, revision = await _body(request, context, if_match)
    settings = added_settings(fields, defaults=context.settings.upstream)

    def wanted(known: _Known) -> _Wanted:
        if settings.name in known.names():
            message = f"There is an upstream '{settings.name}' already; change that one."
            raise ConflictError(message, param="name", code="upstream_exists")
        return _Wanted(document_of(settings), UpstreamState.ACTIVE)

    return await _change(
        context, settings.name, wanted, action=AuditAction.UPSTREAM_ADDED, by=by, revision=revision
    )


@router.patch("/{name}")
async def change_upstream(
    name: str, request: Request, context: Context, by: CurrentActor, if_match: IfMatch = None
) -> JsonResponse:
    """Changes the fields of the body as a JSON merge patch."""
    fields, revision = await _body(request, context, if_match)

    def wanted(known: _Known) -> _Wanted:
        before = known.settings_of(name)
        if name in managed_upstreams(context.settings):
            message = f"nightmill runs the upstream '{name}' itself; it can be paused, but not changed."
            raise ConflictError(message, param="name")
        after = changed_settings(before.settings, fields)
        return _Wanted(document_of(after), before.state)

    return await _change(context, name, wanted, action=AuditAction.UPSTREAM_CHANGED, by=by, revision=revision)


def _add_state_route(verb: str, state: UpstreamState, action: AuditAction) -> None:
    """Adds the route that changes the state of an upstream and keeps its settings."""

    @router.post(f"/{{name}}/{verb}")
    async def change_state(  # pyright: ignore[reportUnusedFunction] - the router calls it
        name: str, context: Context, by: CurrentActor, if_match: IfMatch = None
    ) -> JsonResponse:
        wanted, revision = _with_state(name, state), _revision_of(if_match)
        return await _change(context, name, wanted, action=action, by=by, revision=revision)


_add_state_route("pause", UpstreamState.PAUSED, AuditAction.UPSTREAM_PAUSED)
_add_state_route("drain", UpstreamState.DRAINING, AuditAction.UPSTREAM_DRAINED)
_add_state_route("resume", UpstreamState.ACTIVE, AuditAction.UPSTREAM_RESUMED)


@router.delete("/{name}")
async def remove_upstream(
    name: str, context: Context, by: CurrentActor, if_match: IfMatch = None
) -> JsonResponse:
    """Removes an upstream that was added, key included, or hides one of the settings until a reset."""

    def wanted(known: _Known) -> _Wanted:
        if not known.is_invalid(name):
            known.require(name)
        if name in managed_upstreams(context.settings):
            message = f"nightmill runs the upstream '{name}' itself; pause it instead of removing it."
            raise ConflictError(message, param="name")
        return _Wanted(None, UpstreamState.REMOVED)

    await _store(
        context, name, wanted, action=AuditAction.UPSTREAM_REMOVED, by=by, revision=_revision_of(if_match)
    )
    return JsonResponse({"object": "upstream.deleted", "name": name, "deleted": True})


@router.post("/{name}/reset")
async def reset_upstream(
    name: str, context: Context, by: CurrentActor, if_match: IfMatch = None
) -> JsonResponse:
    """Forgets every change at run time: the settings file holds again. An added upstream is removed."""
    revision = _revision_of(if_match)
    was_added = False
    for _ in range(_ROUNDS):
        known = await _known(context)
        if name not in known.stored:
            known.require(name)
        _check_revision(known, name, revision)
        if name not in known.stored:
            return _response(known, name)
        was_added = known.stored[name].document is not None
        if await context.store.upstreams.forget(name, known.revision(name), by=by):
            break
    else:
        raise _changed_meanwhile(name)
    context.notify()
    known = await _known(context)
    # Workers go on reporting one that was added for some seconds.
    if name in (known.effective if was_added else known.names()):
        return _response(known, name)
    return JsonResponse({"object": "upstream.deleted", "name": name, "deleted": True})


@router.post("/{name}/test")
async def try_upstream(name: str, context: Context) -> JsonResponse:
    """Asks the upstream from this server and says what is wrong and what to do."""
    settings = (await _known(context)).settings_of(name).settings
    assert settings.url is not None
    diagnosis = await diagnose(
        settings,
        url=settings.url,
        models=settings.models or tuple(dict.fromkeys(settings.aliases.values())),
        endpoints=settings.endpoints,
        timeout_s=_TRIAL_TIMEOUT_S,
    )
    return JsonResponse(diagnosis_on_wire(name, diagnosis))


def _with_state(name: str, state: UpstreamState) -> Callable[[_Known], _Wanted]:
    """The change to another state, with the same settings."""

    def wanted(known: _Known) -> _Wanted:
        known.require(name)
        if state is UpstreamState.ACTIVE and known.is_invalid(name):
            message = (
                f"This version can't read the stored settings of the upstream '{name}', so it stays paused."
                " Update nightmill, or reset the upstream."
            )
            raise ConflictError(message, param="name")
        return _Wanted(known.stored[name].document if name in known.stored else None, state)

    return wanted


async def _change(
    context: ApiContext,
    name: str,
    wanted: Callable[[_Known], _Wanted],
    *,
    action: AuditAction,
    by: Actor,
    revision: int | None,
) -> JsonResponse:
    await _store(context, name, wanted, action=action, by=by, revision=revision)
    return _response(await _known(context), name)


async def _store(
    context: ApiContext,
    name: str,
    wanted: Callable[[_Known], _Wanted],
    *,
    action: AuditAction,
    by: Actor,
    revision: int | None,
) -> None:
    """Stores a change of the newest revision, or of the one that the client names.

    Raises:
        NotFoundError: there is no such upstream.
        ConflictError: the upstream was changed after the revision, or does not allow the change.
    """
    for _ in range(_ROUNDS):
        known = await _known(context)
        change = wanted(known)
        _check_revision(known, name, revision)
        stored = await context.store.upstreams.put(
            name,
            document=change.document,
            state=change.state,
            revision=known.revision(name) or None,
            action=action,
            by=by,
        )
        if stored is not None:
            context.notify()
            return
    raise _changed_meanwhile(name)


async def _known(context: ApiContext) -> _Known:
    stored = await context.store.upstreams.settings()
    reports = await read_reports(context.store)
    recent = await recent_by_upstream(context)
    return _Known(context, stored, reports, recent)


async def _body(
    request: Request, context: ApiContext, if_match: str | None
) -> tuple[dict[str, Any], int | None]:
    """The fields of the body, and the revision that the client names."""
    read = await read_json(request, _Fields, settings=context.settings.api)
    fields = dict(read.model_extra or {})
    revision = fields.pop("revision", None)
    if revision is not None and (isinstance(revision, bool) or not isinstance(revision, int)):
        raise RequestError("Invalid 'revision': expected an integer.", param="revision", code="invalid_value")
    return fields, _revision_of(if_match) if revision is None else revision


def _revision_of(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().strip('"')
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        message = "Invalid header 'If-Match': expected the revision of the upstream."
        raise RequestError(message, param="If-Match", code="invalid_value")
    return int(text)


def _check_revision(known: _Known, name: str, revision: int | None) -> None:
    if revision is not None and revision != known.revision(name):
        raise _changed_meanwhile(name)


def _changed_meanwhile(name: str) -> ConflictError:
    message = f"The upstream '{echo(name)}' was changed meanwhile. Read it again and repeat the change."
    return ConflictError(message, param="revision", code="revision_conflict")


def _response(known: _Known, name: str) -> JsonResponse:
    content = known.on_wire(name)
    response = JsonResponse(content)
    response.headers["etag"] = f'"{content["revision"]}"'
    return response
