"""`Store`: the verbs of every noun over one database."""

import time

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from nightmill.errors import UnavailableError
from nightmill.store.about import About
from nightmill.store.answered_segments import AnsweredSegments
from nightmill.store.api_keys import ApiKeys, Secrets
from nightmill.store.audit import Audit
from nightmill.store.batch_counts import BatchCounts
from nightmill.store.batch_events import BatchEvents
from nightmill.store.batch_leases import BatchLeases
from nightmill.store.batch_origins import BatchOrigins
from nightmill.store.batch_watch import BatchWatch
from nightmill.store.batches import Batches
from nightmill.store.blob_references import BlobReferences
from nightmill.store.bulk_action_pages import BulkActionPages
from nightmill.store.bulk_actions import BulkActions
from nightmill.store.canaries import Canaries
from nightmill.store.clock import Clock
from nightmill.store.compatibility import schema_refusal
from nightmill.store.counts import Counts
from nightmill.store.database import Database
from nightmill.store.database_url import open_database
from nightmill.store.file_uses import FileUses
from nightmill.store.files import Files
from nightmill.store.grants import Grants
from nightmill.store.holds import Holds
from nightmill.store.leases import Leases
from nightmill.store.line_reports import LineReports
from nightmill.store.open_batches import OpenBatches
from nightmill.store.projects import Projects
from nightmill.store.pruning import Pruning
from nightmill.store.segments import Segments
from nightmill.store.slices import Slices
from nightmill.store.sqlite import BUSY_TIMEOUT_S
from nightmill.store.steering import Steering
from nightmill.store.uploads import Uploads
from nightmill.store.upstream_samples import UpstreamSamples
from nightmill.store.upstreams import Upstreams
from nightmill.store.usage import UsageTotals
from nightmill.store.webhook_deliveries import WebhookDeliveries
from nightmill.store.webhooks import WebhookEndpoints
from nightmill.store.workers import Workers


def open_store(url: str, *, clock: Clock | None = None, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "Store":
    """A store over the database at `url`, which `migrate` has brought up to date. Connects at the first call.

    Args:
        url: `sqlite:///relative.sqlite`, `sqlite:////absolute.sqlite` or `postgresql://user@host/database`.
        clock: the store's clock where the database has none of its own (SQLite).
        busy_timeout_s: a call fails after waiting so long for another process's transaction, or an answer.
    """
    return Store(open_database(url, clock=clock or time.time, busy_timeout_s=busy_timeout_s))


class Store:
    """One attribute for each noun; `database` runs other transactions (tests, benchmarks)."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.about = About(database)
        self.files = Files(database)
        self.file_uses = FileUses(database)
        self.uploads = Uploads(database)
        self.blob_references = BlobReferences(database)
        self.batches = Batches(database)
        self.steering = Steering(database)
        self.batch_counts = BatchCounts(database)
        self.batch_events = BatchEvents(database)
        self.batch_watch = BatchWatch(database)
        self.bulk_actions = BulkActions(database)
        self.bulk_action_pages = BulkActionPages(database)
        self.canaries = Canaries(database)
        self.batch_leases = BatchLeases(database)
        self.batch_origins = BatchOrigins(database)
        self.slices = Slices(database)
        self.open_batches = OpenBatches(database)
        self.segments = Segments(database)
        self.answered_segments = AnsweredSegments(database)
        self.leases = Leases(database)
        self.line_reports = LineReports(database)
        self.grants = Grants(database)
        self.upstreams = Upstreams(database)
        self.upstream_samples = UpstreamSamples(database)
        self.workers = Workers(database)
        self.counts = Counts(database)
        self.projects = Projects(database)
        self.holds = Holds(database)
        self.usage = UsageTotals(database)
        self.pruning = Pruning(database)
        self.audit = Audit(database)
        self.api_keys = ApiKeys(database)
        self.secrets = Secrets(database)
        self.webhook_endpoints = WebhookEndpoints(database)
        self.webhook_deliveries = WebhookDeliveries(database)

    async def close(self) -> None:
        await self.database.close()

    async def ping(self) -> None:
        """Raises UnavailableError when the store can't be used."""
        try:
            await self.database.read(_check_schema)
        except DBAPIError as error:
            message = "the store's schema can't be read: restart nightmill, which makes it"
            raise UnavailableError(message) from error


def _check_schema(connection: Connection) -> None:
    if (reason := schema_refusal(connection)) is not None:
        raise UnavailableError(reason)
