"""A real pooler for `make test-fleet`: Debian's pgbouncer (`apt-get install pgbouncer`), in transaction mode.

The pooler has so few server connections that the next transaction of a client probably uses another one.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SERVER_CONNECTIONS = 3
_START_S = 20


class Pooler:
    """A pooler for the Postgres server at `host` (or the folder of its socket) and `port`."""

    def __init__(self, host: str, port: int) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            pytest.skip("pgbouncer is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="nightmill-pooler-"))
        self._folder.chmod(0o755)
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(f"""
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SERVER_CONNECTIONS}
max_client_conn = 500
server_round_robin = 1
""")
        # pgbouncer refuses to run as root, and the folder of a socket may be readable by its owner only.
        owner = Path(host).owner() if host.startswith("/") else "nobody"
        user = owner if os.geteuid() == 0 else None
        log = (self._folder / "log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [program, "-q", settings], stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=user
            )
        give_up_at = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                said = (self._folder / "log").read_text()
                assert self._process.poll() is None, said
                assert time.monotonic() < give_up_at, said
                time.sleep(0.05)
            else:
                return

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def end(self) -> None:
        self._process.kill()
        self._process.wait(timeout=60)
        shutil.rmtree(self._folder)
