"""The effective settings one by one, each with the source of its value. Secrets are not shown.

The upstreams are those of the process; changes at run time are in `effective`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, SecretStr

from nightmill.settings.loading import Sources, Tree, key_of
from nightmill.settings.problems import variable_of
from nightmill.settings.sections import Settings
from nightmill.settings.upstreams import OWN_FIELDS, UpstreamSettings

HIDDEN: Final = "(hidden)"
_MAY_HOLD_SECRETS: Final = frozenset({"headers", "options", "runtime_env"})
"""Mappings of which only the names are shown."""
_URLS: Final = frozenset({"url", "store", "endpoint"})


class SourceOfValue(StrEnum):
    """Where the value of a setting comes from, the weakest first."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveSetting:
    """One setting.

    Attributes:
        value: as JSON can hold it; `HIDDEN` for a secret.
        place: the file or variable that sets it; empty for a default and a flag.
    """

    name: str
    value: object
    source: SourceOfValue
    place: str = ""


SettingsInEffect: TypeAlias = Callable[[Settings], Sequence[EffectiveSetting]]
"""Every setting of a process, with the source of its value."""


def effective_settings(settings: Settings, sources: Sources) -> list[EffectiveSetting]:
    """Every setting in the order of the sections; each of several upstreams has its own, by its name.

    Args:
        settings: what `settings_from(sources)` has made.
    """
    return list(_in_section(settings, sources, ()))


def _in_section(section: BaseModel, sources: Sources, path: tuple[str, ...]) -> Iterator[EffectiveSetting]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _in_section(value, sources, (*path, name))
        elif name == "upstreams":
            for upstream in cast("Sequence[UpstreamSettings]", value):
                yield from _of_upstream(upstream, sources)
        else:
            full = (*path, name)
            source, place = _source_of(full, sources)
            yield EffectiveSetting(name=".".join(full), value=_shown(name, value), source=source, place=place)


def _of_upstream(upstream: UpstreamSettings, sources: Sources) -> Iterator[EffectiveSetting]:
    """The settings of one of several upstreams; what it does not set comes from `[upstream]`."""
    for name in type(upstream).model_fields:
        if name == "name":
            continue
        own = ("upstreams", upstream.name, name)
        source, place = _source_of(own, sources)
        if source is SourceOfValue.DEFAULT and name not in OWN_FIELDS:
            source, place = _source_of(("upstream", name), sources)
        value = _shown(name, getattr(upstream, name))
        yield EffectiveSetting(name=".".join(own), value=value, source=source, place=place)


def _source_of(path: tuple[str, ...], sources: Sources) -> tuple[SourceOfValue, str]:
    if _sets(sources.flags, path):
        return SourceOfValue.FLAG, ""
    if _sets(sources.environment, path):
        variable = variable_of(".".join(path))
        by_file = f"{variable}_FILE"
        return SourceOfValue.ENVIRONMENT, by_file if by_file in sources.variables else variable
    if _sets(sources.file, path):
        return SourceOfValue.FILE, str(sources.config)
    return SourceOfValue.DEFAULT, ""


def _sets(tree: Tree, path: tuple[str, ...]) -> bool:
    """Whether a source sets the setting. The names of upstreams are compared as the environment has them."""
    below: object = tree
    for place, step in enumerate(path):
        if not isinstance(below, Mapping):
            return False
        branch = cast("Mapping[str, Any]", below)
        if place == 1 and path[0] == "upstreams":
            below = next((branch[name] for name in branch if key_of(name) == key_of(step)), None)
        elif step in branch:
            below = branch[step]
        else:
            return False
    return True


def _shown(name: str, value: object) -> object:
    match value:
        case SecretStr():
            return HIDDEN
        case Path():
            return str(value)
        case str() if name in _URLS:
            return without_credentials(value)
        case BaseModel():
            return {field: _shown(field, below) for field, below in value}
        case dict():
            entries = cast("dict[str, object]", value)
            hides = name in _MAY_HOLD_SECRETS
            return {key: HIDDEN if hides else _shown("", below) for key, below in entries.items()}
        case tuple():
            return [_shown("", below) for below in cast("tuple[object, ...]", value)]
        case _:
            return value


def without_credentials(url: str) -> str:
    """The URL without the password and the values of its query, which may be keys."""
    try:
        parts = urlsplit(url)
        names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:
        return HIDDEN
    user, has_user, host = parts.netloc.rpartition("@")
    shown_user = user.partition(":")[0] + has_user
    query = "&".join(f"{name}=…" for name in names)
    return parts._replace(netloc=shown_user + host, query=query).geturl()
