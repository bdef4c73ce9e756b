"""Azurite, the emulator of Azure's blob storage, for `make test-fleet`: from npm, in a separate folder."""

import base64
import contextlib
import hashlib
import hmac
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

_PACKAGE = "azurite@3"
_INSTALL_S = 90
_START_S = 30
_ACCOUNT = "devstoreaccount1"
_VERSION = "2021-08-06"
# Published with the emulator, so it is not a secret.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class CannotInstallError(RuntimeError):
    """npm is not installed, or cannot reach its registry."""


@dataclass
class Azurite:
    """A running server. Every test uses a new container."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes]"

    @classmethod
    def start(cls) -> "Azurite":
        npm = shutil.which("npm")
        if npm is None:
            raise CannotInstallError("npm is not installed")
        folder = Path(tempfile.mkdtemp(prefix="azurite-"))
        try:
            command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", _PACKAGE]
            subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_S)
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            program = folder / "node_modules/.bin/azurite-blob"
            words = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
            words += ["--skipApiVersionCheck", "--disableTelemetry"]
            process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, cwd=folder)
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise CannotInstallError(f"npm can't install {_PACKAGE} ({type(error).__name__})") from None
        made = cls(folder, port, process)
        give_up_at = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return made
            if time.monotonic() > give_up_at:
                made.stop()
                raise TimeoutError("Azurite does not listen")
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def make_container(self) -> str:
        name = f"container-{secrets.token_hex(6)}"
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{_ACCOUNT}/{name}?restype=container", method="PUT"
        )
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
        signed = "PUT" + "\n" * 12 + "".join(f"{key}:{value}\n" for key, value in headers.items())
        signed += f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
        digest = hmac.digest(base64.b64decode(_KEY), signed.encode(), hashlib.sha256)
        headers["authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
        for key, value in headers.items():
            asked.add_header(key, value)
        urllib.request.urlopen(asked, timeout=60).close()
        return name

    def settings(self, container: str) -> dict[str, Any]:
        """The settings section `blobs` for a prefix in the container."""
        return {
            "url": f"az://{_ACCOUNT}/{container}/some/prefix",
            "endpoint": f"http://127.0.0.1:{self.port}/{_ACCOUNT}",
            "secret_access_key": _KEY,
            "allow_http": True,
            "retry_s": 1.0,
            "timeout_s": 30.0,
            "multipart_part_bytes": 5 << 20,
        }
