"""The upstreams in effect: those of the settings, as they were changed at run time. No I/O.

A stored setting is stronger than the settings file. Its document is a whole upstream, key included, so later
edits of the file do not change it until it is reset.
"""

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError

from nightmill.core.upstream_setting import UpstreamSetting, UpstreamState
from nightmill.settings.loading import revealed
from nightmill.settings.sections import Settings
from nightmill.settings.upstreams import DEFAULT_NAME, UpstreamSettings


class Origin(StrEnum):
    """Where the settings of an upstream come from."""

    FILE = "file"
    """The settings of the process: its settings file, environment and flags."""
    RUN_TIME = "run time"
    """Added at run time."""
    BOTH = "both"
    """In the settings of the process, and changed at run time."""


@dataclass(frozen=True, slots=True)
class EffectiveUpstream:
    """An upstream in effect.

    Args:
        revision: of the stored setting; 0 without one.
    """

    settings: UpstreamSettings
    state: UpstreamState = UpstreamState.ACTIVE
    revision: int = 0
    origin: Origin = Origin.FILE

    @property
    def name(self) -> str:
        return self.settings.name


@dataclass(frozen=True, slots=True)
class InvalidSetting:
    """A stored setting that this version cannot read, such as one with a field of a newer version."""

    name: str
    reason: str


def effective_upstreams(
    configured: Sequence[UpstreamSettings],
    stored: Sequence[UpstreamSetting],
    *,
    managed: Set[str] = frozenset(),
) -> list[EffectiveUpstream]:
    """The upstreams in effect, in the order of the settings, then those added at run time by name.

    Removed upstreams are left out. An upstream that was added with a document that cannot be read is left out
    too; one of the settings is then paused, since its URL may have changed. `invalid_settings` lists both.

    Args:
        configured: the upstreams of the settings.
        stored: the stored settings.
        managed: names of upstreams that nightmill runs itself; of their stored settings only the state
            counts.
    """
    by_name = {setting.name: setting for setting in stored}
    in_settings = {upstream.name for upstream in configured}
    found = [_changed(upstream, by_name.get(upstream.name), managed=managed) for upstream in configured]
    found += [_added(setting) for setting in sorted(stored, key=_name) if setting.name not in in_settings]
    return [upstream for upstream in found if upstream is not None]


def effective_of(settings: Settings, stored: Sequence[UpstreamSetting]) -> list[EffectiveUpstream]:
    """The upstreams in effect in a process with these settings."""
    return effective_upstreams(settings.all_upstreams, stored, managed=managed_upstreams(settings))


def managed_upstreams(settings: Settings) -> frozenset[str]:
    """Names of the upstreams that nightmill runs itself: the emulator, or a model file."""
    is_managed = settings.emulator.enabled or settings.model.path is not None
    return frozenset({DEFAULT_NAME}) if is_managed else frozenset()


def invalid_settings(stored: Sequence[UpstreamSetting]) -> list[InvalidSetting]:
    """The stored settings whose document cannot be read."""
    found: list[InvalidSetting] = []
    for setting in stored:
        if setting.document is not None and setting.state is not UpstreamState.REMOVED:
            read = read_document(setting)
            if isinstance(read, InvalidSetting):
                found.append(read)
    return found


def document_of(settings: UpstreamSettings) -> str:
    """The upstream's settings as JSON for the store, key included.

    Values that equal the defaults are left out, so that an older version can read what does not use a newer
    field.
    """
    fields = {"name": settings.name, **settings.model_dump(exclude_defaults=True)}
    return json.dumps(revealed(fields))


def read_document(setting: UpstreamSetting) -> UpstreamSettings | InvalidSetting:
    """The settings in the document of a stored setting that has one."""
    assert setting.document is not None
    try:
        settings = UpstreamSettings.model_validate_json(setting.document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        return InvalidSetting(setting.name, reason)
    if settings.name != setting.name or settings.url in (None, "auto"):
        return InvalidSetting(setting.name, "name or url is missing or wrong")
    return settings


def _changed(
    upstream: UpstreamSettings, setting: UpstreamSetting | None, *, managed: Set[str]
) -> EffectiveUpstream | None:
    if setting is None:
        return EffectiveUpstream(upstream)
    if upstream.name not in managed:
        if setting.state is UpstreamState.REMOVED:
            return None
        if setting.document is not None:
            read = read_document(setting)
            if isinstance(read, UpstreamSettings):
                return EffectiveUpstream(read, setting.state, setting.revision, Origin.BOTH)
            return EffectiveUpstream(upstream, UpstreamState.PAUSED, setting.revision, Origin.BOTH)
    # An upstream that nightmill runs cannot be removed: an earlier start may have had another of its name.
    state = UpstreamState.ACTIVE if setting.state is UpstreamState.REMOVED else setting.state
    return EffectiveUpstream(upstream, state, setting.revision)


def _added(setting: UpstreamSetting) -> EffectiveUpstream | None:
    if setting.document is None or setting.state is UpstreamState.REMOVED:
        return None
    read = read_document(setting)
    if isinstance(read, InvalidSetting):
        return None
    return EffectiveUpstream(read, setting.state, setting.revision, Origin.RUN_TIME)


def _name(setting: UpstreamSetting) -> str:
    return setting.name
