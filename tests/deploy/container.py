"""A container without a container engine, made of namespaces of this kernel.

Runs nightmill as process 1 of a PID namespace, as user 10001 without privileges. Every mount is read-only
except /proc, a temporary folder and a data folder. Images, networks and resource limits are not emulated.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

USER_ID = 10001
"""The Dockerfile's; a test holds both together."""
STAGE = Path("/mnt")
DATA, TEMPORARY = STAGE / "data", STAGE / "tmp"
PYTHON, PACKAGES, SOURCE = STAGE / "python", STAGE / "packages", STAGE / "src"

# Every mount is made read-only separately: a bind mount of / does not change the mounts below it.
_SCRIPT = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs {stage}
mkdir {data} {temporary} {python} {packages} {source}
mount --bind {from_data} {data}
mount --bind {from_python} {python}
mount --bind {from_packages} {packages}
mount --bind {from_source} {source}
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs {temporary}
mount -t proc proc /proc
while read -r _ _ _ _ at _; do
  case "$at" in {data}|{temporary}|/proc|/proc/*) continue;; esac
  mount -o remount,bind,ro "$at" 2>/dev/null || true
done < /proc/self/mountinfo
cd {data}
exec setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
  env -i {environment} {command}
"""


@dataclass(frozen=True, slots=True)
class Container:
    """`packages` is a folder of installed packages, `source` the folder with nightmill (may be the same)."""

    data: Path
    packages: Path
    source: Path

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Runs `python WORDS...` as process 1; stdout carries its output and its errors."""
        shutil.chown(self.data, USER_ID, USER_ID)
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": str(PYTHON / "lib"),
            "PYTHONHOME": str(PYTHON),
            "PYTHONPATH": f"{SOURCE}:{PACKAGES}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(TEMPORARY),
            "NIGHTMILL_FOLDER": str(DATA),
            **(environment or {}),
        }
        python = str(PYTHON / "bin" / f"python3.{sys.version_info.minor}")
        script = _SCRIPT.format(
            stage=STAGE,
            data=DATA,
            temporary=TEMPORARY,
            python=PYTHON,
            packages=PACKAGES,
            source=SOURCE,
            from_data=shlex.quote(str(self.data)),
            # The original folder may be readable by its owner only (/root, a home); a bind mount is not.
            from_python=shlex.quote(sys.base_prefix),
            from_packages=shlex.quote(str(self.packages)),
            from_source=shlex.quote(str(self.source)),
            user=USER_ID,
            environment=shlex.join(f"{name}={value}" for name, value in variables.items()),
            command=shlex.join([python, *words]),
        )
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def stop(running: "subprocess.Popen[str]", *, within_s: float = 30) -> int:
    """Sends SIGTERM to process 1, as an engine does; returns the exit code. After `within_s` kills it: -9."""
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGTERM)
    try:
        return running.wait(within_s)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
        return -signal.SIGKILL


def need_namespaces() -> None:
    """Skips the test if this machine cannot create the namespaces of a container."""
    if os.geteuid() != 0:
        pytest.skip("only root makes a read-only root without an engine")
    for program in ("unshare", "setpriv", "mount"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (util-linux)")
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "mount", "--make-rprivate", "/"],
        check=False,
        capture_output=True,
    )
    if tried.returncode != 0:
        pytest.skip("this machine makes no namespaces")
