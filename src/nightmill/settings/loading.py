"""Reads settings: flags over environment over TOML file over defaults.

Environment names are `NIGHTMILL_` and the path in capitals with `__` between levels
(`NIGHTMILL_UPSTREAM__URL`). A value may come from a file: append `_FILE` to the name. `OPENAI_BASE_URL` and
`OPENAI_API_KEY` are never read: they tell clients where this server is.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import SecretStr, ValidationError

from nightmill.errors import SetupError
from nightmill.settings.sections import Settings

PREFIX = "NIGHTMILL_"

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
    environment = os.environ if environment is None else environment
    config = config or (Path(environment["NIGHTMILL_CONFIG"]) if "NIGHTMILL_CONFIG" in environment else None)
    tree = _merge(
        _merge(_from_toml(config) if config else {}, _from_environment(environment)), _pruned(flags or {})
    )
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(step) for step in first["loc"])
        variable = PREFIX + name.replace(".", "__").upper()
        message = f"setting '{name}' ({variable}): {first['msg']}; see docs/settings.md"
        raise SetupError(message) from None


def as_message(settings: Settings) -> str:
    """The settings as one line of JSON, secrets included: only for the standard input of a child process."""
    return json.dumps(_revealed(settings.model_dump()))


def without_secrets(settings: Settings) -> str:
    """As `as_message`, but without the store's URL and secrets, which the reader has in its environment."""
    return json.dumps(_revealed(_without_secrets(settings.model_dump(exclude={"store"}))))


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


def _revealed(value: object) -> object:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value)
        case dict():
            return {name: _revealed(below) for name, below in cast("Tree", value).items()}
        case list() | tuple():
            return [_revealed(below) for below in cast("list[object]", value)]
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
_LIST_SETTINGS = {("limits", "completion_windows"), ("limits", "endpoints"), ("upstream", "models")}


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
        if path in _LIST_SETTINGS:
            setting = [part.strip() for part in value.split(",") if part.strip()]
        branch = tree
        for step in path[:-1]:
            below: object = branch.setdefault(step, {})
            if not isinstance(below, dict):
                raise SetupError(f"{name} is set both as a value and as a section")
            branch = cast("Tree", below)
        branch[path[-1]] = setting
    return tree


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
