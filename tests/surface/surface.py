"""Computes what users and their programs depend on, as text. `make surface` writes it to `snapshots/`.

Each part is sorted and names no file of the sources, so that moving code does not change it.
"""

import ast
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel, SecretStr

from tests.surface import product

SNAPSHOTS = Path(__file__).resolve().parent / "snapshots"
SOURCES = Path(__file__).resolve().parents[2] / "src"


def command_help() -> str:
    """Every command with its help, arguments and options."""
    return "\n".join(_commands(typer.main.get_command(product.command_line), "nightmill")) + "\n"


def openapi() -> str:
    return json.dumps(product.openapi_document(), indent=1, sort_keys=True) + "\n"


def routes() -> str:
    """Method and path of every route, as its router declares it, without the prefix `/v1`."""
    found = {f"{method} {path}" for path, methods in _paths(product.application()) for method in methods}
    return "\n".join(sorted(found)) + "\n"


def settings() -> str:
    """Path, variable, default and secrecy of every setting."""
    return "\n".join(_settings(product.Settings, "")) + "\n"


def metrics() -> str:
    """Name, type, help and labels of every metric; figures of the process are the library's own."""
    lines: set[str] = set()
    for line in product.metrics_text().splitlines():
        if line.startswith("# ") and " process_" not in line:
            lines.add(line)
        elif line.startswith("nightmill_"):
            name, _, labels = line.partition("{")
            lines.add(name.split(" ")[0] + (" labels: " + labels.split("=")[0] if labels else ""))
    return "\n".join(sorted(lines)) + "\n"


def errors() -> str:
    """Every error class: exit code, HTTP status and error type."""
    return "\n".join(sorted(_error(kind) for kind in _below(product.NightmillError))) + "\n"


def exit_codes() -> str:
    return (
        "\n".join(f"{int(code)} {meaning}" for code, meaning in product.exit_code_meanings().items()) + "\n"
    )


def error_texts() -> str:
    """The text of every error that the product raises, with `{}` in place of values."""
    names = {kind.__name__ for kind in _below(product.NightmillError)} | {"LineError"}
    found: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in names:
                texts = [_template(argument) for argument in node.args]
                texts += [
                    f"{keyword.arg}={_template(keyword.value)}"
                    for keyword in node.keywords
                    if keyword.arg in {"code", "param"}
                ]
                text = " | ".join(text for text in texts if text not in {"", "code=", "param="})
                if text:
                    found.add(f"{node.func.id}: {text}")
    return "\n".join(sorted(found)) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "command_help.txt": command_help,
    "openapi.json": openapi,
    "routes.txt": routes,
    "settings.txt": settings,
    "metrics.txt": metrics,
    "errors.txt": errors,
    "exit_codes.txt": exit_codes,
    "error_texts.txt": error_texts,
}


def write() -> None:
    SNAPSHOTS.mkdir(exist_ok=True)
    for name, compute in PARTS.items():
        (SNAPSHOTS / name).write_text(compute(), encoding="utf-8")


def _commands(command: Any, path: str) -> Iterator[str]:
    yield f"== {path}"
    yield command.help or ""
    for parameter in command.params:
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        metavar, text = (getattr(parameter, name, None) or "" for name in ("metavar", "help"))
        yield f"  {names} {metavar} {text}".rstrip()
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{path} {name}")


def _paths(router: Any, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    for route in router.routes:
        if hasattr(route, "original_router"):
            yield from _paths(route.original_router, prefix)
        elif hasattr(route, "path"):
            yield prefix + route.path, route.methods or set()


def _settings(section: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        full_name = f"{path}{name}"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{full_name}.")
            continue
        variable = "NIGHTMILL_" + full_name.replace(".", "__").upper()
        secret = " secret" if SecretStr.__name__ in str(kind) else ""
        default = field.get_default(call_default_factory=True)
        yield f"{full_name} {variable} = {default!r}{secret}"


def _below(kind: type[Exception]) -> Iterator[type[Exception]]:
    # The client joins each of these with one of the openai package, under the same name.
    if kind.__module__.startswith("nightmill.") and vars(sys.modules[kind.__module__])[kind.__name__] is kind:
        yield kind
    for below in kind.__subclasses__():
        yield from _below(below)


def _error(kind: Any) -> str:
    status, error_type = getattr(kind, "status", "-"), getattr(kind, "error_type", "-")
    return f"{kind.__name__}: exit code {kind.exit_code}, HTTP status {status}, type {error_type}"


def _template(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_template(value) if isinstance(value, ast.Constant) else "{}" for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left) + _template(right)
        case _:
            return ""
