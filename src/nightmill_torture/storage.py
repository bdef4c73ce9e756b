"""The store and the blobs of a run, and the links of each member to them.

On one machine they are a data folder in the folder of the run, and there are no links. For a fleet they are a
Postgres database and a folder or a prefix of a bucket. A database in use is refused, the prefix is new, and
`clear` removes what the run has made.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlencode, urlsplit

from nightmill.errors import SetupError, UnavailableError
from nightmill.parts import Parts
from nightmill.runtime.storage import check_storage, open_bucket, open_storage, open_stored, prepare
from nightmill.settings import BlobSettings, Settings, load
from nightmill.store import Store
from nightmill.store.postgres_tables import drop_tables, is_shared, tables_in
from nightmill_torture.link import Ends, Link
from nightmill_torture.plan import LEASE_TTL_S, Plan

_POSTGRES_PORT: Final = 5432
_CHECKED_NAMES = ("verify-ca", "verify-full")
_BLOBS = "NIGHTMILL_BLOBS__"
_PROBE_BYTES = 4_096
_FIRST_PROBES = 30
_RECENT_S = 2.0
_DISK_PAUSE_S = 0.05
_BUCKET_PAUSE_S = 0.5

# Small and quick, so that a short run meets every step often; all other settings have their defaults.
_SETTINGS: Final = {
    "NIGHTMILL_WORKER__CANCEL_GRACE_S": "0.3",
    "NIGHTMILL_RETENTION__SWEEP_S": "0.5",
    "NIGHTMILL_LIMITS__BATCHES_PER_HOUR": "0",
}
_ON_ONE_MACHINE: Final = _SETTINGS | {
    "NIGHTMILL_WORKER__LINES_PER_SEGMENT": "50",
    "NIGHTMILL_WORKER__BEAT_S": "0.2",
    "NIGHTMILL_BLOBS__PIECE_BYTES": "4096",  # large uploads in parts become pieces, small ones are copied
    "NIGHTMILL_FINALIZER__SLICE_BYTES": "16384",  # large batches are joined in slices, small ones in one go
}
_IN_A_FLEET: Final = _SETTINGS | {
    "NIGHTMILL_WORKER__LINES_PER_SEGMENT": "200",
    "NIGHTMILL_WORKER__BEAT_S": "0.5",
    "NIGHTMILL_WORKER__LEASE_TTL_S": str(LEASE_TTL_S),
    "NIGHTMILL_RETENTION__FREE_BYTES": "0",
    "NIGHTMILL_BLOBS__RETRY_S": "2",
    "NIGHTMILL_BLOBS__TIMEOUT_S": "5",
    "NIGHTMILL_BLOBS__PART_INTERVAL_S": "0.2",
}


@dataclass(frozen=True, slots=True)
class Links:
    """Links of one member to Postgres and to the bucket, if any, and the environment that names them."""

    store: Link | None = None
    blobs: Link | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


NO_LINKS: Final = Links()


class Storage:
    """The database and the blobs of a run.

    Args:
        environment: the user's settings of the object store, and of Postgres.

    Raises:
        SetupError: the options of the plan do not allow a run; the message says why.
    """

    def __init__(self, plan: Plan, environment: Mapping[str, str]) -> None:
        self._plan = plan
        flags: dict[str, object] = {"folder": str(plan.folder / "data")}
        of_run: Mapping[str, str] = _ON_ONE_MACHINE
        if plan.store is not None:
            if not is_shared(plan.store):
                raise SetupError(
                    "--store names the Postgres of a fleet; without it the torture is that of one machine"
                )
            kept = {name: value for name, value in environment.items() if name.startswith(_BLOBS)}
            of_run = {**_IN_A_FLEET, **kept}
            prefix = f"torture-{secrets.token_hex(4)}"
            blobs = None if plan.blobs is None else f"{plan.blobs.rstrip('/')}/{prefix}"
            flags |= {"store": plan.store, "blobs": {"url": blobs}}
            of_run.pop(f"{_BLOBS}URL", None)
            self._postgres = _Postgres(plan.store)
        self.settings: Settings = load(flags=flags, environment=of_run)
        self.environment: Mapping[str, str] = {**of_run, "NIGHTMILL_FOLDER": str(self.settings.folder)}
        """Settings of every member."""
        self._writes: list[tuple[float, float]] = []
        """When each probe ended, and how long it took."""

    @property
    def has_bucket(self) -> bool:
        return self.settings.blobs.url is not None

    async def prepare(self) -> None:
        """Makes the schema in an empty database.

        Raises:
            SetupError: the database is not empty, or the bucket can't be used.
            UnavailableError: one of them can't be reached.
        """
        if not self._plan.is_fleet:
            return
        if tables := await tables_in(self.settings.store_url):
            raise SetupError(
                f"the torture needs a database of its own, and this one has {len(tables)} tables"
                f" ('{tables[0]}' among them); make one: createdb nightmill_torture"
            )
        await check_storage(self.settings)
        await prepare(self.settings)

    async def clear(self) -> None:
        """Removes what the run has made in the database and in the bucket."""
        if self._plan.is_fleet:
            await drop_tables(self.settings.store_url)
        if self.has_bucket:
            bucket = open_bucket(self.settings)
            try:
                await bucket.delete([key async for key in bucket.keys_under("")])
            finally:
                await bucket.close()

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[tuple[Store, Parts]]:
        """The store and the parts, without links."""
        store, (blobs, parts) = open_stored(self.settings), open_storage(self.settings)
        try:
            yield store, parts
        finally:
            await parts.close()
            await blobs.close()
            await store.close()

    # --- links ---------------------------------------------------------------------------------------

    async def open_links(self, stack: AsyncExitStack) -> Links:
        if not self._plan.is_fleet:
            return NO_LINKS
        store = await stack.enter_async_context(Link(self._postgres.connect))
        environment = {"NIGHTMILL_STORE": self._postgres.url_at(store.port)}
        blobs_url = self.settings.blobs.url
        if blobs_url is None:
            return Links(store, None, environment)
        environment[f"{_BLOBS}URL"] = blobs_url
        endpoint = urlsplit(self.settings.blobs.endpoint or "https://")
        if endpoint.scheme == "https":
            blobs = await stack.enter_async_context(Link(_connect_to, is_tunnel=True))
            environment[f"{_BLOBS}OPTIONS__PROXY_URL"] = f"http://127.0.0.1:{blobs.port}"
        else:
            blobs = await stack.enter_async_context(Link(_connector(endpoint, self.settings.blobs)))
            environment[f"{_BLOBS}ENDPOINT"] = endpoint._replace(netloc=f"127.0.0.1:{blobs.port}").geturl()
        return Links(store, blobs, environment)

    # --- how long an answer takes to become durable --------------------------------------------------

    @property
    def commit_interval_s(self) -> float:
        """How long answers are gathered before they are written."""
        settings = self.settings
        return settings.blobs.part_interval_s if self.has_bucket else settings.worker.commit_interval_s

    @property
    def recent_write_s(self) -> float:
        """The slowest of the first writes and of the last two seconds: the disk may be slow just then."""
        since = monotonic() - _RECENT_S
        recent = [write for write in self._writes if write[0] >= since]
        return max((took_s for _, took_s in (*recent, *self._writes[:_FIRST_PROBES])), default=0.0)

    @property
    def slowest_write_s(self) -> float:
        return max((took_s for _, took_s in self._writes), default=0.0)

    async def keep_probing(self) -> None:
        """Measures small durable writes, as a worker makes them."""
        async with self._probe() as write:
            while True:
                began = monotonic()
                with suppress(UnavailableError):  # Postgres and bucket may be restarted together
                    await write()
                    self._writes.append((monotonic(), monotonic() - began))
                is_first = len(self._writes) < _FIRST_PROBES
                await asyncio.sleep(
                    0.01 if is_first else _BUCKET_PAUSE_S if self.has_bucket else _DISK_PAUSE_S
                )

    @asynccontextmanager
    async def _probe(self) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
        if self.has_bucket:
            bucket = open_bucket(self.settings)
            try:
                yield lambda: bucket.put("probe", bytes(_PROBE_BYTES))
            finally:
                await bucket.close()
        else:
            path = self._plan.folder / "probe"
            yield lambda: asyncio.to_thread(_write_durably, path)


def _write_durably(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(_PROBE_BYTES))
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


class _Postgres:
    """The database that a URL names, and the URL that names it by way of a port of this machine.

    Raises:
        SetupError: a link can't stand between.
    """

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._query = parse_qs(self._url.query, keep_blank_values=True)
        host = unquote(self._url.hostname or "") or self._query.pop("host", ["localhost"])[-1]
        port = self._url.port or int(self._query.pop("port", [str(_POSTGRES_PORT)])[-1])
        if "," in self._url.netloc or "," in host:
            raise SetupError(
                "the torture stands between nightmill and one Postgres: name one host, not several"
            )
        if self._query.get("sslmode", [""])[-1] in _CHECKED_NAMES:
            raise SetupError(
                "the torture stands between nightmill and Postgres, so no certificate bears its name:"
                " use sslmode=require"
            )
        for name in ("host", "port"):
            self._query.pop(name, None)
        self._host, self._port = host, port

    def url_at(self, port: int) -> str:
        user = f"{self._url.netloc.rpartition('@')[0]}@" if "@" in self._url.netloc else ""
        query = urlencode(self._query, doseq=True)
        return self._url._replace(netloc=f"{user}127.0.0.1:{port}", query=query).geturl()

    async def connect(self, _: str) -> Ends:
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)


def _connector(endpoint: SplitResult, settings: BlobSettings) -> Callable[[str], Awaitable[Ends]]:
    if settings.virtual_hosting:
        raise SetupError("over plain HTTP the torture needs blobs.virtual_hosting off")
    host, port = endpoint.hostname, endpoint.port or 80

    async def connect(_: str) -> Ends:
        return await asyncio.open_connection(host, port)

    return connect


async def _connect_to(name: str) -> Ends:
    host, _, port = name.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))
