"""Packages that only the benchmarks need, in separate venvs, created on demand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

_VENVS = Path(".run/bench")
_INSTALL_S = 900


class CannotInstallError(RuntimeError):
    """A package cannot be installed; the row that needs it is skipped with a message."""


def venv(name: str, *packages: str, python: str = sys.executable) -> Path:
    """The `bin` folder of a venv with the packages.

    Raises:
        CannotInstallError: pip or the interpreter failed; the message is the end of its output.
    """
    folder = _VENVS / name
    programs = folder.absolute() / "bin"
    stamp = folder / "installed"
    wanted = "\n".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return programs
    try:
        _run([python, "-m", "venv", "--clear", str(folder)])
        pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
        _run([*pip, "install", *packages])
    except (OSError, subprocess.SubprocessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        rows = [row for row in message.splitlines() if "error" in row.lower()] or message.splitlines()[-1:]
        raise CannotInstallError(f"{name}: {rows[0][:200]}") from None
    stamp.write_text(wanted)
    return programs


def install_system(*packages: str) -> None:
    """Tries to install Debian packages, as root only; the caller checks whether that worked."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, check=False, capture_output=True, timeout=_INSTALL_S, env=environment)


def _run(arguments: list[str]) -> None:
    subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
