"""Upstreams as JSON, and the settings of an upstream made from JSON. No I/O.

Keys and header values are accepted and never shown. `upstreams` checks access and stores.
"""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlsplit

import msgspec
from pydantic import ValidationError

from nightmill.core.limit_rules import LimitRule
from nightmill.core.nearest_name import nearest_name
from nightmill.core.upstream_report import UpstreamReport, merged
from nightmill.core.upstream_setting import UpstreamState
from nightmill.errors import RequestError, SetupError
from nightmill.settings import UpstreamSettings
from nightmill.settings.effective import EffectiveUpstream
from nightmill.settings.loading import revealed
from nightmill.settings.upstreams import OWN_FIELDS
from nightmill.upstream.diagnosis import Diagnosis
from nightmill.upstream.target import target_of

Tree = dict[str, Any]

REPORTED: Final = "workers"
"""The origin of an upstream that only the settings of worker hosts have."""

_SHOWN_OTHERWISE = {"name", "url", "api_key", "headers"}
_SETTING_IN_MESSAGE = re.compile(r"upstream\.(\w+)")
_FIELD_AT_START = re.compile(r"(?:the )?(\w+)")
_FIELDS = UpstreamSettings.model_fields


# --- settings from JSON -------------------------------------------------------------------------------------


def added_settings(fields: Mapping[str, Any], *, defaults: UpstreamSettings) -> UpstreamSettings:
    """The settings of a new upstream.

    Args:
        fields: fields of `UpstreamSettings` as JSON; None leaves a field out.
        defaults: the section `[upstream]`. Without a URL of its own it has defaults for other upstreams.

    Raises:
        RequestError: a field is unknown, missing or wrong.
    """
    for name in ("name", "url"):
        if fields.get(name) is None:
            message = f"Missing required parameter: '{name}'."
            raise RequestError(message, param=name, code="missing_required_parameter")
    shared = _tree_of(defaults) if defaults.url is None else {}
    kept = {name: value for name, value in shared.items() if name not in OWN_FIELDS}
    return _settings_of(kept, fields)


def changed_settings(before: UpstreamSettings, fields: Mapping[str, Any]) -> UpstreamSettings:
    """The settings after a change. As in a JSON merge patch, objects are merged and null removes.

    A key or header is never sent to another address than the one it was given for: a change of the address
    must name it again, or remove it.

    Raises:
        RequestError: a field is unknown or wrong, or the change would send a secret elsewhere.
    """
    if fields.get("name", before.name) != before.name:
        message = f"Invalid 'name': an upstream keeps its name; add another and remove '{before.name}'."
        raise RequestError(message, param="name", code="invalid_value")
    after = _settings_of(_tree_of(before), fields)
    if _address(after) != _address(before):
        _check_secrets_named(before, fields)
    return after


def _check_secrets_named(before: UpstreamSettings, fields: Mapping[str, Any]) -> None:
    if before.api_key is not None and "api_key" not in fields:
        message = (
            "Invalid 'url': the api_key was given for another address. Send it again in the same request, or"
            " null to remove it."
        )
        raise RequestError(message, param="api_key", code="invalid_value")
    headers = fields.get("headers", {})
    named: Set[str] = set(before.headers) if headers is None else set(cast("Tree", headers))
    if left := sorted(set(before.headers) - named):
        message = (
            f"Invalid 'url': the header '{left[0]}' was given for another address. Send it again in the same"
            " request, or null to remove it."
        )
        raise RequestError(message, param="headers", code="invalid_value")


def _settings_of(before: Tree, fields: Mapping[str, Any]) -> UpstreamSettings:
    try:
        settings = UpstreamSettings.model_validate(_merged(before, fields))
    except ValidationError as error:
        raise _invalid(error) from None
    if settings.url is None or settings.url == "auto":
        raise RequestError(
            "Invalid 'url': it must be a URL such as http://host:8000/v1.", param="url", code="invalid_value"
        )
    try:
        target_of(settings.url, settings)
    except SetupError as error:
        text = str(error)
        named = _SETTING_IN_MESSAGE.search(text)
        said = _SETTING_IN_MESSAGE.sub(r"\1", text)
        message = f"Invalid upstream: {said}."
        raise RequestError(message, param=named[1] if named else None, code="invalid_value") from None
    return settings


def _merged(before: Tree, fields: Mapping[str, Any]) -> Tree:
    after = dict(before)
    for name, value in fields.items():
        below = after.get(name)
        if value is None:
            after.pop(name, None)
        elif isinstance(value, dict):
            after[name] = _merged(cast("Tree", below) if isinstance(below, dict) else {}, cast("Tree", value))
        else:
            after[name] = value
    return after


def _invalid(error: ValidationError) -> RequestError:
    """The first error; the value is left out, since a key may be in the wrong place."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = [str(step) for step in first["loc"]]
    param = place[0] if place else None
    if first["type"] == "extra_forbidden":
        near = nearest_name(place[-1], _FIELDS)
        advice = f" Did you mean '{near}'?" if near else ""
        return RequestError(
            f"Unknown parameter: '{place[-1][:64]}'.{advice}", param=param, code="unknown_parameter"
        )
    said = first["msg"].removeprefix("Value error, ")
    if param is None and (named := _FIELD_AT_START.match(said)) and named[1] in _FIELDS:
        param = named[1]
    message = f"Invalid '{param}': {said}." if param else f"Invalid upstream: {said}."
    return RequestError(message, param=param, code="invalid_value")


def _tree_of(settings: UpstreamSettings) -> Tree:
    fields: Tree = {"name": settings.name, **settings.model_dump(exclude_defaults=True)}
    return cast("Tree", revealed(fields))


def _address(settings: UpstreamSettings) -> tuple[str, str, int] | None:
    """Scheme, host and port; None if the settings cannot be used, as a settings file may have them."""
    try:
        target = target_of(settings.url or "", settings)
    except SetupError:
        return None
    return target.scheme, target.host, target.port


# --- JSON ---------------------------------------------------------------------------------------------------


def upstream_on_wire(
    upstream: EffectiveUpstream, reports: Sequence[UpstreamReport], *, recent: Tree | None
) -> Tree:
    """An upstream in effect with what the workers say of it, without key and header values.

    Args:
        recent: what was counted lately; None without a sample.
    """
    settings = upstream.settings
    fields = revealed(settings.model_dump(exclude=_SHOWN_OTHERWISE))
    return {
        "object": "upstream",
        "name": settings.name,
        "state": upstream.state.value,
        "revision": upstream.revision,
        "origin": upstream.origin.value,
        "url": shown_url(settings.url),
        "has_api_key": settings.api_key is not None,
        "headers": sorted(settings.headers),
        **cast("Tree", fields),
        "live": live_on_wire(reports),
        "recent": recent,
    }


def reported_on_wire(
    name: str,
    *,
    state: UpstreamState,
    revision: int,
    reports: Sequence[UpstreamReport],
    recent: Tree | None,
) -> Tree:
    """An upstream of which this server knows only what workers report: their own settings name it."""
    return {
        "object": "upstream",
        "name": name,
        "state": state.value,
        "revision": revision,
        "origin": REPORTED,
        "live": live_on_wire(reports),
        "recent": recent,
    }


def live_on_wire(reports: Sequence[UpstreamReport]) -> Tree | None:
    """The merged reports of all workers; None without any."""
    if not reports:
        return None
    report = cast("Tree", msgspec.to_builtins(merged(reports)))
    del report["upstream"], report["batches"]
    for model in report["per_model"]:
        model["why"] = why_on_wire(model["limit"], model["rule"])
    listed = {
        "reported_at": report.pop("at"),
        "listed_models": report.pop("models"),
        "listed_models_read_at": report.pop("models_read_at"),
    }
    return {"workers": len(reports), **report, **listed}


def why_on_wire(limit: int | None, rule: str | None) -> str | None:
    """A sentence on why the limit has its value; None where that is not known."""
    if limit is None:
        return None
    if rule is None:
        return "The settings fix the limit."
    try:
        return LimitRule(rule).sentence
    except ValueError:
        return None  # of a worker of another version


def diagnosis_on_wire(name: str, diagnosis: Diagnosis) -> Tree:
    """What was tried at an upstream, in order; `text` says what to do."""
    return {
        "object": "upstream.test",
        "name": name,
        "is_usable": diagnosis.is_usable,
        "steps": [{"name": step.name, "is_ok": step.is_ok, "text": step.text} for step in diagnosis.steps],
    }


def shown_url(url: str | None) -> str | None:
    """The URL without user name and password, and without the values of its query, which may be keys."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        query = "&".join(f"{name}=…" for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        return None
    return parts._replace(netloc=host, query=query, fragment="").geturl()
