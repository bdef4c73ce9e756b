"""Asks OSV's database whether a locked dependency has a known vulnerability: `make audit`.

Exit codes: 0 every dependency was looked up and none is known to be vulnerable; 1 some are; 2 the audit was
not done, or not for all of them, because the service can't be reached: no pass, and the output says so.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICE = "api.osv.dev"
PASSED, FAILED, NOT_DONE = 0, 1, 2


def main() -> int:
    try:
        socket.getaddrinfo(SERVICE, 443)
    except OSError as error:
        return told(NOT_DONE, f"{SERVICE} can't be reached from here: {error.strerror}")
    # In a folder of its own: what audits must not change what is audited.
    tools = ROOT / ".venv" / "audit"
    if not (tools / "pip_audit").is_dir():
        installed = run("-m", "pip", "install", "--target", str(tools), "pip-audit")
        if installed.returncode:
            return told(NOT_DONE, "pip-audit can't be installed")
    ran = run(
        *("-m", "pip_audit", "--requirement", str(ROOT / "requirements.lock"), "--no-deps", "--disable-pip"),
        *("--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off"),
        PYTHONPATH=str(tools),
    )
    return told(*verdict(ran.stdout, ran.stderr))


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def verdict(stdout: str, stderr: str) -> tuple[int, str]:
    """What pip-audit's answer means. It exits with 0 for what it could not look up, too."""
    try:
        dependencies = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (stderr.strip().splitlines() or ["it said nothing"])[-1]
        return NOT_DONE, f"the vulnerability service did not answer: {reason[:300]}"
    known = [
        f"{one['name']} {one['version']}: {vuln['id']}, mended in {', '.join(vuln['fix_versions']) or 'none'}"
        for one in dependencies
        for vuln in one.get("vulns", ())
    ]
    if known:
        return FAILED, "\n  ".join(["locked dependencies are known to be vulnerable:", *known])
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    if skipped or not dependencies:
        return (
            NOT_DONE,
            f"{len(skipped)} of {len(dependencies)} dependencies were not looked up {skipped[:5]}",
        )
    return PASSED, f"{len(dependencies)} locked dependencies, none known to be vulnerable"


def told(code: int, reason: str) -> int:
    print({PASSED: "AUDIT PASSED", FAILED: "AUDIT FAILED", NOT_DONE: "AUDIT NOT DONE"}[code] + f": {reason}")
    return code


if __name__ == "__main__":
    sys.exit(main())
