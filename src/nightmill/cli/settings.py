"""`nightmill settings`: the effective settings, and where each value comes from."""

import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nightmill.cli import flags
from nightmill.cli.screen import Json, clean, out, out_json, out_table, say
from nightmill.errors import RequestError

_GAP: Final = 2
_LEAST_VALUE: Final = 16

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightmill.settings.origins import EffectiveSetting


def settings(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Sections or settings, such as worker or api.port."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that have their default.")] = False,
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Show the settings that a server started here would have, and where each comes from.

    Without a name, only settings that differ from their default are shown. Secrets are hidden. Changes of
    upstreams at run time are shown by `nightmill upstreams list`.
    """
    # Imported here: pydantic is slow to import and `--help` does not need it.
    from nightmill.settings.loading import settings_from, sources_of
    from nightmill.settings.origins import SourceOfValue, effective_settings

    sources = sources_of(flags={"folder": folder}, config=config)
    found = effective_settings(settings_from(sources), sources)
    chosen = _named(found, names) if names else found
    if not names and not every:
        chosen = [one for one in found if one.source is not SourceOfValue.DEFAULT]
    if as_json:
        out_json(*map(_wire, chosen))
        return
    if chosen:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        out_table(("SETTING", "VALUE", "FROM"), rows_in(chosen, width))
    if names:
        for one in chosen if len(chosen) == 1 else ():
            out("\n" + textwrap.fill(_meaning(one.name), shutil.get_terminal_size().columns))
    elif not every:
        left = len(found) - len(chosen)
        say(f"{left} settings have their default; see them with: nightmill settings --all")


def _named(found: "list[EffectiveSetting]", names: list[str]) -> "list[EffectiveSetting]":
    from nightmill.settings.problems import settings_like

    chosen: list[EffectiveSetting] = []
    for given in names:
        name = given.strip("[]").removeprefix("NIGHTMILL_").lower().replace("__", ".")
        below = [one for one in found if one.name == name or one.name.startswith(f"{name}.")]
        if not below:
            meant = " or ".join(map(repr, settings_like(name)))
            hint = f"; did you mean {meant}?" if meant else "; see all with: nightmill settings --all"
            raise RequestError(f"there is no setting '{clean(given)}'{hint}")
        chosen += below
    return chosen


def rows_in(chosen: "Sequence[EffectiveSetting]", width: int | None) -> list[tuple[str, str, str]]:
    """Name, value and origin of each setting.

    Args:
        width: of the terminal. Where whole rows are wider, the kind of the source stands for its name, and
            long values are cut; None cuts nothing.
    """
    rows = [(one.name, _text(one.value), _origin(one)) for one in chosen]
    if width is None or _width_of(rows) <= width or len(rows) == 1:
        return rows
    rows = [(one.name, _text(one.value), str(one.source)) for one in chosen]
    most = max(_LEAST_VALUE, width - _width_of([(name, "", source) for name, _, source in rows]))
    return [(name, _cut(value, most), source) for name, value, source in rows]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _width_of(rows: "Sequence[tuple[str, str, str]]") -> int:
    return sum(max(len(row[column]) for row in rows) for column in range(3)) + 2 * _GAP


def _meaning(name: str) -> str:
    """What the setting does, from its docstring."""
    from nightmill.core.nearest_name import field_at
    from nightmill.settings import Settings

    field: Any = field_at(Settings, name.split("."))
    return " ".join((field.description or "").split()) if field is not None else ""


def _origin(one: "EffectiveSetting") -> str:
    return one.place or str(one.source)


def _text(value: object) -> str:
    if value is None:
        return "not given"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False) if value or isinstance(value, int) else "none"


def _wire(one: "EffectiveSetting") -> dict[str, object]:
    return {"name": one.name, "value": one.value, "source": str(one.source), "place": one.place or None}
