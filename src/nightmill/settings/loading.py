"""Reads settings: flags over environment over TOML file over defaults.

Environment names are `NIGHTMILL_` and the path in capitals with `__` between levels
(`NIGHTMILL_UPSTREAM__URL`). A value may come from a file: append `_FILE` to the name. `OPENAI_BASE_URL` and
`OPENAI_API_KEY` are never read: they tell clients where this server is.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import SecretStr, ValidationError

from nightmill.core.nearest_name import nearest_name
from nightmill.errors import SetupError
from nightmill.settings.problems import PREFIX, message_of
from nightmill.settings.sections import Settings
from nightmill.settings.upstreams import OWN_FIELDS

Tree = dict[str, Any]


def load(
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> Settings:
    """Merges the sources and checks the result.

    Args:
        flags: a nested mapping as in the TOML file; None values are left out.
        environment: defaults to the process's own.
        config: a TOML file; `NIGHTMILL_CONFIG` names one too.

    Raises:
        SetupError: a value or name is wrong; the message names the setting.
    """
    return settings_from(sources_of(flags=flags, environment=environment, config=config))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What each source sets, as nested mappings with `[[upstreams]]` by name.

    Attributes:
        config: the settings file; None without one.
        variables: the names in the environment that begin as those of settings do.
    """

    flags: Tree
    environment: Tree
    file: Tree
    config: Path | None
    variables: frozenset[str]


def sources_of(
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> Sources:
    """Reads the sources without a check of names and values; see `load`."""
    environment = os.environ if environment is None else environment
    config = config or (Path(environment["NIGHTMILL_CONFIG"]) if "NIGHTMILL_CONFIG" in environment else None)
    return Sources(
        flags=_by_name(_pruned(flags or {})),
        environment=_from_environment(environment),
        file=_by_name(_from_toml(config)) if config else {},
        config=config,
        variables=frozenset(name for name in environment if name.startswith(PREFIX)),
    )


def settings_from(sources: Sources) -> Settings:
    """Merges the sources and checks the result.

    Raises:
        SetupError: a value or name is wrong; the message names the setting.
    """
    tree = _merge(_merge(sources.file, sources.environment), sources.flags)
    upstreams = _upstream_list(tree)
    if "upstreams" in tree:
        tree["upstreams"] = upstreams
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        names = [str(entry.get("name", place)) for place, entry in enumerate(upstreams)]
        raise SetupError(message_of(error, names)) from None


def as_message(settings: Settings) -> str:
    """The settings as one line of JSON, secrets included: only for the standard input of a child process."""
    return json.dumps(revealed(settings.model_dump()))


def without_secrets(settings: Settings) -> str:
    """As `as_message`, but without the store's URL and secrets, which the reader has in its environment."""
    return json.dumps(revealed(_without_secrets(settings.model_dump(exclude={"store"}))))


def with_own_secrets(message: str) -> Settings:
    """Reads what `without_secrets` wrote and completes it from the environment of this process.

    Raises:
        SetupError: a value or name in the environment is wrong.
    """
    return load(flags=json.loads(message))


def from_message(message: str) -> Settings:
    """Reads what `as_message` wrote."""
    return Settings.model_validate_json(message)


def _without_secrets(value: object) -> object:
    match value:
        case dict():
            members = cast("Tree", value).items()
            return {
                name: _without_secrets(below) for name, below in members if not isinstance(below, SecretStr)
            }
        case list() | tuple():
            entries = cast("list[object]", value)
            return [_without_secrets(below) for below in entries if not isinstance(below, SecretStr)]
        case _:
            return value


def revealed(value: object) -> object:
    """The value with the text of its secrets and paths, as JSON can hold them."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value)
        case dict():
            return {name: revealed(below) for name, below in cast("Tree", value).items()}
        case list() | tuple():
            return [revealed(below) for below in cast("list[object]", value)]
        case _:
            return value


def _from_toml(path: Path) -> Tree:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise SetupError(f"there is no settings file at {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{path} is not valid TOML: {error}") from None


_NOT_SETTINGS = {"CONFIG", "CRASH_AT", "CRASH_FOLDER"}  # the last two: see failpoints.py
_NOT_FILES = {("limits", "lines_per_file"), ("limits", "models_per_file")}
_LIST_SETTINGS = {
    ("emulator", "fail_statuses"),
    ("limits", "completion_windows"),
    ("limits", "endpoints"),
    ("upstream", "models"),
    ("upstream", "endpoints"),
    ("webhooks", "allow_private"),
}
_LISTS_OF_UPSTREAMS = {"models", "endpoints"}


def _from_environment(environment: Mapping[str, str]) -> Tree:
    tree: Tree = {}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in _NOT_SETTINGS:
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        setting: Any = value
        if path[-1].endswith("_file") and path not in _NOT_FILES:
            path = (*path[:-1], path[-1].removesuffix("_file"))
            try:
                setting = Path(value).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SetupError(f"{name} names a file that can't be read: {error.strerror}") from None
        if path in _LIST_SETTINGS or (path[0] == "upstreams" and path[-1] in _LISTS_OF_UPSTREAMS):
            setting = [part.strip() for part in value.split(",") if part.strip()]
        branch = tree
        for step in path[:-1]:
            below: object = branch.setdefault(step, {})
            if not isinstance(below, dict):
                raise SetupError(f"{name} is set both as a value and as a section")
            branch = cast("Tree", below)
        branch[path[-1]] = setting
    return tree


def _by_name(tree: Tree) -> Tree:
    """The tree with `[[upstreams]]` as a mapping by name, as which sources are merged.

    Raises:
        SetupError: an upstream has no name, or two have the same.
    """
    entries: object = tree.get("upstreams")
    if entries is None or isinstance(entries, dict):
        return tree
    named: Tree = {}
    for entry in cast("list[object]", entries) if isinstance(entries, list) else [entries]:
        name = cast("Tree", entry).get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            near = nearest_name("name", cast("Tree", entry)) if isinstance(entry, dict) else None
            hint = f"; did you mean 'name' where it says {near!r}?" if near and near != "name" else ""
            raise SetupError(f'each [[upstreams]] needs a name: name = "gpu-a"{hint}')
        if any(key_of(name) == key_of(other) for other in named):
            raise SetupError(f"two [[upstreams]] are named {name!r}; give each its own name")
        named[name] = entry
    return {**tree, "upstreams": named}


def key_of(name: str) -> str:
    """The name of an upstream as the environment writes it."""
    return re.sub(r"\W", "_", name).lower()


def _upstream_list(tree: Tree) -> list[Tree]:
    """The upstreams in order, each with the defaults of `[upstream]` below its own settings.

    The environment names upstreams in capitals, with `_` for `-` and `.`: `NIGHTMILL_UPSTREAMS__GPU_A__URL`.
    """
    merged: dict[str, Tree] = {}
    for name, entry in cast("Tree", tree.get("upstreams") or {}).items():
        key = key_of(name)
        given = cast("Tree", entry) if isinstance(entry, dict) else {"url": entry}
        merged[key] = _merge(merged.get(key, {"name": name}), given)
    section: object = tree.get("upstream")
    defaults = cast("Tree", section) if isinstance(section, dict) else {}
    shared = {name: value for name, value in defaults.items() if name not in OWN_FIELDS}
    return [_merge(shared, entry) for entry in merged.values()]


def _merge(under: Tree, over: Tree) -> Tree:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[name] = _merge(cast("Tree", below), cast("Tree", value)) if both else value
    return merged


def _pruned(tree: Mapping[str, Any]) -> Tree:
    pruned: Tree = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            below = _pruned(cast("Mapping[str, Any]", value))
            if below:
                pruned[name] = below
        elif value is not None:
            pruned[name] = value
    return pruned
