"""The database and the prefix of a bucket that were given, and the links of each process to them.

Duty: refuse a database that is in use, take a prefix of its own, say what environment puts a process behind
its links, and clear up. Not its duty: when a link is cut (`conduct`).
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlencode, urlsplit

from nightmill.errors import SetupError, UnavailableError
from nightmill.parts import Parts
from nightmill.runtime.start import open_stored, prepare
from nightmill.runtime.storage import check_storage, open_bucket, open_storage
from nightmill.settings import BlobSettings, Settings, load
from nightmill.store import Store
from nightmill.store.postgres_tables import drop_tables, is_shared, tables_in
from nightmill.torture.fleet.link import Ends, Link
from nightmill.torture.fleet.plan import LEASE_TTL_S, FleetPlan

_POSTGRES_PORT: Final = 5432
_NO_CHECKED_NAME = ("verify-ca", "verify-full")
_PROBE_BYTES = 4_096
_PROBE_PAUSE_S = 0.5
_BLOBS = "NIGHTMILL_BLOBS__"

SMALL: Final = {
    # Small and quick, so that a short run meets every step often; the rest is as everybody has it.
    "NIGHTMILL_WORKER__LEASE_TTL_S": str(LEASE_TTL_S),
    "NIGHTMILL_WORKER__LINES_PER_SEGMENT": "200",
    "NIGHTMILL_WORKER__BEAT_S": "0.5",
    "NIGHTMILL_WORKER__CANCEL_GRACE_S": "0.3",
    "NIGHTMILL_RETENTION__SWEEP_S": "0.5",
    "NIGHTMILL_RETENTION__FREE_BYTES": "0",
    "NIGHTMILL_LIMITS__BATCHES_PER_HOUR": "0",
    "NIGHTMILL_BLOBS__RETRY_S": "2",
    "NIGHTMILL_BLOBS__TIMEOUT_S": "5",
    "NIGHTMILL_BLOBS__PART_INTERVAL_S": "0.2",
}


@dataclass(frozen=True, slots=True)
class Links:
    """Of one process: to Postgres, and to the bucket if there is one."""

    store: Link
    blobs: Link | None
    environment: Mapping[str, str]


class Places:
    """Where truth and bytes of the run lie.

    Args:
        environment: what the user has set for the object store, and for Postgres.

    Raises:
        SetupError: the places can't be used for a torture; the message says why.
    """

    def __init__(self, plan: FleetPlan, environment: Mapping[str, str]) -> None:
        if not is_shared(plan.store):
            raise SetupError(
                "--store names the Postgres of a fleet; without it the torture is that of one machine"
            )
        self._kept = {name: value for name, value in environment.items() if name.startswith(_BLOBS)}
        self._kept.pop(f"{_BLOBS}URL", None)
        blobs = None if plan.blobs is None else f"{plan.blobs.rstrip('/')}/torture-{secrets.token_hex(4)}"
        flags = {"folder": str(plan.folder / "data"), "store": plan.store, "blobs": {"url": blobs}}
        self.settings: Settings = load(flags=flags, environment={**SMALL, **self._kept})
        self._postgres, self._reach_postgres = _postgres_of(plan.store)
        self.slowest_put_s = 0.0
        """Of one small object, seen while the run went on."""

    @property
    def has_bucket(self) -> bool:
        return self.settings.blobs.url is not None

    async def take(self) -> None:
        """Makes the schema in an empty database.

        Raises:
            SetupError: it is not empty, or the bucket can't be used.
            UnavailableError: one of them can't be reached.
        """
        if tables := await tables_in(self.settings.store_url):
            raise SetupError(
                f"the torture needs a database of its own, and this one has {len(tables)} tables"
                f" ('{tables[0]}' among them); make one: createdb nightmill_torture"
            )
        await check_storage(self.settings)
        await prepare(self.settings)

    async def clear(self) -> None:
        """Takes out what the run has made, and nothing else."""
        await drop_tables(self.settings.store_url)
        if self.has_bucket:
            bucket = open_bucket(self.settings)
            try:
                await bucket.delete([key async for key in bucket.keys_under("")])
            finally:
                await bucket.close()

    def open(self) -> tuple[Store, Parts]:
        """For looking, past every link."""
        return open_stored(self.settings), open_storage(self.settings)[1]

    async def links(self, stack: AsyncExitStack) -> Links:
        store = await stack.enter_async_context(Link(self._reach_postgres))
        environment = {
            **self._kept,
            "NIGHTMILL_FOLDER": str(self.settings.folder),
            "NIGHTMILL_STORE": self._postgres(store.port),
        }
        if not self.has_bucket:
            return Links(store, None, environment)
        blobs_url = self.settings.blobs.url
        assert blobs_url is not None
        environment[f"{_BLOBS}URL"] = blobs_url
        endpoint = urlsplit(self.settings.blobs.endpoint or "https://")
        if endpoint.scheme == "https":
            blobs = await stack.enter_async_context(Link(_reach_named, is_tunnel=True))
            environment[f"{_BLOBS}OPTIONS__PROXY_URL"] = f"http://127.0.0.1:{blobs.port}"
        else:
            blobs = await stack.enter_async_context(Link(_reach_endpoint(endpoint, self.settings.blobs)))
            environment[f"{_BLOBS}ENDPOINT"] = endpoint._replace(netloc=f"127.0.0.1:{blobs.port}").geturl()
        return Links(store, blobs, environment)

    async def keep_probing(self) -> None:
        """Learns how long it takes to make an answer durable."""
        if not self.has_bucket:
            return
        bucket = open_bucket(self.settings)
        try:
            while True:
                began = monotonic()
                with suppress(UnavailableError):  # where the bucket is restarted too
                    await bucket.put("probe", bytes(_PROBE_BYTES))
                    self.slowest_put_s = max(self.slowest_put_s, monotonic() - began)
                await asyncio.sleep(_PROBE_PAUSE_S)
        finally:
            await bucket.close()


def _postgres_of(url: str) -> tuple[Callable[[int], str], Callable[[str], Awaitable[Ends]]]:
    """The URL by way of a port of this machine, and how to reach what it names."""
    parsed = urlsplit(url)
    query = parse_qs(parsed.query, keep_blank_values=True)
    host = unquote(parsed.hostname or "") or query.pop("host", ["localhost"])[-1]
    port = parsed.port or int(query.pop("port", [str(_POSTGRES_PORT)])[-1])
    if "," in parsed.netloc or "," in host:
        raise SetupError("the torture stands between nightmill and one Postgres: name one host, not several")
    if query.get("sslmode", [""])[-1] in _NO_CHECKED_NAME:
        raise SetupError(
            "the torture stands between nightmill and Postgres, so no certificate bears its name:"
            " use sslmode=require"
        )
    for name in ("host", "port"):
        query.pop(name, None)

    def by_way_of(own_port: int) -> str:
        user = f"{parsed.netloc.rpartition('@')[0]}@" if "@" in parsed.netloc else ""
        words = urlencode(query, doseq=True)
        return parsed._replace(netloc=f"{user}127.0.0.1:{own_port}", query=words).geturl()

    async def reach(_: str) -> Ends:
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    return by_way_of, reach


def _reach_endpoint(endpoint: SplitResult, settings: BlobSettings) -> Callable[[str], Awaitable[Ends]]:
    if settings.virtual_hosting:
        raise SetupError("over plain HTTP the torture needs blobs.virtual_hosting off")
    host, port = endpoint.hostname, endpoint.port or 80

    async def reach(_: str) -> Ends:
        return await asyncio.open_connection(host, port)

    return reach


async def _reach_named(name: str) -> Ends:
    host, _, port = name.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))
