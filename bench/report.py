"""Prints the table, and describes the machine and the versions."""

import importlib.metadata
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from bench import machine, stubs
from bench.figures import Figure

_PACKAGES = ("nightmill", "uvloop", "httptools", "msgspec", "uvicorn", "starlette", "fastapi", "sqlalchemy")


def print_figures(figures: Sequence[Figure], *, seconds: float) -> None:
    if not figures:
        return  # skipped; the reason was printed
    print(f"\n{figures[0].row}  ({seconds:.0f} s)")
    for figure in figures:
        target = "" if figure.target is None else f"{figure.better} {figure.target:.4g} {figure.unit}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        value = f"{figure.value:,.4g}" if figure.value < 1000 else f"{figure.value:,.0f}"
        print(
            f"  {figure.name:<66} {value:>9} {figure.unit:<5} {target:<18} {ratio:>6} {figure.verdict:<8}"
            f" {figure.note}".rstrip(),
            flush=True,
        )


def machine_and_versions() -> dict[str, Any]:
    import uvloop  # noqa: F401, PLC0415 - it must be there, or every figure means something else

    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine.description(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"nginx": _version_of("nginx", "-v"), "wrk": _version_of("wrk", "-v")},
    }


def _version_of(name: str, flag: str) -> str:
    path = stubs.program(name)
    if path is None:
        return "absent"
    ended = subprocess.run([path, flag], capture_output=True, text=True, check=False)
    words = (ended.stderr + ended.stdout).split()
    return next((word for word in words if any(letter.isdigit() for letter in word)), "?")
