"""A real S3 server for `make test-fleet`: Ceph's gateway over one OSD in memory, from Debian's packages.

`apt-get install --no-install-recommends radosgw ceph-mon ceph-mgr ceph-osd ceph-common` brings what it needs.
`python tests/fleet/rgw.py` prints endpoint and keys as JSON once it serves (about 20 seconds), and ends
everything when its standard input ends. `RadosGateway.start` does the same for a test. Nothing is kept.
"""

import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = (
    "ceph-mon",
    "ceph-mgr",
    "ceph-osd",
    "radosgw",
    "ceph",
    "ceph-authtool",
    "monmaptool",
    "radosgw-admin",
)
_BUCKET = "nightmill"
_START_S = 120


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@dataclass
class RadosGateway:
    """One monitor, one manager, one OSD in memory and one gateway, in a folder of their own."""

    folder: Path
    port: int
    access_key_id: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_access_key: str = field(default_factory=lambda: secrets.token_hex(20))
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def start(cls) -> "RadosGateway":
        gateway = cls(Path(tempfile.mkdtemp(prefix="rgw-")), _free_port())
        try:
            gateway._start()
        except BaseException:
            gateway.stop()
            raise
        return gateway

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, Any]:
        """The settings section `blobs` for a new prefix."""
        return {
            "url": f"s3://{_BUCKET}/{secrets.token_hex(6)}",
            "endpoint": self.endpoint,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "allow_http": True,
        }

    def pause(self) -> None:
        """Stops the gateway; acknowledged writes stay."""
        self.daemons.pop().kill()

    def resume(self) -> None:
        self._start_gateway()

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.kill()
            daemon.wait(timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        mon_port, fsid = _free_port(), str(uuid.uuid4())
        for name in ("mon", "mgr", "osd", "run", "log"):
            (self.folder / name).mkdir()
        (self.folder / "ceph.conf").write_text(self._configuration(fsid, mon_port))
        keyring, monmap = self.folder / "keyring", self.folder / "monmap"
        everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        self._run("ceph-authtool", "-C", str(keyring), "-g", "-n", "mon.", "--cap", "mon", "allow *")
        for name in ("client.admin", "mgr.a", "osd.0", "client.rgw"):
            self._run("ceph-authtool", str(keyring), "-g", "-n", name, *everything)
        self._run(
            "monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", "--fsid", fsid, str(monmap)
        )
        self._run(
            "ceph-mon", *self._c, "--mkfs", "-i", "a", "--monmap", str(monmap), "--keyring", str(keyring)
        )
        self._daemon("ceph-mon", "-i", "a")
        self._ceph("osd", "new", osd_id := str(uuid.uuid4()))
        self._daemon("ceph-mgr", "-i", "a")
        self._run("ceph-osd", *self._c, "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        self._daemon("ceph-osd", "-i", "0")
        self._start_gateway()
        self._run(
            "radosgw-admin", *self._c, "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={self.access_key_id}", f"--secret-key={self.secret_access_key}",
        )  # fmt: skip

        self._make_bucket()

    def _make_bucket(self) -> None:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=_BUCKET)
        client.close()

    def _configuration(self, fsid: str, mon_port: int) -> str:
        folder = self.folder
        return f"""
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}]
public_addr = 127.0.0.1
keyring = {folder}/keyring
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
pid_file = {folder}/run/$name.pid
log_file = {folder}/log/$name.log
crash_dir = {folder}/log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_pg_warn_min_per_osd = 0
osd_crush_chooseleaf_type = 0
ms_bind_ipv4 = true
ms_bind_ipv6 = false
ms_bind_msgr1 = false
[mon]
mon_data = {folder}/mon
mon_data_avail_crit = 0
mon_data_avail_warn = 0
[mgr]
mgr_data = {folder}/mgr
mgr_initial_modules =
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_memory_target = 939524096
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{self.port}
rgw_enable_usage_log = false
"""

    @property
    def _c(self) -> tuple[str, str]:
        return ("-c", str(self.folder / "ceph.conf"))

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")

    def _ceph(self, *command: str) -> None:
        self._run("ceph", *self._c, "--connect-timeout", "30", *command)

    def _daemon(self, program: str, *options: str) -> None:
        log = (self.folder / "log" / f"{program}.out").open("wb")
        with log:
            command = [program, *self._c, "-f", *options]
            self.daemons.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    def _start_gateway(self) -> None:
        self._daemon("radosgw", "-n", "client.rgw")
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if self.daemons[-1].poll() is not None:
                raise RuntimeError(f"radosgw ended; see {self.folder}/log")
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
            else:
                return
        raise TimeoutError("radosgw did not answer in time")


def main() -> None:
    if missing := missing_programs():
        raise SystemExit(f"missing: {', '.join(missing)}")
    gateway = RadosGateway.start()
    try:
        print(json.dumps(gateway.settings()), flush=True)
        sys.stdin.read()
    finally:
        gateway.stop()


if __name__ == "__main__":
    main()
