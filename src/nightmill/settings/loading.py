"""Reads settings: flags over environment over TOML file over defaults.

Environment names are `NIGHTMILL_` and the path in capitals with `__` between levels
(`NIGHTMILL_UPSTREAM__URL`). A value may come from a file: append `_FILE` to the name. `OPENAI_BASE_URL` and
`OPENAI_API_KEY` are never read: they tell clients where this server is.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import SecretStr, ValidationError

from nightmill.core.nearest_name import fields_above, nearest_name
from nightmill.errors import SetupError
from nightmill.settings.sections import Settings
from nightmill.settings.upstreams import OWN_FIELDS

PREFIX = "NIGHTMILL_"

Tree = dict[str, Any]

_MEMBER_OF_UNION = re.compile(r"constrained-|literal\[|int$|float$|str$")
_NUMBER_ERRORS = {"int_parsing", "float_parsing", "bool_parsing", "literal_error"}
_LONGEST_VALUE = 16
"""A longer text is not shown: a key may be in the wrong place."""


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
    environment = os.environ if environment is None else environment
    config = config or (Path(environment["NIGHTMILL_CONFIG"]) if "NIGHTMILL_CONFIG" in environment else None)
    tree = _merge(
        _merge(_by_name(_from_toml(config)) if config else {}, _from_environment(environment)),
        _by_name(_pruned(flags or {})),
    )
    upstreams = _upstream_list(tree)
    if "upstreams" in tree:
        tree["upstreams"] = upstreams
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SetupError(_message(error, upstreams)) from None


def _message(error: ValidationError, upstreams: Sequence[Tree]) -> str:
    """The first error in one line: the setting, its value unless it may be secret, and what to do."""
    first = error.errors(include_url=False)[0]
    steps = [step for step in first["loc"] if not _MEMBER_OF_UNION.match(str(step))]
    fields = fields_above(Settings, steps)
    if len(steps) > 1 and steps[0] == "upstreams" and isinstance(steps[1], int):
        steps[1] = str(upstreams[steps[1]].get("name", steps[1]))
    said = first["msg"].removeprefix("Value error, ")
    if not steps:
        return f"settings: {said}; see docs/settings.md"
    name = ".".join(str(step) for step in steps)
    value: object = first["input"]
    if first["type"] == "extra_forbidden":
        near = nearest_name(str(steps[-1]), fields)
        said = f"there is no such setting{f'; did you mean {near!r}?' if near else ''}"
    elif isinstance(value, int | float) or (
        isinstance(value, str) and first["type"] in _NUMBER_ERRORS and len(value) <= _LONGEST_VALUE
    ):
        said = f"{value!r} is not allowed: {said}"
    variable = PREFIX + re.sub(r"\W", "_", name.replace(".", "__")).upper()
    return f"setting '{name}' ({variable}): {said}; see docs/settings.md"


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
            raise SetupError('each [[upstreams]] needs a name: name = "gpu-a"')
        if any(_key_of(name) == _key_of(other) for other in named):
            raise SetupError(f"two [[upstreams]] are named {name!r}; give each its own name")
        named[name] = entry
    return {**tree, "upstreams": named}


def _key_of(name: str) -> str:
    """The name of an upstream as the environment writes it."""
    return re.sub(r"\W", "_", name).lower()


def _upstream_list(tree: Tree) -> list[Tree]:
    """The upstreams in order, each with the defaults of `[upstream]` below its own settings.

    The environment names upstreams in capitals, with `_` for `-` and `.`: `NIGHTMILL_UPSTREAMS__GPU_A__URL`.
    """
    merged: dict[str, Tree] = {}
    for name, entry in cast("Tree", tree.get("upstreams") or {}).items():
        key = _key_of(name)
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
